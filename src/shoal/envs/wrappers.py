"""Wrappers to name in `wrappers=`: Atari's preprocessing and frame stacks, through Gymnasium's own.

resolve("ALE/Pong-v5", env_kwargs={"frameskip": 1}, wrappers=["shoal.envs.wrappers:atari"])
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from shoal.errors import ShoalError


def atari(env: Any, *, frames: int = 4, **preprocessing: Any) -> Any:
    """Grey 84 x 84 pictures of every fourth frame, `frames` of them stacked: uint8 [frames, 84, 84].

    As Machado et al. (2018, "Revisiting the Arcade Learning Environment") recommend and Gymnasium's
    AtariPreprocessing does it; `preprocessing` are its arguments (noop_max, frame_skip, screen_size,
    terminal_on_life_loss, ...). Raises ShoalError where the environment skips frames itself already, or
    where OpenCV is missing.
    """
    skip = preprocessing.get("frame_skip", 4)
    if skip > 1 and getattr(env.unwrapped, "_frameskip", None) != 1:
        raise ShoalError(
            "Atari's preprocessing skips frames itself: make the environment with env_kwargs={'frameskip': 1}"
        )
    try:
        env = AtariPreprocessing(env, **preprocessing)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ShoalError("Atari's preprocessing needs OpenCV: pip install 'shoal[atari]'") from error
    return frame_stack(env, frames)


def frame_stack(env: Any, frames: int = 4) -> Any:
    """The last `frames` observations, the newest last, on a new first axis; a reset repeats its own."""
    return FrameStackObservation(env, frames)
