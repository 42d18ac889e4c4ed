"""Local: collecting and learning in turn, in this process, on any environment."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import numpy as np

from shoal.checkpoint import nested, restore
from shoal.checks import typed
from shoal.execution import Fragment, Iteration, group_size
from shoal.execution.host import Host, mean_info
from shoal.execution.learner import LearnerHere
from shoal.execution.learning import LearnKeys, described, learning_of
from shoal.execution.split import split_here
from shoal.execution.unroll import fragment_form, join
from shoal.keys import key_for
from shoal.mesh import Mesh
from shoal.recipe import Experiment
from shoal.types import Trajectory
from shoal.unbroken import Unbroken


@dataclass(frozen=True, kw_only=True)
class Local:
    """One process.

    envs: environments in all. groups: how many groups they are divided into; it is part of the
    experiment (another number gives another, equally good run). mesh: learn on so many devices of this
    process (GPUs, or a CPU that shows itself as several); None is one. Another mesh is the same experiment,
    to rounding.
    """

    envs: int = 8
    groups: int = 1
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        typed(self)
        group_size(self.envs, self.groups)

    def prepared(self) -> AbstractContextManager[None]:
        return nullcontext()

    def start(self, experiment: Experiment) -> LocalRun:
        return LocalRun(experiment, self.envs, self.groups, self.mesh)

    def evaluator(self, experiment: Experiment) -> None:
        return None


class LocalRun:
    """A started Local executor."""

    def __init__(self, experiment: Experiment, envs: int, groups: int, mesh: Mesh | None = None) -> None:
        agent, spec, seed = experiment.agent, experiment.source.spec, experiment.seed
        size = group_size(envs, groups)
        self._learning = learning_of(agent, spec, envs, host=True)
        split = None if mesh is None else split_here(mesh, agent, envs)
        self._host = Host(experiment, size)
        self._groups = range(groups)
        for g in self._groups:
            self._host.open(g)
        self._keys = LearnKeys.of(seed)
        self._carry = agent.begin(size)
        self._iteration = 0
        self._unbroken = Unbroken()
        self.learner = LearnerHere.new(agent, key_for(seed, "init"), split)
        self._store = self._learning.begin(fragment_form(agent, spec, envs))

    def iterate(self) -> Iteration:
        """One fragment of every group, then what is to be learned."""
        with self._unbroken.step():
            return self._iterate()

    def _iterate(self) -> Iteration:
        params, i = self.learner.acting(), self._iteration
        collected = [self._host.collect(g, i, i, params) for g in self._groups]
        trajectories = [c.trajectory for c in collected]
        begun = perf_counter()
        self._store, metrics, updates = self._learning.take(
            self.learner, self._store, join(trajectories), self._keys, i
        )
        metrics = jax.device_get(metrics)
        learn = perf_counter() - begun
        self._iteration += 1
        return Iteration(
            metrics=described(metrics, updates),
            fragments=[fragment_of(g, t) for g, t in zip(self._groups, trajectories, strict=True)],
            info=mean_info([c.info for c in collected]),
            spent={name: sum(c.spent[name] for c in collected) for name in ("env", "act")} | {"learn": learn},
        )

    def save(self) -> dict[str, Any]:
        self._unbroken.check()
        groups = {str(g): self._host.save(g) for g in self._groups}
        store = self._learning.save(self._store)
        return {"iteration": np.int64(self._iteration), "groups": groups, "store": store}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._iteration = int(saved[f"{prefix}/iteration"])
        for g in self._groups:
            self._host.open(g, group_state(self._carry, saved, f"{prefix}/groups/{g}"))
        self._store = self._learning.load(self._store, saved, f"{prefix}/store")

    def close(self) -> None:
        self._host.close()


def fragment_of(group: int, trajectory: Trajectory) -> Fragment:
    return Fragment(group, np.asarray(trajectory.reward), np.asarray(trajectory.first))


def group_state(carry: Any, saved: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any] | None:
    """What `Host.save` gave, from the arrays of a checkpoint; None where the group had not begun. carry: the
    memory's form."""
    if not any(path.startswith(f"{prefix}/") for path in saved):
        return None
    return {
        "env": nested(saved, f"{prefix}/env"),
        "carry": restore(carry, saved, f"{prefix}/carry"),
    }
