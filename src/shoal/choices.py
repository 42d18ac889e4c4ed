"""Choosing one of A: which are allowed, which is the highest, and what belongs to the one chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Array


def some_allowed(mask: Array) -> jax.Array:
    """A mask, bool [..., A]; all of a row that allows nothing, as may be after an episode's last step."""
    mask = jnp.asarray(mask)
    return mask | ~jnp.any(mask, axis=-1, keepdims=True)


def highest(scores: jax.Array) -> jax.Array:
    """Which of scores [..., A] is the highest, the first of several: int32 [...], from 0."""
    return jax.lax.argmax(scores, scores.ndim - 1, jnp.int32)


def masked_argmax(scores: Array, mask: Array | None) -> jax.Array:
    """The highest of scores [..., A] that the mask (bool [..., A], or None) allows: int32 [...], from 0.

    A row whose mask allows nothing counts as unmasked.
    """
    scores = jnp.asarray(scores)
    if mask is not None:
        scores = jnp.where(some_allowed(jnp.asarray(mask).astype(jnp.bool_)), scores, -jnp.inf)
    return highest(scores)


def of_action(values: jax.Array, action: Array, *, axis: int = -2) -> jax.Array:
    """What belongs to the action, int [...], of values whose `axis` counts actions: [..., A, Z] -> [..., Z],
    or with axis=-1 [..., A] -> [...]. A masked sum, whose gradient is no scatter."""
    hit = jnp.asarray(action)[..., None] == np.arange(values.shape[axis])
    hit = hit.reshape(*hit.shape, *(1,) * (-1 - axis))
    return jnp.sum(jnp.where(hit, values, 0.0), axis=axis)
