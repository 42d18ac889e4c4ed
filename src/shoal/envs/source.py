"""From what a user names to where environments come from: `resolve`.

"CartPole-v1", "package.module:Env-v0"     Gymnasium's registry
"package.module:Class", a class, a function  anything that makes a Gymnasium environment or a JaxEnv
"jax:CartPole-v1", "jax:GridWorld"         environments written in JAX that Shoal brings
"gymnax:Acrobot-v1"                        those of gymnax
a JaxEnv                                   itself
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shoal.envs.errors import EnvError
from shoal.envs.form import check_observation, check_reset
from shoal.envs.names import JAX_ENVS, as_tuples, import_name, reference_of
from shoal.envs.registered import gymnasium_target
from shoal.errors import ShoalError, did_you_mean, told
from shoal.types import EnvSpec, Group, JaxEnv

GRIDWORLD_ID = "shoal/GridWorld-v0"
_EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari", "atari": "atari"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where environments come from.

    make_group(seed, group number, B) gives a host group; jax_env is the environment itself where it is
    written in JAX. journal: how a group is saved ("journal", "fresh", "none": see `journal`; "vector": one
    journal for all rows; "state": the whole state). reference: JSON-able keyword arguments of `resolve` that
    make the same source again (with the journal mode found), or None where something given is not importable.
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
    if not isinstance(env_kwargs, Mapping | None):
        raise ShoalError(f"env_kwargs must be a mapping from names to values, not {env_kwargs!r}")
    if isinstance(wrappers, str) or not isinstance(wrappers, Sequence):
        raise ShoalError(f"wrappers must be a list such as [{wrappers!r}], not one wrapper")
    kwargs = dict(env_kwargs or {})
    given = {
        "env": env,
        "env_kwargs": kwargs,
        "wrappers": list(wrappers),
        "time_limit": time_limit,
        "vector": vector,
    }
    made = _jax_env(env, kwargs, time_limit)
    if made is not None:
        if wrappers or vector:
            what = "wrappers" if wrappers else "vector=True"
            raise ShoalError(f"{what} is for Gymnasium environments; {made.spec.id} is written in JAX")
        return _jax_source(made, time_limit, given)
    target = gymnasium_target(env)
    if dataclasses.is_dataclass(target):
        kwargs = {name: as_tuples(value) for name, value in kwargs.items()}
    layers = tuple(_wrapper(w) for w in wrappers)
    if vector:
        return _vector_source(target, kwargs, layers, time_limit, given)
    return _host_source(target, kwargs, layers, time_limit, journal, given)


# Gymnasium


def _wrapper(wrapper: Any) -> Callable[[Any], Any]:
    if isinstance(wrapper, str):
        wrapper = import_name(wrapper, "wrapper")
    if not callable(wrapper):
        raise ShoalError(f"a wrapper must be a callable env -> env or 'module:name', not {wrapper!r}")
    return wrapper


def _name(target: Any) -> str:
    return target.id if hasattr(target, "entry_point") else getattr(target, "__name__", type(target).__name__)


def _open(maker: Callable[[], Any], target: Any, kwargs: Mapping[str, Any]) -> Any:
    """What `maker` makes; what it raises is told in one line."""
    import gymnasium

    name = _name(target)
    try:
        return maker()
    except ShoalError:
        raise
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        entry = str(getattr(target, "entry_point", "") or getattr(target, "__module__", ""))
        extra = next((e for part, e in _EXTRAS.items() if part in entry), None)
        hint = f"pip install 'shoal[{extra}]'" if extra else str(error)
        raise ShoalError(f"{name} needs a package that is not installed: {hint}") from error
    except Exception as error:
        if kwargs and "unexpected keyword argument" in str(error):
            given = ", ".join(kwargs)
            raise ShoalError(f"{name} does not take these env_kwargs ({given}): {error}") from error
        raise EnvError(f"{name} raised {told(error)} when it was made") from error


def _host_source(
    target: Any,
    kwargs: dict[str, Any],
    layers: tuple[Any, ...],
    time_limit: int | None,
    journal: str,
    given: Any,
) -> Source:
    import gymnasium

    from shoal.envs.journal import MODES, probe
    from shoal.envs.maker import Maker
    from shoal.envs.rows import entries

    if journal not in ("auto", *MODES):
        raise ShoalError(f"unknown journal mode {journal!r}; known are auto, {', '.join(MODES)}")
    maker = Maker(env=target, env_kwargs=kwargs, wrappers=layers, time_limit=time_limit)
    bare = _open(maker.bare, target, kwargs)
    if is_jax_env(bare):
        return _jax_source(bare, time_limit, given)
    if not isinstance(bare, gymnasium.Env):
        raise ShoalError(
            f"{_name(target)} makes a {type(bare).__name__}: neither a gymnasium.Env nor a JaxEnv"
        )
    env, limit = _open(lambda: maker.wrap(bare), target, kwargs)
    world = _gridworld(target, kwargs, layers, time_limit)
    spec = _host_spec(env, _name(target), world.spec.max_episode_steps if world else limit)
    if journal == "auto":
        journal = probe(lambda: maker()[0], heavy=entries(env.observation_space) > 10_000)
        if journal == "none":
            warnings.warn(
                f"{spec.id} does not repeat itself when reset with the same seed (does it draw from anything "
                "but self.np_random?): runs with it can be neither repeated nor resumed exactly",
                RuntimeWarning,
                stacklevel=3,
            )
    return Source(
        spec=spec,
        make_group=partial(_host_group, maker, spec, journal),
        jax_env=world,
        reference=reference_of({**given, "journal": journal}),
        journal=journal,
    )


def _host_spec(env: Any, name: str, limit: int | None) -> EnvSpec:
    """What one reset of `env` and its spaces say. Closes it."""
    from shoal.envs.frames import frames_of
    from shoal.envs.rows import MASK, convert_space, entries, layout_of

    try:
        for word in ("observation_space", "action_space"):
            if not hasattr(env, word):
                raise ShoalError(f"{name} has no {word}")
        try:
            shown = env.reset(seed=0)
        except Exception as error:
            raise EnvError(f"{name} raised {told(error)} in its first reset(seed=0)") from error
        check_reset(shown, name)
        observation, info = shown
        layout = layout_of(env.observation_space, env.action_space, MASK in info)
        action = convert_space(env.action_space)
        for space in (env.observation_space, env.action_space):
            if entries(space) == 0:
                raise ShoalError(f"{name}: the space {space} holds no number")
        what = f"{name}: the observation of reset"
        check_observation(env.observation_space, observation, what, exactly=False)
        return EnvSpec(
            id=name,
            observation=layout.policy,
            action=action,
            critic=layout.critic,
            masked=bool(layout.mask_in),
            max_episode_steps=limit,
            frames=frames_of(env),
        )
    finally:
        env.close()


def _host_group(maker: Any, spec: EnvSpec, mode: str, seed: int, group: int, size: int) -> Group:
    from shoal.envs.gymnasium import GymnasiumGroup

    return GymnasiumGroup(maker, spec, seed, group, size, mode)


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
        reference=reference_of(given),
        journal="vector",
    )


# JAX


def is_jax_env(env: Any) -> bool:
    """Whether this is a `types.JaxEnv` (a Gymnasium environment's `spec` is of another type)."""
    return not isinstance(env, type) and isinstance(getattr(env, "spec", None), EnvSpec)


def _jax_env(env: Any, kwargs: dict[str, Any], time_limit: int | None) -> JaxEnv | None:
    """The JaxEnv that `env` is or names by a prefix, or None."""
    if is_jax_env(env):
        if kwargs:
            raise ShoalError(
                "env_kwargs are for an environment given by name, class or function, not for one made already"
            )
        return env
    if not isinstance(env, str):
        return None
    prefix, _, name = env.partition(":")
    if prefix == "gymnax":
        from shoal.envs.gymnax import make

        return make(name, kwargs, time_limit)
    if prefix != "jax":
        return None
    if name not in JAX_ENVS:
        raise ShoalError(f"unknown environment {env!r}; {did_you_mean(env, [f'jax:{n}' for n in JAX_ENVS])}")
    cls = import_name(JAX_ENVS[name], "environment")
    return _open(lambda: cls(**kwargs), cls, kwargs)


def _jax_source(env: JaxEnv, time_limit: int | None, given: dict[str, Any]) -> Source:
    if not isinstance(given["env"], str) and dataclasses.is_dataclass(env) and not isinstance(env, type):
        # A dataclass given as a value can be named by its class and its fields.
        fields = {f.name: getattr(env, f.name) for f in dataclasses.fields(env) if f.init}
        given = {**given, "env": type(env), "env_kwargs": fields}
    if time_limit is not None and env.spec.max_episode_steps != time_limit:
        env = _limited(env, time_limit)
    return Source(
        spec=env.spec,
        make_group=partial(_jax_group, env),
        jax_env=env,
        reference=reference_of(given),
        journal="state",
    )


def _limited(env: JaxEnv, steps: int) -> JaxEnv:
    if dataclasses.is_dataclass(env) and any(f.name == "max_steps" for f in dataclasses.fields(env)):
        return dataclasses.replace(env, max_steps=steps)  # type: ignore[type-var]
    from shoal.envs.jax import TimeLimited

    own = env.spec.max_episode_steps
    if own is not None and steps > own:
        raise ShoalError(
            f"{env.spec.id} cuts its episodes after {own} steps itself: time_limit={steps} cannot change that"
        )
    return TimeLimited(env, steps)


def _jax_group(env: JaxEnv, seed: int, group: int, size: int) -> Group:
    from shoal.envs.jax import JaxGroup

    return JaxGroup(env, seed, group, size)
