"""Environments with a vector version of their own, as a host group: `resolve(id, vector=True)`.

All rows of such an environment draw from one generator, so that no row can be rebuilt alone: the group is
seeded once, and its journal holds every action since (in the smallest dtype that holds the actions). It
therefore grows, and rebuilding takes as long as the steps took; environments that are stepped one by one, or
written in JAX, are saved in less.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from shoal.envs.errors import EnvError
from shoal.envs.journal import Journal
from shoal.envs.means import Means
from shoal.envs.rows import MASK, compact_dtype, convert_space, memory_of, sent
from shoal.envs.writing import whole
from shoal.errors import ShoalError, told
from shoal.keys import seed_for
from shoal.spaces import zeros
from shoal.types import EnvSpec, Observation, Step


@dataclass(frozen=True, kw_only=True)
class VectorMaker:
    """How to make a registered environment's own vector version."""

    env: Any  # gymnasium EnvSpec
    env_kwargs: Mapping[str, Any]
    time_limit: int | None = None

    def __call__(self, size: int) -> Any:
        """`size` rows. Raises ShoalError where there is no vector version or its autoreset is another one."""
        name = getattr(self.env, "id", getattr(self.env, "__name__", self.env))
        if getattr(self.env, "vector_entry_point", None) is None:
            raise ShoalError(f"{name} has no vector version of its own; leave out vector=True")
        kwargs = dict(self.env_kwargs)
        if self.time_limit is not None:
            kwargs["max_episode_steps"] = self.time_limit
        env = gymnasium.make_vec(self.env, num_envs=size, vectorization_mode="vector_entry_point", **kwargs)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise ShoalError(
                f"{name}: its vector version resets with {mode}; Shoal needs AutoresetMode.NEXT_STEP"
            )
        return env


def vector_spec(maker: VectorMaker) -> EnvSpec:
    """What an algorithm may know of one row. Raises ShoalError where the spaces are not plain arrays."""
    env = maker(1)
    try:
        observation = convert_space(env.single_observation_space)
        action = convert_space(env.single_action_space)
        if isinstance(zeros(observation), dict | tuple) or isinstance(zeros(action), dict | tuple):
            raise ShoalError(f"{maker.env.id}: vector versions with Dict or Tuple spaces are not supported")
        info = env.reset(seed=0)[1]
        if MASK in info:
            raise ShoalError(f"{maker.env.id}: action masks of vector versions are not supported")
        limit = maker.time_limit or maker.env.max_episode_steps
        return EnvSpec(id=maker.env.id, observation=observation, action=action, max_episode_steps=limit)
    finally:
        env.close()


class VectorGroup:
    """B rows of one vector environment as a `types.Group`; the arrays of a Step are reused by the next one.

    `lost` counts the rows that could not be rebuilt by `load`: all of them or none.
    """

    def __init__(self, maker: VectorMaker, spec: EnvSpec, seed: int, group: int, size: int) -> None:
        self.size = size
        self.lost = 0
        self._spec, self._group, self._seed = spec, group, seed
        self._env = maker(size)
        self._action = self._env.single_action_space
        self._journal = Journal(size, [(self._action.shape, compact_dtype(self._action))])
        self._obs = zeros(spec.observation, (size,))
        self._taken = whole(spec.observation)
        self._reward = np.zeros(size, np.float32)
        self._terminated = np.zeros(size, bool)
        self._first = np.zeros(size, bool)
        self._done = np.zeros(size, bool)
        self._row = Step(Observation(self._obs), self._reward, self._terminated, self._first)
        self._restarts = -1  # how often the whole group was seeded, less one
        self._hash = 0
        self._means = Means(self._spec)

    def current(self) -> Step:
        """The present row; resets the environments if none has begun."""
        if self._restarts < 0:
            self._restart(0)
        return self._row

    def _restart(self, number: int) -> None:
        self._restarts, self._hash = number, 0
        for index in range(self.size):
            self._journal.restart(index)
        try:
            observation, _ = self._env.reset(seed=seed_for(self._seed, "env", self._group, "vector", number))
        except Exception as error:
            raise self._failure("reset", error) from error
        none = np.zeros(self.size, bool)
        self._show(observation, np.zeros(self.size), none, none, True)

    def step(self, action: Any) -> Step:
        """One row on; rows whose episode ended are reset by the environment, their action ignored."""
        if self._restarts < 0:
            self.current()
        actions = sent(self._action, action)
        self._journal.record([actions])
        try:
            observation, reward, terminated, truncated, info = self._env.step(actions)
        except Exception as error:
            raise self._failure("step", error) from error
        self._show(observation, reward, terminated, truncated, self._done)
        if info:
            self._means.add({k: _mean(v, info.get(f"_{k}")) for k, v in info.items() if _numeric(k, v)})
        if not (np.isfinite(self._reward).all() and _finite(self._obs)):
            raise EnvError(f"{self._name()} gave a reward or an observation that is not finite")
        return self._row

    def _show(self, observation: Any, reward: Any, terminated: Any, truncated: Any, first: Any) -> None:
        # NumPy would spread one number, or one row, over all of them.
        for given, what, wanted in (
            (observation, "an observation", self._obs.shape),
            (reward, "a reward", (self.size,)),
            (terminated, "terminated", (self.size,)),
            (truncated, "truncated", (self.size,)),
        ):
            if np.shape(given) != wanted:
                raise EnvError(f"{self._name()} showed {what} of shape {np.shape(given)}, not {wanted}")
        try:
            self._obs[...] = self._taken(observation)
        except ValueError as error:
            raise EnvError(
                f"{self._name()} showed what its observation space cannot hold: {error}"
            ) from error
        self._reward[...] = reward
        self._terminated[...] = terminated
        self._first[...] = first
        np.logical_or(terminated, truncated, out=self._done)
        for array in (self._obs, self._reward, self._done):
            self._hash = zlib.crc32(memory_of(array), self._hash)

    def _name(self) -> str:
        return f"{self._spec.id} (group {self._group}, all {self.size} rows, step {self._journal.end})"

    def _failure(self, doing: str, error: Exception) -> EnvError:
        return EnvError(f"{self._name()} raised {told(error)} in {doing}")

    def info(self) -> Mapping[str, float]:
        """Means of the numeric arrays in `info` since the last call."""
        means, self._means = self._means, Means(self._spec)
        return means.result()

    def save(self) -> dict[str, Any]:
        """Every action since the group was seeded, and a checksum."""
        self.current()
        return {
            "restarts": np.array(self._restarts, np.int64),
            "hash": np.array(self._hash, np.uint32),
            "lost": np.array(self.lost, np.int64),
            "journal": self._journal.save(),
        }

    def load(self, saved: Any) -> None:
        """Rebuild by replay; where it comes out different, warn and seed the whole group anew."""
        journal = Journal(self.size, [(log.shape[2:], log.dtype) for log in self._journal.logs])
        journal.load(saved["journal"])
        played = journal.everything()[0]
        self.lost = int(saved["lost"])
        self._restart(int(saved["restarts"]))
        for action in played:
            self.step(action)
        self._means = Means(self._spec)
        if self._hash != int(saved["hash"]):
            warnings.warn(
                f"{self._name()} could not be rebuilt: its replay differs; all rows begin anew",
                RuntimeWarning,
                stacklevel=2,
            )
            self.lost += self.size
            self._restart(self._restarts + 1)

    def render(self, index: int = 0) -> Any:
        """What row `index` renders."""
        frames = self._env.render()
        return None if frames is None else frames[index]

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _numeric(name: str, value: Any) -> bool:
    return not name.startswith("_") and isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _mean(value: np.ndarray, there: Any) -> Any:
    """Over the rows that have the number: Gymnasium marks them in an array of the name with "_" before."""
    value = value if there is None else value[there]
    return np.mean(value) if value.size else None
