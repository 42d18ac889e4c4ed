"""Whether an environment shows stacked frames, so that a replay may store each frame once."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import (
    FrameStackObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    TimeLimit,
)

# Layers that hand the observation on as it is.
_TRANSPARENT = (
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    TimeLimit,
    gymnasium.RewardWrapper,
    gymnasium.ActionWrapper,
)


def frames_of(env: Any) -> int:
    """The frames that `EnvSpec.frames` speaks of, 1 where observations are not stacked in that way.

    Only Gymnasium's own FrameStackObservation is known to be, as the outermost wrapper that changes the
    observation, with padding_type="reset" (its default) and observations that are one array.
    """
    while isinstance(env, gymnasium.Wrapper) and not isinstance(env, FrameStackObservation):
        if not isinstance(env, _TRANSPARENT):
            return 1
        env = env.env
    if not isinstance(env, FrameStackObservation) or env.padding_type != "reset":
        return 1
    return env.stack_size if isinstance(env.observation_space, gymnasium.spaces.Box) else 1
