"""Environments that can be built in the driver's process, and not, or not all of them, in any other."""

from __future__ import annotations

import os

import gymnasium as gym

DRIVER = "SHOAL_TESTS_DRIVER"  # the number of the process where all is well
_made = 0


class Nowhere(gym.Wrapper):
    """Cannot be built in another process."""

    def __init__(self) -> None:
        if os.environ.get(DRIVER) != str(os.getpid()):
            raise RuntimeError("there is no display here\nand no second line is wanted")
        super().__init__(gym.make("CartPole-v1"))


class Once(gym.Wrapper):
    """Can be built once in another process: to be looked at, but not to be trained in."""

    def __init__(self) -> None:
        global _made
        _made += 1
        if _made > 1 and os.environ.get(DRIVER) != str(os.getpid()):
            raise RuntimeError("there is a licence for one")
        super().__init__(gym.make("CartPole-v1"))
