"""Gymnasium environments as a host group: B instances stepped in one lean loop in this process.

    action [B, ...] -> journal -> env.step for each -> rows of preallocated arrays -> Step

Episodes restart on the step after they ended, each with a seed of its own: seed, "env", group, number in the
group, episode. The layers that `gymnasium.make` adds for people (order enforcing, the passive checker) are
left out, and an outermost TimeLimit is counted here, with the same meaning.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from shoal.envs.errors import EnvError
from shoal.envs.form import check_observation, check_reset, check_step
from shoal.envs.journal import MODES, Journal, checksum
from shoal.envs.means import Means
from shoal.envs.rows import MASK, Rows, actions_of, layout_of
from shoal.errors import ShoalError, told
from shoal.keys import seed_for
from shoal.types import EnvSpec, Step

_LARGEST = float(np.finfo(np.float32).max)


class GymnasiumGroup:
    """B Gymnasium environments as a `types.Group`.

    make: gives one environment without outer checks, and its time limit. mode: see `journal`. The arrays of
    a Step are reused by the next one. `lost` counts environments that could not be rebuilt by `load`.
    """

    def __init__(
        self,
        make: Callable[[], tuple[Any, int | None]],
        spec: EnvSpec,
        seed: int,
        group: int,
        size: int,
        mode: str,
    ) -> None:
        if mode not in MODES:
            raise ShoalError(f"unknown journal mode {mode!r}; known are {', '.join(MODES)}")
        self.size = size
        self.lost = 0
        self.envs: list[Any] = []
        self._make, self._spec, self._seed, self._group, self._mode = make, spec, seed, group, mode
        limits = []
        for i in range(size):
            try:
                env, limit = make()
            except Exception as error:
                raise EnvError(
                    f"{spec.id} (group {group}, environment {i}) raised {told(error)} when it was made"
                ) from error
            self.envs.append(env)
            limits.append(limit)
        self._limit = limits[0] or sys.maxsize
        self._steps = [env.step for env in self.envs]
        env = self.envs[0]
        in_info = spec.masked and not _mask_in_observation(env.observation_space)
        self._rows = Rows(layout_of(env.observation_space, env.action_space, in_info), env.action_space, size)
        self._mask_in_info = in_info
        self._actions = actions_of(env.action_space)
        self._journal = Journal(size, self._actions.leaves)
        self._reward = np.zeros(size, np.float32)
        self._terminated = np.zeros(size, bool)
        self._first = np.zeros(size, bool)
        self._row = Step(self._rows.observation, self._reward, self._terminated, self._first)
        self._used = [False] * size
        self._episode = [-1] * size
        self._now = 0  # group steps; environment i's episode began at _began[i] and is cut at _deadline[i]
        self._began = [0] * size
        self._deadline = [self._limit] * size
        self._ended = [True] * size
        self._hash = [0] * size
        self._flagged = True  # whether `terminated` or `first` holds a true entry
        self._means = Means(self._spec)

    def current(self) -> Step:
        """The present row; resets the environments if none has begun."""
        if self._episode[0] < 0:
            for i in range(self.size):
                self._restart(i, 0)
            self._check(0.0)
        return self._row

    def step(self, action: Any) -> Step:
        """One row on: `action` [B, ...] as the specification's action space says."""
        if self._episode[0] < 0:
            self.current()
        leaves = self._actions.flatten(action)
        self._journal.record(leaves)
        self._now += 1
        if self._flagged:
            self._terminated.fill(False)
            self._first.fill(False)
            self._flagged = False
        total = self._advance(self._actions.split(leaves))
        self._check(total)
        return self._row

    def _advance(self, actions: list[Any]) -> float:
        """Step or reset every environment; returns the sum of the rewards. The hot loop."""
        steps, ended, hashes, now, deadline = self._steps, self._ended, self._hash, self._now, self._deadline
        rewards, views, row_bytes, write = self._reward, self._rows.views, self._rows.bytes, self._rows.write
        mask_in_info, means, crc32 = self._mask_in_info, self._means, zlib.crc32
        total = 0.0
        for i, action in enumerate(actions):
            if ended[i]:
                self._restart(i, self._episode[i] + 1)
                continue
            try:
                shown = steps[i](action)
            except Exception as error:
                raise self._failure(i, "step", error) from error
            try:
                observation, reward, terminated, truncated, info = shown
                reward = float(reward)
                if views is not None:
                    views[i][...] = observation
                    hashes[i] = crc32(row_bytes[i][0], hashes[i] ^ (hash(reward) & 0xFFFFFFFF))
                else:
                    write(i, observation)
                    if mask_in_info:
                        self._write_mask(i, info, terminated or truncated or now >= deadline[i])
                    hashes[i] = checksum(hashes[i], reward, row_bytes[i])
            except Exception as error:
                raise self._misfit(i, "step", shown, error) from error
            rewards[i] = reward
            total += reward
            if terminated:
                self._terminated[i] = self._flagged = ended[i] = True
            elif truncated or now >= deadline[i]:
                ended[i] = True
            if info:
                means.add(info)
        return total

    def _restart(self, i: int, episode: int) -> None:
        """Environment i begins this episode; its row becomes the one that the reset shows."""
        self._episode[i], self._ended[i] = episode, False
        self._began[i], self._deadline[i] = self._now, self._now + self._limit
        seed = seed_for(self._seed, "env", self._group, i, episode)
        try:
            if self._mode == "fresh" and self._used[i]:
                self.envs[i].close()
                self.envs[i], _ = self._make()
                self._steps[i] = self.envs[i].step
            self._used[i] = True
            shown = self.envs[i].reset(seed=seed)
        except Exception as error:
            raise self._failure(i, "reset", error) from error
        try:
            observation, info = shown
            self._rows.write(i, observation)
            if self._mask_in_info:
                self._write_mask(i, info, False)
        except Exception as error:
            raise self._misfit(i, "reset", shown, error) from error
        self._hash[i] = checksum(0, 0.0, self._rows.bytes[i])
        self._journal.restart(i)
        self._reward[i] = 0.0
        self._terminated[i] = False
        self._first[i] = self._flagged = True

    def _write_mask(self, i: int, info: Mapping[str, Any], ends: bool) -> None:
        """The mask in `info` to row i. The last row of an episode may lack it: nothing is sent after it."""
        mask = info.get(MASK)
        if mask is None and not ends:
            raise ValueError(f"info holds no {MASK!r}, which must be on every row")
        self._rows.write_mask(i, mask)

    def _check(self, total: float) -> None:
        """Raise EnvError where a reward or an observation is not finite."""
        if not (-_LARGEST < total < _LARGEST and self._rows.finite()):
            self._find_bad()

    def _find_bad(self) -> None:
        for i in range(self.size):
            if not np.isfinite(self._reward[i]):
                raise EnvError(
                    f"{self._name(i)} gave the reward {self._reward[i]}; rewards must be finite float32"
                )
            for part in self._rows.bytes[i]:
                row = np.asarray(part)
                if row.dtype.kind == "f" and not np.isfinite(row).all():
                    bad = row[~np.isfinite(row)][0]
                    raise EnvError(
                        f"{self._name(i)} showed {bad} in its observation; a policy can learn from finite "
                        "numbers only (a wrapper can clip or replace them)"
                    )

    def _name(self, i: int) -> str:
        episode, step = self._episode[i], self._now - self._began[i]
        return f"{self._spec.id} (group {self._group}, environment {i}, episode {episode}, step {step})"

    def _failure(self, i: int, doing: str, error: Exception) -> EnvError:
        return EnvError(f"{self._name(i)} raised {told(error)} in {doing}")

    def _misfit(self, i: int, doing: str, shown: Any, error: Exception) -> EnvError:
        """What `reset` or `step` gave could not be taken: in what it has not its form."""
        name = self._name(i)
        try:
            (check_reset if doing == "reset" else check_step)(shown, name)
            check_observation(
                self.envs[i].observation_space, shown[0], f"{name}: the observation", exactly=False
            )
        except ShoalError as fault:
            return EnvError(str(fault))
        return EnvError(f"{name}: what {doing} gave cannot be taken: {told(error)}")

    def info(self) -> Mapping[str, float]:
        """Means of the numbers in `info` over the steps since the last call, by name."""
        means, self._means = self._means, Means(self._spec)
        return means.result()

    def save(self) -> dict[str, Any]:
        """The group's state: episode and age of each environment, actions since its reset, checksums.

        Numbers of `info` that were not asked for yet are not part of it.
        """
        self.current()
        return {
            "episode": np.array(self._episode, np.int64),
            "age": self._now - np.array(self._began, np.int64),
            "ended": np.array(self._ended, bool),
            "hash": np.array(self._hash, np.uint32),
            "lost": np.array(self.lost, np.int64),
            "journal": self._journal.save(),
        }

    def load(self, saved: Any) -> None:
        """Rebuild every environment by replay.

        One that comes out different is named in a warning, begins a new episode, and is counted in `lost`.
        """
        if len(saved["episode"]) != self.size:
            raise ShoalError(
                f"the saved group has {len(saved['episode'])} environments, this one has {self.size}"
            )
        journal = Journal(self.size, self._actions.leaves)
        journal.load(saved["journal"])
        self.lost = int(saved["lost"])
        self._means = Means(self._spec)
        self._terminated.fill(False)
        self._first.fill(False)
        self._now = journal.end
        failures = {i: self._rebuild(i, saved, journal) for i in range(self.size)}
        self._journal = journal
        for i, failure in failures.items():
            if failure:
                self.lost += 1
                warnings.warn(
                    f"{self._name(i)} could not be rebuilt: {failure}; it begins a new episode instead",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._restart(i, int(saved["episode"][i]) + 1)
        self._flagged = True
        self._check(0.0)

    def _rebuild(self, i: int, saved: Any, journal: Journal) -> str:
        """Replay environment i's episode. Returns "" or why the result is not what was saved."""
        age, ended, expected = int(saved["age"][i]), bool(saved["ended"][i]), int(saved["hash"][i])
        if self._mode != "none":
            self._restart(i, int(saved["episode"][i]))
        self._episode[i], self._began[i] = int(saved["episode"][i]), self._now - age
        self._deadline[i] = self._began[i] + self._limit
        self._first[i] = age == 0
        if self._mode == "none":
            return "it does not repeat itself when reset with the same seed"
        actions = self._actions.split(journal.actions(i))
        for k, action in enumerate(actions, 1):
            if self._ended[i]:
                return f"its episode ended after {k - 1} of {age} steps"
            try:
                observation, reward, terminated, truncated, info = self._steps[i](action)
                reward = float(reward)
                self._rows.write(i, observation)
                if self._mask_in_info:
                    self._write_mask(i, info, terminated or truncated or k >= self._limit)
            except Exception as error:
                return f"it raised {told(error)} in step {k}"
            self._hash[i] = checksum(self._hash[i], reward, self._rows.bytes[i])
            self._reward[i] = reward
            self._terminated[i] = bool(terminated)
            self._ended[i] = bool(terminated or truncated or k >= self._limit)
        if self._hash[i] != expected or self._ended[i] != ended or len(actions) != age:
            return "its replay differs from what was saved"
        return ""

    def render(self, index: int = 0) -> Any:
        """What environment `index` renders (made with env_kwargs={"render_mode": ...})."""
        return self.envs[index].render()

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()


def _mask_in_observation(space: Any) -> bool:
    return isinstance(space, gymnasium.spaces.Dict) and MASK in space.spaces


if "shoal/GridWorld-v0" not in gymnasium.registry:
    gymnasium.register("shoal/GridWorld-v0", entry_point="shoal.envs.gridworld_gym:GridWorldEnv")
