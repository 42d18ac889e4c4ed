"""Target networks: a copy of the parameters that follows them late or slowly."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Counter, Params


def renewed(target: Params, online: Params, updates: Counter, every: int, tau: float) -> Any:
    """The target after the optimizer step that gave `online`, the `updates`-th of all.

    On every `every`-th step it becomes (1 - tau) * target + tau * online, with tau = 1 exactly `online`;
    otherwise it stays as it is.
    """
    due = updates.low % np.uint32(every) == 0

    def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(due, new if tau == 1 else old + tau * (new - old), old)

    return jax.tree.map(leaf, target, online)
