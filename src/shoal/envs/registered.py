"""From a Gymnasium id, a class or a function to what makes the environment, or to the nearest id."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from contextlib import suppress
from operator import attrgetter
from typing import Any

from shoal.envs.names import JAX_ENVS
from shoal.errors import ShoalError


def gymnasium_target(env: Any) -> Any:
    """A registered Gymnasium specification or a callable that makes an environment."""
    import gymnasium
    from gymnasium.envs.registration import EnvSpec as RegisteredSpec

    importlib.import_module("shoal.envs.gymnasium")  # registers Shoal's own
    if isinstance(env, str):
        env = _registered(env)
    if isinstance(env, RegisteredSpec) or callable(env):
        return env
    if isinstance(env, gymnasium.Env):
        raise ShoalError(
            f"env is one {type(env).__name__} instance, but each environment of a group needs its own: "
            "give the class or a function that makes one"
        )
    raise ShoalError(f"env must be an id, a class, a function or a JaxEnv, not {type(env).__name__}")


def _registered(name: str) -> Any:
    import gymnasium

    registry = gymnasium.registry
    bare = name
    if ":" in name:
        module, _, bare = name.partition(":")
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise ShoalError(f"cannot import {module!r} of the environment {name!r}: {error}") from error
        if bare not in registry:
            with suppress(AttributeError):
                return attrgetter(bare)(found)
    elif name not in registry and importlib.util.find_spec("ale_py"):
        gymnasium.register_envs(importlib.import_module("ale_py"))
    if bare in registry:
        return registry[bare]
    if name.startswith("ALE/") and not importlib.util.find_spec("ale_py"):
        raise ShoalError(f"{name} needs a package that is not installed: pip install 'shoal[atari]'")
    raise ShoalError(f"unknown environment {name!r}; {_nearest(bare)}")


def _nearest(name: str) -> str:
    import gymnasium

    names = [*gymnasium.registry, *(f"jax:{n}" for n in JAX_ENVS)]
    by_letters = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=0.6)
    if near:
        return f"did you mean {by_letters[near[0]]!r}?"
    return "known are Gymnasium's ids (gymnasium.pprint_registry()), module:Name, jax:Name and gymnax:Name"
