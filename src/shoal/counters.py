"""Counts that do not overflow: `types.Counter`, two uint32 limbs, exact up to 2^64.

JAX has no 64-bit integers unless the whole process is switched to them, an int32 overflows at two
billion steps (minutes of a fast simulator) and a float32 stops counting at 2^24.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Array, Counter


def zero() -> Counter:
    """The count 0."""
    return Counter(low=jnp.zeros((), jnp.uint32), high=jnp.zeros((), jnp.uint32))


def add(counter: Counter, n: Array | int) -> Counter:
    """counter + n, traceable. n: an integer (0 <= n < 2^64), or an integer array [], not negative.

    Raises ValueError for a negative integer, TypeError for an array that is not of integers (a sum of
    float32 weights is only exact below 2^24: convert each fragment's sum before it is added).
    """
    if isinstance(n, int | np.integer):
        number = int(n)
        if not 0 <= number < 2**64:
            raise ValueError(f"a counter can take 0 <= n < 2^64 at a time, not {number}")
        low, high = jnp.uint32(number % 2**32), jnp.uint32(number >> 32)
    else:
        if not jnp.issubdtype(n.dtype, jnp.integer):
            raise TypeError(f"a counter adds integers, not {n.dtype}")
        low, high = jnp.asarray(n).astype(jnp.uint32), jnp.uint32(0)
    total = jnp.asarray(counter.low) + low
    carry = (total < low).astype(jnp.uint32)  # the sum wrapped around exactly if it is less than a summand
    return Counter(low=total, high=jnp.asarray(counter.high) + high + carry)


def value(counter: Counter) -> int:
    """The count as a Python integer, on the host."""
    return (int(counter.high) << 32) | int(counter.low)


def as_float(counter: Counter) -> jax.Array:
    """The count as float32 [], traceable: exact below 2^24, to 1 part in 10^7 above."""
    high, low = jnp.asarray(counter.high), jnp.asarray(counter.low)
    return high.astype(jnp.float32) * jnp.float32(2.0**32) + low.astype(jnp.float32)
