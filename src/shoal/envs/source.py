"""From what a user names to where environments come from: `resolve`.

"CartPole-v1", "package.module:Env-v0"     Gymnasium's registry
"package.module:Class", a class, a function  anything that makes a Gymnasium environment or a JaxEnv
"jax:CartPole-v1", "jax:GridWorld"         environments written in JAX that Shoal brings
"gymnax:Acrobot-v1"                        those of gymnax
a JaxEnv                                   itself
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shoal.errors import ShoalError
from shoal.types import EnvSpec, Group, JaxEnv

JAX_ENVS = {"CartPole-v1": "shoal.envs.cartpole:CartPole", "GridWorld": "shoal.envs.gridworld:GridWorld"}
GRIDWORLD_ID = "shoal/GridWorld-v0"
_EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari", "atari": "atari"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where environments come from.

    make_group(seed, group number, B) gives a host group; jax_env is the environment itself where it is written
    in JAX. journal: how a group is saved ("journal", "fresh", "none": see `journal`; "vector": one journal for
    all rows; "state": the whole state). reference: JSON-able keyword arguments of `resolve` that make the
    same source again (the journal mode found included), or None where something given is not importable.
    """

    spec: EnvSpec
    make_group: Callable[[int, int, int], Group]
    jax_env: JaxEnv | None
    reference: dict[str, Any] | None
    journal: str


def resolve(
    env: Any,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] = (),
    time_limit: int | None = None,
    vector: bool = False,
    journal: str = "auto",
) -> Source:
    """The source of the environments that `env` names.

    env: an id, a class or function (called with env_kwargs), or a JaxEnv. wrappers: callables env -> env, or
    "module:name" strings, applied in order around the environment. time_limit: steps, in the place of the
    registered limit. vector: use the environment's own vector version. journal: "auto" finds out by a short
    replay how the environment can be rebuilt; "journal", "fresh" or "none" say so.

    Raises ShoalError for an unknown name, a missing package, and arguments that do not fit together.
    """
    if time_limit is not None and (not isinstance(time_limit, int) or time_limit < 1):
        raise ShoalError(f"time_limit must be a whole number of steps of at least 1, not {time_limit!r}")
    kwargs = dict(env_kwargs or {})
    given = {
        "env": env,
        "env_kwargs": kwargs,
        "wrappers": list(wrappers),
        "time_limit": time_limit,
        "vector": vector,
    }
    made = _jax_env(env, kwargs)
    if made is not None:
        if wrappers or vector:
            what = "wrappers" if wrappers else "vector=True"
            raise ShoalError(f"{what} is for Gymnasium environments; {made.spec.id} is written in JAX")
        return _jax_source(made, time_limit, given)
    target = _gymnasium_target(env)
    layers = tuple(_wrapper(w) for w in wrappers)
    if vector:
        return _vector_source(target, kwargs, layers, time_limit, given)
    return _host_source(target, kwargs, layers, time_limit, journal, given)


# Gymnasium


def _gymnasium_target(env: Any) -> Any:
    """A registered Gymnasium specification or a callable that makes an environment."""
    import gymnasium

    import shoal.envs.gymnasium  # registers Shoal's own

    del shoal
    if isinstance(env, gymnasium.envs.registration.EnvSpec):
        return env
    if isinstance(env, str):
        return _registered(env)
    if callable(env):
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
        if bare not in registry and hasattr(found, bare):
            return getattr(found, bare)
    elif name not in registry and importlib.util.find_spec("ale_py"):
        gymnasium.register_envs(importlib.import_module("ale_py"))
    if bare in registry:
        return registry[bare]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.spec(bare)
    except gymnasium.error.Error:
        pass
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
    return "an id of Gymnasium's registry (gymnasium.pprint_registry() lists them), module:Name, jax:Name or gymnax:Name"


def _wrapper(wrapper: Any) -> Callable[[Any], Any]:
    if isinstance(wrapper, str):
        wrapper = _import(wrapper, "wrapper")
    if not callable(wrapper):
        raise ShoalError(f"a wrapper must be a callable env -> env or 'module:name', not {wrapper!r}")
    return wrapper


def _import(name: str, what: str) -> Any:
    module, colon, path = name.partition(":")
    if not colon:
        raise ShoalError(f"the {what} {name!r} should be written as 'module:name'")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ShoalError(f"cannot import the {what} {name!r}: {error}") from error
    return found


def _name(target: Any) -> str:
    return target.id if hasattr(target, "entry_point") else getattr(target, "__name__", type(target).__name__)


def _open(maker: Callable[[], Any], target: Any, kwargs: Mapping[str, Any]) -> Any:
    """What `maker` makes, with a missing package or a wrong argument told in one line."""
    import gymnasium

    name = _name(target)
    try:
        return maker()
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        entry = str(getattr(target, "entry_point", "") or getattr(target, "__module__", ""))
        extra = next((e for part, e in _EXTRAS.items() if part in entry), None)
        hint = f"pip install 'shoal[{extra}]'" if extra else str(error)
        raise ShoalError(f"{name} needs a package that is not installed: {hint}") from error
    except TypeError as error:
        if kwargs and "unexpected keyword argument" in str(error):
            raise ShoalError(
                f"{name} does not take these env_kwargs ({', '.join(kwargs)}): {error}"
            ) from error
        raise


def _host_source(
    target: Any,
    kwargs: dict[str, Any],
    layers: tuple[Any, ...],
    time_limit: int | None,
    journal: str,
    given: Any,
) -> Source:
    import gymnasium

    from shoal.envs.gymnasium import Maker
    from shoal.envs.journal import MODES, probe
    from shoal.envs.rows import MASK, layout_of

    if journal not in ("auto", *MODES):
        raise ShoalError(f"unknown journal mode {journal!r}; known are auto, {', '.join(MODES)}")
    maker = Maker(env=target, env_kwargs=kwargs, wrappers=layers, time_limit=time_limit)
    env, limit = _open(maker, target, kwargs)
    if isinstance(getattr(env, "spec", None), EnvSpec):  # a function that makes a JaxEnv
        env = _open(lambda: target(**kwargs), target, kwargs)
        return _jax_source(env, time_limit, given)
    if not isinstance(env, gymnasium.Env):
        raise ShoalError(
            f"{_name(target)} makes a {type(env).__name__}, which is not a gymnasium.Env or a JaxEnv"
        )
    try:
        observation, info = env.reset(seed=0)
        layout = layout_of(env.observation_space, env.action_space, MASK in info)
        _fits(env.observation_space, observation, _name(target))
        spec = EnvSpec(
            id=_name(target),
            observation=layout.policy,
            action=_action_space(env),
            critic=layout.critic,
            masked=bool(layout.mask_in),
            max_episode_steps=limit,
        )
    finally:
        env.close()
    if journal == "auto":
        journal = probe(lambda: maker()[0], heavy=_entries(env.observation_space) > 10_000)
        if journal == "none":
            warnings.warn(
                f"{spec.id} does not repeat itself when reset with the same seed: runs with it can be neither "
                "repeated nor resumed exactly (it should draw from self.np_random only)",
                RuntimeWarning,
                stacklevel=3,
            )
    return Source(
        spec=spec,
        make_group=partial(_host_group, maker, spec, journal),
        jax_env=_gridworld(target, kwargs, layers, time_limit),
        reference=_reference({**given, "journal": journal}),
        journal=journal,
    )


def _host_group(maker: Any, spec: EnvSpec, mode: str, seed: int, group: int, size: int) -> Group:
    from shoal.envs.gymnasium import GymnasiumGroup

    return GymnasiumGroup(maker, spec, seed, group, size, mode)


def _action_space(env: Any) -> Any:
    from shoal.envs.rows import convert_space

    return convert_space(env.action_space)


def _fits(space: Any, observation: Any, name: str) -> None:
    """Raise where the first observation has another shape than the space: NumPy would stretch it silently."""
    import numpy as np

    if hasattr(space, "spaces"):
        parts = space.spaces.items() if hasattr(space.spaces, "items") else enumerate(space.spaces)
        for key, part in parts:
            _fits(part, observation[key], name)
    elif np.shape(observation) != tuple(space.shape):
        raise ShoalError(
            f"{name} shows observations of shape {np.shape(observation)}, but its space says {space.shape}"
        )


def _entries(space: Any) -> int:
    import numpy as np

    if hasattr(space, "spaces"):
        parts = space.spaces.values() if hasattr(space.spaces, "values") else space.spaces
        return sum(_entries(part) for part in parts)
    return int(np.prod(space.shape))


def _gridworld(
    target: Any, kwargs: dict[str, Any], layers: tuple[Any, ...], time_limit: int | None
) -> JaxEnv | None:
    """The JAX face of `shoal/GridWorld-v0`, so that it can be compiled."""
    if getattr(target, "id", None) != GRIDWORLD_ID or layers:
        return None
    from shoal.envs.gridworld import GridWorld

    fields = {k: v for k, v in {**target.kwargs, **kwargs}.items() if k != "render_mode"}
    if time_limit is not None:
        fields["max_steps"] = min(time_limit, fields.get("max_steps") or time_limit)
    return GridWorld(**fields)


def _vector_source(
    target: Any, kwargs: dict[str, Any], layers: tuple[Any, ...], time_limit: int | None, given: Any
) -> Source:
    from shoal.envs.vector import VectorGroup, VectorMaker, vector_spec

    if layers:
        raise ShoalError("wrappers are for single environments; leave out vector=True to use them")
    maker = VectorMaker(env=target, env_kwargs=kwargs, time_limit=time_limit)
    spec = _open(lambda: vector_spec(maker), target, kwargs)
    return Source(
        spec=spec,
        make_group=partial(VectorGroup, maker, spec),
        jax_env=None,
        reference=_reference(given),
        journal="vector",
    )


# JAX


def _jax_env(env: Any, kwargs: dict[str, Any]) -> JaxEnv | None:
    """The JaxEnv that `env` is or names, or None."""
    if isinstance(getattr(env, "spec", None), EnvSpec):
        if kwargs:
            raise ShoalError(
                "env_kwargs are for an environment given by name, class or function; this one is made already"
            )
        return env
    if isinstance(env, str) and env.startswith("jax:"):
        name = env.removeprefix("jax:")
        if name not in JAX_ENVS:
            near = difflib.get_close_matches(name, JAX_ENVS, n=1, cutoff=0.5)
            hint = (
                f"did you mean 'jax:{near[0]}'?"
                if near
                else f"known are {', '.join(f'jax:{n}' for n in JAX_ENVS)}"
            )
            raise ShoalError(f"unknown environment {env!r}; {hint}")
        env = _import(JAX_ENVS[name], "environment")
    elif isinstance(env, str) and env.startswith("gymnax:"):
        from shoal.envs.gymnax import make

        return make(env.removeprefix("gymnax:"), kwargs)
    if (
        inspect.isclass(env)
        and isinstance(inspect.getattr_static(env, "spec", None), property)
        and hasattr(env, "step")
    ):
        import gymnasium

        if not issubclass(env, gymnasium.Env):
            try:
                return env(**kwargs)
            except TypeError as error:
                raise ShoalError(f"{env.__name__} does not take these env_kwargs: {error}") from error
    return None


def _jax_source(env: JaxEnv, time_limit: int | None, given: dict[str, Any]) -> Source:
    if not isinstance(given["env"], str) and dataclasses.is_dataclass(env) and not isinstance(env, type):
        # A dataclass given as a value can be named by its class and its fields.
        fields = {f.name: getattr(env, f.name) for f in dataclasses.fields(env) if f.init}
        given = {**given, "env": type(env), "env_kwargs": fields}
    if time_limit is not None:
        env = _limited(env, time_limit)
    return Source(
        spec=env.spec,
        make_group=partial(_jax_group, env),
        jax_env=env,
        reference=_reference(given),
        journal="state",
    )


def _limited(env: JaxEnv, steps: int) -> JaxEnv:
    if dataclasses.is_dataclass(env) and any(f.name == "max_steps" for f in dataclasses.fields(env)):
        return dataclasses.replace(env, max_steps=steps)  # type: ignore[type-var]
    from shoal.envs.jax import TimeLimited

    return TimeLimited(env, steps)


def _jax_group(env: JaxEnv, seed: int, group: int, size: int) -> Group:
    from shoal.envs.jax import JaxGroup

    return JaxGroup(env, seed, group, size)


# References


def _reference(given: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `resolve` as JSON-able data, or None where something in them has no importable name."""
    reference = {
        **given,
        "env": _importable(given["env"]),
        "wrappers": [_importable(w) for w in given["wrappers"]],
    }
    if reference["env"] is None or None in reference["wrappers"]:
        return None
    try:
        return json.loads(json.dumps(reference))
    except (TypeError, ValueError):
        return None


def _importable(thing: Any) -> str | None:
    """A string that `resolve` takes for the same thing: itself, a registered id, or "module:name"."""
    if isinstance(thing, str):
        return thing
    if hasattr(thing, "entry_point"):
        import gymnasium

        return thing.id if gymnasium.registry.get(thing.id) == thing else None
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "<")
    if module in (None, "__main__") or "<" in name:
        return None
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return f"{module}:{name}" if found is thing else None
