"""Where it runs. An executor takes an Agent, environments and a seed, and gives an Iteration after another.

It never learns which algorithm it runs; an algorithm never learns where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from shoal.errors import ShoalError
from shoal.types import Metrics, State

if TYPE_CHECKING:
    from shoal.recipe import Experiment


class Fragment(NamedTuple):
    """What episodes are counted from: a group's number, reward [T, B], first [T + 1, B]."""

    group: int
    reward: np.ndarray
    first: np.ndarray


class Iteration(NamedTuple):
    """What one iteration gives to the trainer.

    metrics: the algorithm's, means over the update. fragments: those that the iteration dealt with, each
    group's in their order. info: means of the environments' own numbers. spent: seconds in "env", "act" and
    "learn", and what else the executor measured, as `timing/NAME`. events: what else happened, in words.
    """

    metrics: Metrics
    fragments: list[Fragment]
    info: dict[str, float]
    spent: dict[str, float]
    events: Sequence[str] = ()


class Run(Protocol):
    """A started executor. `state` is the learner's; save and load are for all else that the next iteration
    needs: groups, memories, counters."""

    @property
    def state(self) -> State: ...

    @state.setter
    def state(self, state: State) -> None: ...

    def iterate(self) -> Iteration: ...

    def save(self) -> dict[str, Any]:
        """A tree of NumPy arrays, for a checkpoint."""
        ...

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        """Continue from the arrays of a checkpoint whose paths begin with `prefix`."""
        ...

    def close(self) -> None: ...


class Executor(Protocol):
    """Where to run, as a frozen dataclass: Local, Compiled, ..."""

    @property
    def envs(self) -> int: ...

    def prepare(self) -> None:
        """Begin in the background what takes long, before anything else is done."""
        ...

    def start(self, experiment: Experiment) -> Run: ...


def group_size(envs: int, groups: int) -> int:
    """B, the environments of each group. Raises ShoalError where groups do not divide envs."""
    if envs < 1 or groups < 1 or envs % groups:
        raise ShoalError(f"groups={groups} must divide envs={envs}, and both must be at least 1")
    return envs // groups
