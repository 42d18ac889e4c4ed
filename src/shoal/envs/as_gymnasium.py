"""A JaxEnv as a `gymnasium.Env`: for tools that know Gymnasium, and to try it from both sides."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces as gym_spaces

from shoal import spaces
from shoal.errors import ShoalError
from shoal.keys import fold
from shoal.types import JaxEnv, Observation


def gymnasium_space(space: spaces.Space) -> gymnasium.Space:
    """The inverse of `envs.rows.convert_space`."""
    match space:
        case spaces.Box():
            low, high = space.bounds()
            if np.dtype(space.dtype).kind != "f":  # float32 would round large integers
                info = np.iinfo(space.dtype)
                low, high = np.clip(low, info.min, info.max), np.clip(high, info.min, info.max)
            return gym_spaces.Box(
                low.astype(space.dtype), high.astype(space.dtype), dtype=np.dtype(space.dtype)
            )
        case spaces.Discrete():
            return gym_spaces.Discrete(space.n, start=space.start, dtype=np.int32)
        case spaces.MultiDiscrete():
            start = np.asarray(space.start, np.int32) if space.start else None
            return gym_spaces.MultiDiscrete(np.asarray(space.nvec, np.int32), dtype=np.int32, start=start)
        case spaces.MultiBinary():
            return gym_spaces.MultiBinary(space.shape)
        case spaces.Tuple():
            return gym_spaces.Tuple([gymnasium_space(s) for s in space.spaces])
        case spaces.Dict():
            return gym_spaces.Dict({name: gymnasium_space(s) for name, s in space.spaces})


@functools.lru_cache(maxsize=32)
def _compiled(env: JaxEnv) -> tuple[Any, Any]:
    """(reset, step), jitted once for all instances of equal environments."""
    return jax.jit(env.reset), jax.jit(env.step)


class AsGymnasium(gymnasium.Env):
    """Steps one JaxEnv on the host, a jitted call for each step. Everything random comes from `np_random`.

    An action mask is given in info["action_mask"], flat; a critic's observation makes the observation a dict
    of "policy" and "critic", as `shoal.envs.resolve` reads it. Raises ShoalError for masks of other than
    Discrete actions, whose form in Gymnasium is another.
    """

    def __init__(self, env: JaxEnv) -> None:
        spec = env.spec
        if spec.masked and not isinstance(spec.action, spaces.Discrete):
            raise ShoalError(f"{spec.id}: only masks of Discrete actions have a Gymnasium form here")
        policy = gymnasium_space(spec.observation)
        self.observation_space = (
            policy
            if spec.critic is None
            else gym_spaces.Dict({"policy": policy, "critic": gymnasium_space(spec.critic)})
        )
        self.action_space = gymnasium_space(spec.action)
        try:
            self._reset, self._step = _compiled(env)
        except TypeError:  # not hashable
            self._reset, self._step = _compiled.__wrapped__(env)
        self._key = np.zeros(2, np.uint32)
        self._state: Any = None
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        self._key = self.np_random.integers(0, 2**32, 2, np.uint32)
        self._t = 0
        self._state, obs = self._reset(fold(self._key, 0))
        return _shown(obs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step."""
        self._t += 1
        action = jax.tree.map(np.asarray, dict(action) if isinstance(action, dict) else action)
        self._state, obs, reward, terminated, truncated = self._step(
            self._state, action, fold(self._key, self._t)
        )
        shown, info = _shown(obs)
        return shown, float(reward), bool(terminated), bool(truncated), info


def _shown(obs: Observation) -> tuple[Any, dict[str, Any]]:
    host = jax.tree.map(lambda x: np.asarray(x) if np.ndim(x) else np.asarray(x)[()], obs)
    info = {} if host.mask is None else {"action_mask": host.mask.astype(np.int8)}
    return (host.policy if host.critic is None else {"policy": host.policy, "critic": host.critic}), info
