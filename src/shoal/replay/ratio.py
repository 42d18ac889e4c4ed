"""The sample-to-insert ratio: how many gradient steps are due, in integers that do not overflow.

A plan asks for `gradient_steps` updates for every `train_every` environment steps, once `learning_starts`
steps were made. The account is a Credit: an environment step puts `gradient_steps` into it, an update takes
`train_every` out. `due` keeps learning and collecting in step, one after the other. Where both go on at once,
`may_insert` and `may_learn` hold back the side that is ahead by more than a tolerance; neither can go beyond
it, and one of them may always go on (after Reverb's rate limiters, Cassirer et al. 2021, section 3.4).

All functions take Python integers and int32 arrays, traced ones too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal.errors import ShoalError
from shoal.types import Array, Replay


class Credit(NamedTuple):
    """waiting: environment steps until learning starts. steps: what is due, in units of 1 / train_every
    updates; negative where learning is ahead. Both int32 []."""

    waiting: Array
    steps: Array


def begin(plan: Replay) -> Credit:
    """The account before the first environment step. ShoalError for numbers that do not fit it."""
    for name, least in (("train_every", 1), ("gradient_steps", 1), ("learning_starts", 0)):
        value = getattr(plan, name)
        if not least <= value < 2**31:
            raise ShoalError(f"a replay's {name} must be at least {least} and below 2^31, got {value}")
    return Credit(np.int32(plan.learning_starts), np.int32(0))  # pyright: ignore[reportArgumentType]


def _positive(x: Any) -> Any:
    return x * (x > 0)


def inserted(plan: Replay, credit: Credit, steps: Any) -> Credit:
    """After `steps` more real environment steps. Those before learning starts do not count."""
    counted = _positive(steps - credit.waiting)
    return Credit(_positive(credit.waiting - steps), credit.steps + counted * plan.gradient_steps)


def learned(plan: Replay, credit: Credit, updates: Any) -> Credit:
    """After so many updates more."""
    return Credit(credit.waiting, credit.steps - updates * plan.train_every)


def due(plan: Replay, credit: Credit, steps: Any) -> tuple[Any, Credit]:
    """After `steps` more environment steps: (K, the account after K updates). K <= `most_updates`."""
    credit = inserted(plan, credit, steps)
    updates = credit.steps // plan.train_every
    return updates, learned(plan, credit, updates)


def most_updates(plan: Replay, envs: int) -> int:
    """How many updates can be due after one fragment of B = `envs` environments, at least 1.

    ShoalError where so many steps are worth 2^31 or more.
    """
    worth = plan.rows * envs * plan.gradient_steps + plan.train_every - 1
    if worth >= 2**31:
        raise ShoalError(
            f"a fragment of {plan.rows} rows of {envs} environments with gradient_steps="
            f"{plan.gradient_steps} is too large: their product must stay below 2^31"
        )
    return max(1, worth // plan.train_every)


# Collecting and learning at once


def least_tolerance(plan: Replay, steps: int, updates: int = 1) -> int:
    """The smallest tolerance, in samples, with which neither side can block the other for ever.

    It is the samples of one insertion of at most `steps` environment steps, or of `updates` updates,
    whichever is more.
    """
    per_insertion = -(-steps * plan.gradient_steps * plan.batch_size // plan.train_every)
    return max(per_insertion, updates * plan.batch_size)


def check_tolerance(plan: Replay, tolerance: int, steps: int, updates: int = 1) -> None:
    """ShoalError unless the tolerance (in samples) is large enough for such insertions and updates."""
    least = least_tolerance(plan, steps, updates)
    if tolerance < least:
        raise ShoalError(
            f"a tolerance of {tolerance} samples is too small: one insertion of {steps} environment steps or "
            f"{updates} update(s) of {plan.batch_size} samples needs {least}"
        )


def may_insert(plan: Replay, credit: Credit, steps: Any, tolerance: int) -> Any:
    """bool, whether `steps` more environment steps keep learning at most `tolerance` samples behind."""
    return inserted(plan, credit, steps).steps * plan.batch_size <= tolerance * plan.train_every


def room(plan: Replay, credit: Credit, tolerance: int) -> int:
    """The most environment steps that `may_insert` lets through; may be negative. For the host."""
    ahead = tolerance * plan.train_every - int(credit.steps) * plan.batch_size
    return int(credit.waiting) + ahead // (plan.gradient_steps * plan.batch_size)


def may_learn(plan: Replay, credit: Credit, tolerance: int, updates: Any = 1) -> Any:
    """bool, whether `updates` more keep learning at most `tolerance` samples ahead; not before it starts."""
    after = learned(plan, credit, updates).steps * plan.batch_size
    return (credit.waiting == 0) & (after >= -tolerance * plan.train_every)
