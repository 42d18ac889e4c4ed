"""What the replay asks of arrays, once for NumPy and once for JAX.

A NumPy array is written in place and returned. A JAX array gives a new one, which XLA writes into the old
one's place where the caller donates it. Integers are exact in both; nothing here rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Array


def module(*arrays: Any) -> Any:
    """jax.numpy where any of these is a JAX array (or traced), else numpy."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def integers(xp: Any) -> Any:
    """The dtype to count rows in: what NumPy indexes with, so that it need not convert; int32 in JAX."""
    return np.intp if xp is np else jnp.int32


def put(array: Array, index: Array, value: Any) -> Array:
    """array[index] = value. In JAX what lies beyond the end is dropped."""
    if isinstance(array, jax.Array):
        return array.at[index].set(value, mode="drop")
    array[index] = value
    return array


def put_rows(array: Array, start: Any, rows: Any) -> Array:
    """array[start : start + len(rows)] = rows, which must fit."""
    if isinstance(array, jax.Array):
        rows = jnp.asarray(rows, array.dtype)
        return jax.lax.dynamic_update_slice_in_dim(array, rows, start, 0)
    array[start : start + rows.shape[0]] = rows
    return array


def repeat(xp: Any, times: int, step: Callable[[Any], Any], state: Any) -> Any:
    """state = step(state), so many times; a loop in the compiled program."""
    if xp is np:
        for _ in range(times):
            state = step(state)
        return state
    return jax.lax.fori_loop(0, times, lambda _, now: step(now), state)


def take(array: Array, index: Array) -> Array:
    """array[index] along the first axis; every index must exist."""
    if isinstance(array, jax.Array):
        return array.at[index].get(mode="promise_in_bounds")
    return array.take(index, axis=0)


def multiply_high(word: Array, n: Any) -> Array:
    """floor(word * n / 2^32): a random word uint32 to an integer in [0, n), 0 <= n < 2^32. `integers` dtype.

    No number's share differs from 1 / n by more than 1 / 2^32.
    """
    if not isinstance(word, jax.Array):
        return ((word * np.asarray(n, np.uint64)) >> np.uint64(32)).astype(np.intp)
    half, low = jnp.uint32(16), jnp.uint32(0xFFFF)
    n = jnp.asarray(n).astype(jnp.uint32)
    a, b, c, d = word >> half, word & low, n >> half, n & low
    middle = a * d + ((b * d) >> half)
    other = b * c + (middle & low)
    return (a * c + (middle >> half) + (other >> half)).astype(jnp.int32)
