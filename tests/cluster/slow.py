"""An environment whose steps take a millisecond, so that runners are at work when something happens."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym


class Slow(gym.Wrapper):
    """Every step sleeps."""

    def step(self, action: Any) -> Any:
        time.sleep(0.001)
        return self.env.step(action)
