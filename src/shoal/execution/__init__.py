"""Where it runs. An executor takes an Agent, environments and a seed, and gives an Iteration after another.

It never learns which algorithm it runs; an algorithm never learns where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from shoal.errors import ShoalError

if TYPE_CHECKING:  # so that executors can be named, and prepared, before JAX is imported
    import numpy as np

    from shoal.evaluation import Evaluation
    from shoal.execution.learner import Learner
    from shoal.recipe import Experiment
    from shoal.types import Metrics, Params


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
    """A started executor. save and load are for all that the next iteration needs beside the learner's
    state: groups, memories, counters."""

    @property
    def learner(self) -> Learner: ...

    def iterate(self) -> Iteration: ...

    def save(self) -> dict[str, Any]:
        """A tree of NumPy arrays, for a checkpoint."""
        ...

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        """Continue from the arrays of a checkpoint whose paths begin with `prefix`."""
        ...

    def close(self) -> None: ...


class EvaluationTicket(Protocol):
    """An evaluation under way."""

    def result(self) -> Evaluation:
        """Wait for it. May be asked again. Raises what went wrong in it."""
        ...

    def cancel(self) -> None:
        """Nobody will ask for it."""
        ...


class Evaluator(Protocol):
    """Plays the episodes of evaluations while training goes on. The returns are those of
    `evaluation.evaluate`."""

    def begin(self, params: Params, episodes: int) -> EvaluationTicket:
        """params: acting parameters, NumPy leaves."""
        ...


class Executor(Protocol):
    """Where to run, as a frozen dataclass: Local, Compiled, ..."""

    @property
    def envs(self) -> int: ...

    def prepared(self) -> AbstractContextManager[None]:
        """Begin in the background what takes long, for the runs that are started in the block. What none of
        them has taken up when it ends is released."""
        ...

    def start(self, experiment: Experiment) -> Run: ...

    def evaluator(self, experiment: Experiment) -> Evaluator | None:
        """Who plays evaluations beside the run that was started; None: nobody, they are played in between."""
        ...


def group_size(envs: int, groups: int) -> int:
    """B, the environments of each group. Raises ShoalError where groups do not divide envs."""
    if envs < 1 or groups < 1 or envs % groups:
        raise ShoalError(f"groups={groups} must divide envs={envs}, and both must be at least 1")
    return envs // groups


def devices_here(on: Executor) -> int:
    """The devices of this process that an executor asks for."""
    mesh = getattr(on, "mesh", None)  # of those that learn here
    return 1 if mesh is None else mesh.size
