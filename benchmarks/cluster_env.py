"""Environments whose time is known: what a cluster costs is what comes on top of it."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np

EPISODE = 50


class Sleeping(gymnasium.Env[np.ndarray, int]):
    """Every step sleeps `seconds` and shows its number in the episode, `width` times."""

    def __init__(self, seconds: float = 1e-3, width: int = 4, dtype: str = "float32") -> None:
        self._seconds, self._t = seconds, 0
        shape = (width,) if dtype == "float32" else (84, 84, width)
        low, high = (0.0, 1.0) if dtype == "float32" else (0, 255)
        self.observation_space = gymnasium.spaces.Box(low, high, shape, np.dtype(dtype).type)  # pyright: ignore[reportArgumentType]
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._seconds:
            time.sleep(self._seconds)
        self._t += 1
        return self._seen(), float(action), self._t == EPISODE, False, {}

    def _seen(self) -> np.ndarray:
        space = self.observation_space
        assert space.shape is not None
        part = self._t if space.dtype == np.uint8 else self._t / EPISODE
        return np.full(space.shape, part, space.dtype)
