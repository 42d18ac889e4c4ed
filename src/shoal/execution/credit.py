"""How many gradient steps are due: `gradient_steps` for every `train_every` environment steps.

In whole numbers, so that nothing drifts and the host and compiled code agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Array, Replay


class Credit(NamedTuple):
    """waiting: environment steps still to come before learning starts. owed: int32 [], the steps since that
    no gradient step has been made for, times `gradient_steps`."""

    waiting: Array
    owed: Array


def most_updates(plan: Replay, envs: int) -> int:
    """The greatest number of gradient steps that one iteration of `envs` environments can make due."""
    return -(-plan.rows * envs * plan.gradient_steps // plan.train_every)


def no_credit(plan: Replay) -> Credit:
    """Before the first step."""
    return Credit(np.int32(plan.learning_starts), np.int32(0))


def earn(plan: Replay, credit: Credit, steps: Array, drawable: Any, most: int) -> tuple[Credit, Array]:
    """(credit after `steps` new environment steps, the gradient steps that are due now, at most `most`).

    Steps count from `learning_starts` on, and only once something can be drawn from the replay.
    """
    xp = jnp if any(isinstance(x, jax.Array) for x in (*credit, steps, drawable)) else np
    early = xp.minimum(credit.waiting, steps)
    owed = credit.owed + (steps - early) * np.int32(plan.gradient_steps)
    owed = xp.where(drawable > 0, owed, 0).astype(np.int32)
    due = xp.minimum(owed // np.int32(plan.train_every), np.int32(most)).astype(np.int32)
    return Credit(credit.waiting - early, owed - due * np.int32(plan.train_every)), due
