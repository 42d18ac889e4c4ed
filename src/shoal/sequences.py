"""Time-major fragments to minibatch rows and back.

Without memory every step is a row of its own. With memory a row is the whole fragment of one
environment, with the memory that it started from, so that gradients flow through time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from shoal.types import Carry


def as_rows(fragment: Any, carry: Carry, *, whole: bool) -> tuple[dict[str, Any], int]:
    """Pytree of [T, B, ...] arrays -> {"steps": pytree, "carry": pytree of [R, ...]} and R, the rows.

    whole: R = B sequences [R, T, ...]; else R = T * B steps [R, ...] and no carry.
    """

    def rows(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 0, 1) if whole else x.reshape(-1, *x.shape[2:])

    steps = jax.tree.map(rows, fragment)
    count = jax.tree.leaves(steps)[0].shape[0]
    return {"steps": steps, "carry": carry if whole else ()}, count


def as_sequences(rows: dict[str, Any], *, whole: bool) -> tuple[Any, Carry]:
    """What `as_rows` gave, a minibatch of N rows of it: (pytree of [T, N, ...], or of [1, N, ...] where rows
    are steps; the memory at the start [N, ...])."""
    time_major = lambda x: jnp.swapaxes(x, 0, 1) if whole else x[None]  # noqa: E731
    return jax.tree.map(time_major, rows["steps"]), rows["carry"]
