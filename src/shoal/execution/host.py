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
from shoal.execution.unroll import act_here, act_keyed, params_form, row_keys, zero_observation
from shoal.keys import fold, key_for
from shoal.recipe import Experiment
from shoal.types import Carry, Group, Params, Trajectory

# Keys are made for so many rows ahead: NumPy takes as long for one as for a hundred.
_KEYED_ROWS = 128


class Collected(NamedTuple):
    """A fragment. info: means of the environments' own numbers. spent: seconds in "env" and "act"."""

    trajectory: Trajectory
    info: Mapping[str, float]
    spent: dict[str, float]


class _Hosted:
    """A group, the memory of the policy in it, and what stays the same for all its fragments."""

    def __init__(self, group: Group, carry: Carry, number: int, seed: int, rows: int) -> None:
        size = group.size
        self.group, self.carry = group, carry
        self.index = jax.device_put(np.arange(number * size, (number + 1) * size, dtype=np.int32))
        self._key, self._rows = key_for(seed, "act", number), rows
        self._ahead = -(-_KEYED_ROWS // rows)  # fragments
        self._block, self._keys = -1, np.zeros(0)

    def keys(self, fragment: int) -> np.ndarray:
        """Those of a fragment's rows: uint32 [T, B, 2]."""
        block, place = divmod(fragment, self._ahead)
        if block != self._block:
            numbers = np.arange(block * self._ahead, (block + 1) * self._ahead)
            fragments, rows = fold(self._key, numbers), np.arange(self._rows, dtype=np.uint32)
            self._keys = np.asarray(row_keys(fragments[:, None], rows, self.group.size))
            self._block = block
        return self._keys[place]


class Host:
    """Groups of `size` environments each, by number; a group is here from `open` to `drop`."""

    def __init__(self, experiment: Experiment, size: int) -> None:
        self._experiment, self._size = experiment, size
        self._rows = experiment.agent.plan.rows
        self._act = jax.jit(act_keyed(experiment.agent))
        self._hosted: dict[int, _Hosted] = {}

    def warm(self, form: Params | None = None) -> None:
        """Compile what acts, by acting on nothing: a group's first fragment then takes as long as others.
        form: what `params_form` gives, if it is known."""
        agent, size = self._experiment.agent, self._size
        form = params_form(agent) if form is None else form
        params = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), form))
        index = jax.device_put(np.arange(size, dtype=np.int32))
        act = act_here(self._act, params, np.zeros((1, size, 2), np.uint32), index)
        obs = zero_observation(self._experiment.source.spec, (size,))
        act(obs, np.ones(size, bool), np.zeros(size, np.float32), 0, agent.begin(size))

    def __contains__(self, number: int) -> bool:
        return number in self._hosted

    def open(self, number: int, saved: Mapping[str, Any] | None = None) -> None:
        """Have group `number` here: new, or as `save` gave it."""
        if number not in self._hosted:
            seed = self._experiment.seed
            group = self._experiment.source.make_group(seed, number, self._size)
            carry = self._experiment.agent.begin(self._size)
            self._hosted[number] = _Hosted(group, carry, number, seed, self._rows)
        if saved is not None:
            hosted = self._hosted[number]
            hosted.group.load(saved["env"])
            hosted.carry = jax.tree.map(jnp.asarray, saved["carry"])

    def collect(self, number: int, fragment: int, version: int, params: Params) -> Collected:
        """Fragment `fragment` of a group; version: of the parameters that act."""
        hosted = self._hosted[number]
        spent = {"env": 0.0, "act": 0.0}
        act = act_here(self._act, params, hosted.keys(fragment), hosted.index)
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
