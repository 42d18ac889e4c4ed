"""How one Gymnasium environment is made: what a user named, the wrappers around it, and no more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as RegisteredSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from shoal.envs.form import form
from shoal.errors import ShoalError


@dataclass(frozen=True, kw_only=True)
class Maker:
    """How to make one environment: a registered specification or a callable, and what to put around it.

    Calling it gives (environment, time limit or None); the limit is to be kept by whoever steps it.
    """

    env: Any  # gymnasium EnvSpec, or a callable
    env_kwargs: Mapping[str, Any]
    wrappers: tuple[Callable[[Any], Any], ...] = ()
    time_limit: int | None = None

    def __call__(self) -> tuple[Any, int | None]:
        return self.wrap(self.bare())

    def bare(self) -> Any:
        """The environment alone."""
        if isinstance(self.env, RegisteredSpec):
            limit = self.time_limit
            return gymnasium.make(
                self.env, max_episode_steps=limit, disable_env_checker=True, **self.env_kwargs
            )
        return self.env(**self.env_kwargs)

    def wrap(self, env: Any) -> tuple[Any, int | None]:
        """With the time limit and the wrappers around it, less the outer layers that `lean` takes off."""
        if self.time_limit is not None and not isinstance(self.env, RegisteredSpec):
            env = _limited(env, self.time_limit)
        for wrapper in self.wrappers:
            env = wrapper(env)
            if not isinstance(env, gymnasium.Env):
                name = getattr(wrapper, "__name__", repr(wrapper))
                raise ShoalError(f"the wrapper {name} must give an environment, and gave {form(env)}")
        return lean(env)


def lean(env: Any) -> tuple[Any, int | None]:
    """(env without the outer layers that only check or count, the time limit that they counted).

    Only layers of exactly Gymnasium's own types are taken off; what lies beneath another wrapper stays.
    """
    limit = None
    while type(env) in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
        if type(env) is TimeLimit:
            limit = min(env._max_episode_steps, limit or sys.maxsize)
        env = env.env
    return env, limit


def _limited(env: Any, steps: int) -> Any:
    """`env` with this time limit in the place of the one that it has, or around it."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TimeLimit):
            layer._max_episode_steps = steps
            return env
        layer = layer.env
    return TimeLimit(env, steps)
