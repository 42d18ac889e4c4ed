"""Randomness named by its purpose: `key_for(seed, role, *path)` and what is drawn from a key.

A key is uint32 [2]: a NumPy or a JAX array alike. Every random number of a run comes from a key that
says what it is for, so that nothing depends on which process drew first, or on how many there are.

Numbers are drawn with Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
written out in full: 20 rounds of plain arithmetic fuse into the code around them, where `jax.random` on
the CPU runs a loop that costs more than a small network (and NumPy gets the same bits). To use
`jax.random` with such a key, wrap it: `jax.random.wrap_key_data(key)`.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.types import Key

if TYPE_CHECKING:
    import jax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def key_for(seed: int, role: str, *path: int | str) -> np.ndarray:
    """The key of one purpose, e.g. `key_for(0, "act", group)`: uint32 [2]. Equal names, equal keys."""
    name = "/".join(map(str, (seed, role, *path)))
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u4").copy()


def seed_for(seed: int, role: str, *path: int | str) -> int:
    """The same as an integer in [0, 2^31), for libraries that want a seed."""
    return int(key_for(seed, role, *path)[0] >> 1)


def _threefry(xp: Any, key: Key, high: Key, low: Key) -> tuple[Key, Key]:
    """Threefry-2x32-20 of the counter (high, low) under `key` [..., 2]; shapes broadcast."""
    k0, k1 = key[..., 0], key[..., 1]
    schedule = (k0, k1, k0 ^ k1 ^ xp.uint32(0x1BD11BDA))
    x0, x1 = high + k0, low + k1
    for block in range(5):
        for r in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = ((x1 << xp.uint32(r)) | (x1 >> xp.uint32(32 - r))) ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + schedule[(block + 2) % 3] + xp.uint32(block + 1)
    return x0, x1


def _module(*arrays: Any) -> Any:
    if all(isinstance(a, np.ndarray | np.generic | int) for a in arrays):
        return np
    import jax.numpy as jnp  # only now: a process that only steps environments does without JAX

    return jnp


def fold(key: Key, *numbers: Any) -> Key:
    """A new key from a key and integers (any count, arrays allowed): broadcasts, uint32 [..., 2].

    `fold(key, t, arange(B))` gives one key per environment. Each number is taken modulo 2^32.
    """
    xp = _module(key, *numbers)
    key = xp.asarray(key)
    with np.errstate(over="ignore"):
        for number in numbers:
            low = np.uint32(number % 2**32) if isinstance(number, int) else number
            low = xp.asarray(low).astype(xp.uint32)
            # The constant keeps keys apart from the counters that `bits` uses.
            high = xp.full_like(low, 0x5A0A1000)
            key = xp.stack(xp.broadcast_arrays(*_threefry(xp, key, high, low)), axis=-1)
    return key


def bits(key: Key, n: int) -> Key:
    """n random words for each key: [..., 2] -> uint32 [..., n]."""
    xp = _module(key)
    half = (n + 1) // 2
    counter = xp.arange(half, dtype=xp.uint32)
    with np.errstate(over="ignore"):
        x0, x1 = _threefry(xp, xp.asarray(key)[..., None, :], xp.zeros_like(counter), counter)
    return xp.concatenate([x0, x1], axis=-1)[..., :n]


def uniform(key: Key, n: int) -> Key:
    """n numbers in the open interval (0, 1) for each key: [..., 2] -> float32 [..., n]."""
    xp = _module(key)
    # 23 bits and a half: never 0, never 1, so that logarithms are finite.
    return ((bits(key, n) >> xp.uint32(9)).astype(xp.float32) + xp.float32(0.5)) * xp.float32(2.0**-23)


def normal(key: Key, n: int) -> jax.Array:
    """n standard normal numbers for each key (Box and Muller 1958): [..., 2] -> float32 [..., n]."""
    import jax.numpy as jnp

    half = (n + 1) // 2
    u = uniform(jnp.asarray(key), 2 * half)
    radius = jnp.sqrt(-2.0 * jnp.log(u[..., :half]))
    angle = (2.0 * math.pi) * u[..., half:]
    return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1)[..., :n]


def gumbel(key: Key, n: int) -> jax.Array:
    """n standard Gumbel numbers for each key: [..., 2] -> float32 [..., n]. argmax(logits + g) samples."""
    import jax.numpy as jnp

    return -jnp.log(-jnp.log(uniform(jnp.asarray(key), n)))


def permutations(key: Key, count: int, n: int) -> jax.Array:
    """`count` random orders of 0 ... n - 1: int32 [count, n].

    Up to 2^16 numbers are sorted with their random bits in one word each, four times as fast on the CPU as
    sorting pairs. At least 16 random bits decide; where they tie, the smaller number comes first.
    """
    import jax.numpy as jnp

    random = bits(jnp.asarray(key), count * n).reshape(count, n)
    if n > 2**16:
        return jnp.argsort(random).astype(jnp.int32)
    low = jnp.uint32((1 << max(n - 1, 1).bit_length()) - 1)
    return (jnp.sort((random & ~low) | jnp.arange(n, dtype=jnp.uint32)) & low).astype(jnp.int32)
