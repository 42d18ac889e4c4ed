"""Environments of gymnax (Lange 2022, "gymnax: A JAX-based reinforcement learning environment library").

gymnax reports one `done` that also says where its time limit is reached. Here a step is asked twice for it,
once with the limit as it is and once with a limit far away: what ends the episode then is a termination, what
ends it only under the true limit a truncation. The compiler shares all the rest between the two.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal import spaces
from shoal.errors import ShoalError, did_you_mean
from shoal.keys import Key
from shoal.types import EnvSpec, Observation

_LIMIT = "max_steps_in_episode"
_NEVER = 2**30


@dataclass(frozen=True, eq=False)
class GymnaxEnv:
    """A gymnax environment and its parameters as a `types.JaxEnv`."""

    spec: EnvSpec
    env: Any
    params: Any

    def reset(self, key: Key) -> tuple[Any, Observation]:
        """A new episode."""
        obs, state = self.env.reset_env(_typed(key), self.params)
        return state, Observation(obs)

    def step(self, state: Any, action: Any, key: Key) -> tuple[Any, Observation, Any, Any, Any]:
        """One step, without gymnax's own reset."""
        obs, new, reward, done, _ = self.env.step_env(_typed(key), state, action, self.params)
        limit = getattr(self.params, _LIMIT)
        endless = self.params.replace(**{_LIMIT: type(limit)(_NEVER)})
        terminated = self.env.step_env(_typed(key), state, action, endless)[3]
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        return new, Observation(obs), reward, terminated, jnp.logical_and(done, ~terminated)


def _typed(key: Key) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")


def make(name: str, settings: dict[str, Any], time_limit: int | None = None) -> GymnaxEnv:
    """The gymnax environment of this id; `settings` are fields of its parameters or arguments of its class.

    Raises ShoalError for an unknown id or setting, or where gymnax cannot be imported.
    """
    try:
        import gymnax
    except ImportError as error:
        raise ShoalError(
            f"gymnax:{name} needs {error.name}, which is not installed: pip install 'shoal[jax-envs]'"
        ) from error
    if name not in gymnax.registered_envs:
        known = [f"gymnax:{n}" for n in gymnax.registered_envs]
        raise ShoalError(f"unknown environment 'gymnax:{name}'; {did_you_mean(f'gymnax:{name}', known)}")
    make_env: Any = gymnax.make
    fields = {f.name for f in dataclasses.fields(make_env(name)[1])} if settings else set()
    try:
        env, params = make_env(name, **{k: v for k, v in settings.items() if k not in fields})
    except TypeError as error:
        raise ShoalError(
            f"gymnax:{name} does not take these env_kwargs ({', '.join(settings)}): {error}"
        ) from error
    changed = {k: v for k, v in settings.items() if k in fields}
    if time_limit is not None:
        changed[_LIMIT] = time_limit
    params = params.replace(**changed) if changed else params
    shown = jax.eval_shape(
        lambda key: env.reset_env(_typed(key), params)[0], jax.ShapeDtypeStruct((2,), np.uint32)
    )
    spec = EnvSpec(
        id=f"gymnax:{name}",
        observation=_space(env.observation_space(params), np.dtype(shown.dtype)),
        action=_space(env.action_space(params), np.dtype(np.float32)),
        max_episode_steps=int(getattr(params, _LIMIT)),
    )
    return GymnaxEnv(spec, env, params)


def _space(space: Any, dtype: np.dtype) -> spaces.Space:
    """A gymnax Discrete or Box as plain data; a box has the dtype that the environment really shows."""
    if type(space).__name__ == "Discrete":
        return spaces.Discrete(int(space.n))
    if type(space).__name__ != "Box":
        raise ShoalError(f"gymnax's {type(space).__name__} space is not supported")
    low, high = (
        np.broadcast_to(np.asarray(b, np.float64), space.shape).reshape(-1) for b in (space.low, space.high)
    )
    return spaces.Box(tuple(space.shape), _bound(low), _bound(high), str(dtype))


def _bound(flat: np.ndarray) -> float | tuple[float, ...]:
    flat = np.where(np.abs(flat) >= np.finfo(np.float32).max, np.copysign(np.inf, flat), flat)  # "no bound"
    return float(flat[0]) if (flat == flat[0]).all() else tuple(flat.tolist())
