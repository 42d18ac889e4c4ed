"""Local: collecting and learning in turn, in this process, on any environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.checkpoint import nested, restore
from shoal.envs import Source
from shoal.execution import Iteration, group_size
from shoal.execution.learning import LearnKeys, described, learning_of
from shoal.execution.unroll import act_row, fragment_form, host_unroll, join
from shoal.keys import fold, key_for
from shoal.types import Agent, State


@dataclass(frozen=True, kw_only=True)
class Local:
    """One process.

    envs: environments in all. groups: how many groups they are divided into; it is part of the
    experiment (another number gives another, equally good run).
    """

    envs: int = 8
    groups: int = 1

    def __post_init__(self) -> None:
        group_size(self.envs, self.groups)

    def start(self, agent: Agent, source: Source, seed: int) -> LocalRun:
        return LocalRun(agent, source, seed, self.envs, self.groups)


class LocalRun:
    """A started Local executor."""

    def __init__(self, agent: Agent, source: Source, seed: int, envs: int, groups: int) -> None:
        size = group_size(envs, groups)
        self._learning = learning_of(agent, source.spec, envs, host=True)
        self._rows = agent.plan.rows
        self._act = jax.jit(act_row(agent))
        self._policy = jax.jit(agent.policy)
        self._groups = [source.make_group(seed, g, size) for g in range(groups)]
        self._index = [jnp.arange(g * size, (g + 1) * size, dtype=jnp.int32) for g in range(groups)]
        self._act_keys = [key_for(seed, "act", g) for g in range(groups)]
        self._keys = LearnKeys.of(seed)
        self._carry = [agent.begin(size) for _ in range(groups)]
        self._iteration = 0
        self.state: State = jax.jit(agent.init)(key_for(seed, "init"))
        self._store = self._learning.begin(fragment_form(agent, source.spec, envs, self.state))

    def iterate(self) -> Iteration:
        """One fragment of every group, then what is to be learned."""
        spent = {"env": 0.0, "act": 0.0}
        params = self._policy(self.state)
        trajectories = []
        for g, group in enumerate(self._groups):
            key = fold(self._act_keys[g], self._iteration)
            trajectory, self._carry[g] = host_unroll(
                self._act,
                group,
                self._rows,
                params,
                self._carry[g],
                key,
                self._index[g],
                self._iteration,
                spent,
            )
            trajectories.append(trajectory)
        begun = perf_counter()
        self.state, self._store, metrics, updates = self._learning.take(
            self.state, self._store, join(trajectories), self._keys, self._iteration
        )
        metrics = jax.device_get(metrics)
        spent["learn"] = perf_counter() - begun
        self._iteration += 1
        info = [group.info() for group in self._groups]
        return Iteration(
            metrics=described(metrics, updates),
            fragments=[(t.reward, t.first) for t in trajectories],
            info={
                k: float(np.mean([i[k] for i in info if k in i]))
                for k in sorted({k for i in info for k in i})
            },
            spent=spent,
        )

    def save(self) -> dict[str, Any]:
        groups = {
            str(g): {"env": group.save(), "carry": jax.device_get(self._carry[g])}
            for g, group in enumerate(self._groups)
        }
        store = self._learning.save(self._store)
        return {"iteration": np.int64(self._iteration), "groups": groups, "store": store}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._iteration = int(saved[f"{prefix}/iteration"])
        for g, group in enumerate(self._groups):
            group.load(nested(saved, f"{prefix}/groups/{g}/env"))
            self._carry[g] = restore(self._carry[g], saved, f"{prefix}/groups/{g}/carry")
        self._store = self._learning.load(self._store, saved, f"{prefix}/store")

    def close(self) -> None:
        for group in self._groups:
            group.close()
