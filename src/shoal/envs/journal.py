"""Environments saved as what was done to them: the episode's seed and the actions since its reset.

An environment is rebuilt by resetting it with the seed of its episode and sending the actions again. A
rolling checksum over observations and rewards says whether the rebuilt environment is the same one.

`probe` finds out by replay whether that holds for an environment:
    "journal"   an instance forgets everything at `reset(seed=...)`
    "fresh"     an episode depends on earlier ones of the same instance (BipedalWalker-v3), so every
                episode gets a new instance
    "none"      it does not repeat itself at all: it can be trained on, but not rebuilt
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shoal.envs.rows import MASK
from shoal.errors import ShoalError

MODES = ("journal", "fresh", "none")


def checksum(before: int, reward: float, row: Sequence[memoryview]) -> int:
    """The rolling checksum after one more row: CRC-32 of its bytes, begun with the former and the reward."""
    value = before ^ (hash(reward) & 0xFFFFFFFF)
    for part in row:
        value = zlib.crc32(part, value)
    return value


class Journal:
    """The actions sent to B environments since each one's present episode began.

    One log for all of them, [L, B, ...] for each leaf of the action, in the smallest dtype; begin[i] is the
    row of the log where environment i's episode begins. Rows that no episode needs are dropped as it fills.
    """

    def __init__(
        self, size: int, leaves: Sequence[tuple[tuple[int, ...], np.dtype]], capacity: int = 256
    ) -> None:
        self.begin = np.zeros(size, np.int64)
        self.end = 0
        self.logs = [np.zeros((capacity, size, *shape), dtype) for shape, dtype in leaves]
        self._capacity = capacity

    def record(self, action: Sequence[np.ndarray]) -> None:
        """Append one row: the leaves of an action, [B, ...] each."""
        if self.end == self._capacity:
            self._make_room()
        if len(action) == 1:
            self.logs[0][self.end] = action[0]
        else:
            for log, leaf in zip(self.logs, action, strict=True):
                log[self.end] = leaf
        self.end += 1

    def restart(self, index: int) -> None:
        """Environment `index` begins a new episode: what was sent to it before is not needed any more."""
        self.begin[index] = self.end

    def actions(self, index: int) -> list[np.ndarray]:
        """The leaves [n, ...] of the n actions since environment `index` began its episode."""
        return [log[self.begin[index] : self.end, index] for log in self.logs]

    def everything(self) -> list[np.ndarray]:
        """The leaves [n, B, ...] of all the rows that some environment needs."""
        return [log[self.begin.min() : self.end].copy() for log in self.logs]

    def _make_room(self) -> None:
        base = int(self.begin.min())
        if base < self._capacity // 2:
            self._capacity *= 2
            self.logs = [np.concatenate([log, np.zeros_like(log)]) for log in self.logs]
        for log in self.logs:
            log[: self.end - base] = log[base : self.end].copy()
        self.begin -= base
        self.end -= base

    def save(self) -> dict[str, Any]:
        """{"begin": int64 [B], "actions": {"0": [L, B, ...], ...}}: copies."""
        base = int(self.begin.min())
        actions = {str(k): log[base : self.end].copy() for k, log in enumerate(self.logs)}
        return {"begin": self.begin - base, "actions": actions}

    def load(self, saved: dict[str, Any]) -> None:
        """Take over what `save` gave. Raises ShoalError where it is of another action space or size."""
        kept = [np.asarray(saved["actions"][name]) for name in sorted(saved["actions"], key=int)]
        there, here = ([f"{log.dtype}{list(log.shape[1:])}" for log in logs] for logs in (kept, self.logs))
        if there != here:
            raise ShoalError(
                f"the saved actions are {', '.join(there)}, but this group's are {', '.join(here)}: "
                "another environment or another number of environments"
            )
        self.end = len(kept[0])
        self._capacity = max(256, 2 * self.end)
        self.logs = [
            np.concatenate([log, np.zeros((self._capacity - self.end, *log.shape[1:]), log.dtype)])
            for log in kept
        ]
        self.begin = np.asarray(saved["begin"], np.int64).copy()


def probe(make: Callable[[], Any], *, heavy: bool = False) -> str:
    """Which mode an environment needs: "journal", "fresh" or "none".

    One episode of a new instance is the reference. It is replayed on an instance that has lived through other
    episodes of varying length in between, and on further new instances where that shows a difference. The
    bound is on steps, not on seconds, so that the answer is the same on a busy machine: at most 10 replays of
    60 steps, or for `heavy` (image) observations 2 of 15.
    """
    replays, length = (2, 15) if heavy else (10, 60)
    env = make()
    try:
        reference, sent = _play(env, 0, length)
        for k in range(replays):
            _play(env, k + 1, 1 + (k * 23) % length)
            if _replay(env, 0, sent) != reference:
                break
        else:
            return "journal"
    except Exception:
        return "journal"  # it fails on its own: the run will say where, with the environment's traceback
    finally:
        env.close()
    for _ in range(2):
        again = make()
        try:
            if _replay(again, 0, sent) != reference:
                return "none"
        finally:
            again.close()
    return "fresh"


def _play(env: Any, seed: int, length: int) -> tuple[list[int], list[Any]]:
    """An episode of random allowed actions, `length` steps at most: (checksums of its rows, actions)."""
    env.action_space.seed(seed)
    sent: list[Any] = []

    def choose(observation: Any, info: Any) -> Any:
        mask = observation.get(MASK) if isinstance(observation, dict) else None
        mask = info.get(MASK, mask)
        if mask is not None and not isinstance(mask, tuple):
            mask = np.asarray(mask, np.int8)
        sent.append(env.action_space.sample(mask))
        return sent[-1]

    return _trace(env, seed, [choose] * length), sent


def _replay(env: Any, seed: int, actions: Sequence[Any]) -> list[int] | None:
    """The checksums of an episode of given actions; None where the environment does not take them again."""
    try:
        return _trace(env, seed, [lambda _, __, a=action: a for action in actions])
    except Exception:
        return None


def _trace(env: Any, seed: int, choices: Sequence[Callable[[Any, Any], Any]]) -> list[int]:
    """The checksums of an episode's rows, up to its end or the last choice (of observation and info)."""
    observation, info = env.reset(seed=seed)
    trace = [_digest(observation, 0)]
    for choose in choices:
        observation, reward, terminated, truncated, info = env.step(choose(observation, info))
        # As text, since NaN is not equal to itself.
        flags = (repr(float(reward)), bool(terminated), bool(truncated))
        trace.append(_digest(observation, hash(flags) & 0xFFFFFFFF))
        if terminated or truncated:
            break
    return trace


def _digest(observation: Any, value: int) -> int:
    if isinstance(observation, dict):
        observation = tuple(observation[name] for name in sorted(observation))
    if isinstance(observation, tuple):
        for part in observation:
            value = _digest(part, value)
        return value
    return zlib.crc32(np.asarray(observation).tobytes(), value)
