"""The collecting side: env groups that live in this process, and the policy that acts in them.

Local has one Host for all groups; every env runner of a cluster has one for the groups that it hosts now.
A fragment depends on nothing but the parameters, the group's state and the fragment's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.execution.rollout import host_unroll
from shoal.execution.unroll import ActRow, act_here, act_row, zero_observation
from shoal.keys import fold, key_for
from shoal.recipe import Experiment
from shoal.types import Carry, Group, Params, Trajectory


class Collected(NamedTuple):
    """A fragment. info: means of the environments' own numbers. spent: seconds in "env" and "act"."""

    trajectory: Trajectory
    info: Mapping[str, float]
    spent: dict[str, float]


class _Hosted:
    """A group, the memory of the policy in it, and what stays the same for all its fragments."""

    def __init__(self, group: Group, carry: Carry, number: int, seed: int) -> None:
        size = group.size
        self.group, self.carry = group, carry
        self.index = jnp.arange(number * size, (number + 1) * size, dtype=jnp.int32)
        self.key = key_for(seed, "act", number)


class Host:
    """Groups of `size` environments each, by number; a group is here from `open` to `drop`."""

    def __init__(self, experiment: Experiment, size: int, act: ActRow | None = None) -> None:
        self._experiment, self._size = experiment, size
        self._rows = experiment.agent.plan.rows
        self._act = act or jax.jit(act_row(experiment.agent))
        self._hosted: dict[int, _Hosted] = {}

    def warm(self) -> None:
        """Compile what acts, by acting on nothing: a group's first fragment then takes as long as others."""
        agent, size = self._experiment.agent, self._size
        form = jax.eval_shape(lambda key: agent.policy(agent.init(key)), np.zeros(2, np.uint32))
        params = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), form))
        act = act_here(self._act, params, np.zeros(2, np.uint32), jnp.arange(size, dtype=jnp.int32))
        obs = zero_observation(self._experiment.source.spec, (size,))
        act(obs, np.ones(size, bool), np.zeros(size, np.float32), 0, agent.begin(size))

    def __contains__(self, number: int) -> bool:
        return number in self._hosted

    def open(self, number: int, saved: Mapping[str, Any] | None = None) -> None:
        """Have group `number` here: new, or as `save` gave it."""
        if number not in self._hosted:
            seed = self._experiment.seed
            group = self._experiment.source.make_group(seed, number, self._size)
            self._hosted[number] = _Hosted(group, self._experiment.agent.begin(self._size), number, seed)
        if saved is not None:
            hosted = self._hosted[number]
            hosted.group.load(saved["env"])
            hosted.carry = jax.tree.map(jnp.asarray, saved["carry"])

    def collect(self, number: int, fragment: int, version: int, params: Params) -> Collected:
        """Fragment `fragment` of a group; version: of the parameters that act."""
        hosted = self._hosted[number]
        spent = {"env": 0.0, "act": 0.0}
        act = act_here(self._act, params, fold(hosted.key, fragment), hosted.index)
        trajectory, hosted.carry = host_unroll(act, hosted.group, self._rows, hosted.carry, version, spent)
        return Collected(trajectory, hosted.group.info(), spent)

    def save(self, number: int) -> dict[str, Any]:
        """The group's state before its next fragment, as a tree of NumPy arrays."""
        hosted = self._hosted[number]
        return {"env": hosted.group.save(), "carry": jax.tree.map(np.asarray, hosted.carry)}

    def drop(self, number: int) -> None:
        """Close a group, if it is here."""
        hosted = self._hosted.pop(number, None)
        if hosted is not None:
            hosted.group.close()

    def close(self) -> None:
        for number in list(self._hosted):
            self.drop(number)


def mean_info(infos: list[Mapping[str, float]]) -> dict[str, float]:
    """Means over groups, by name; a name counts where it is."""
    names = sorted({name for info in infos for name in info})
    return {name: float(np.mean([info[name] for info in infos if name in info])) for name in names}
