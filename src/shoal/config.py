"""What a run is, as plain data: all that is needed to repeat it, and how to build it from that again."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import shoal
from shoal import algorithms, mesh, spaces
from shoal.envs import Source
from shoal.envs.names import as_tuples, import_name
from shoal.errors import ShoalError
from shoal.execution import Executor
from shoal.execution.cluster import Cluster
from shoal.execution.compiled import Compiled
from shoal.execution.local import Local
from shoal.execution.parameter_server import ParameterServer
from shoal.recipe import Recipe
from shoal.types import Agent, Algorithm, EnvSpec

EXECUTORS: dict[str, type] = {
    "local": Local,
    "compiled": Compiled,
    "cluster": Cluster,
    "parameter-server": ParameterServer,
}
_MESHES = {"mesh", "learners"}  # settings of executors that are a Mesh or None
_GIVEN = {"given": "as a function"}  # stands for a value that is code, and must be given again


def algorithm_to_json(algorithm: Any) -> dict[str, Any]:
    """{"name", "settings"}; a user's own dataclass has its importable reference as name."""
    if not dataclasses.is_dataclass(algorithm) or isinstance(algorithm, type):
        raise ShoalError(
            f"the algorithm must be an instance of its dataclass, such as PPO(), got {algorithm!r}"
        )
    cls = type(algorithm)
    settings = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    return {
        "name": algorithms.name_of(algorithm) or f"{cls.__module__}:{cls.__qualname__}",
        "settings": {name: _GIVEN if callable(value) else value for name, value in settings.items()},
    }


def algorithm_from_json(
    data: Mapping[str, Any], given: Any = None, *, trust_imports: bool = False
) -> Algorithm:
    """The algorithm again. Where it is, or holds, code of the user's, `given` must supply it."""
    if given is not None:
        return given
    name, settings = data["name"], data["settings"]
    code = [key for key, value in settings.items() if value == _GIVEN]
    if code:
        raise ShoalError(
            f"{name} was trained with {', '.join(code)} given as a function, which no checkpoint holds: pass "
            f"algorithm= with the same {', '.join(code)}"
        )
    if ":" not in name:
        cls = algorithms.load(name)
    elif trust_imports:
        cls = import_name(name, "algorithm")
    else:
        raise ShoalError(
            f"this run's algorithm is {name}: pass algorithm= again, or trust_imports=True (--trust-imports) "
            "to let it be imported"
        )
    return cls(**{name: as_tuples(value) for name, value in settings.items()})


def check_settings(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raise ShoalError where an algorithm that was given anew is not the one that was recorded."""
    now = json.loads(json.dumps(now))  # as what is recorded has been
    if not _same_class(now["name"], recorded["name"]):
        raise ShoalError(f"this run is of {recorded['name']}, and algorithm= is {now['name']}")
    was, given = recorded["settings"], now["settings"]
    if differing := [name for name in was if given.get(name) != was[name]]:
        here, there = (", ".join(f"{n}={x.get(n)}" for n in differing) for x in (given, was))
        raise ShoalError(
            f"algorithm= has {here}, and this run {there}: leave that as it was, or begin another run from "
            "here with warm_start="
        )


def _same_class(one: str, other: str) -> bool:
    """Whether two names may be of one class: what a script defines is __main__'s there, and not elsewhere."""
    (module, _, name), (other_module, _, other_name) = one.partition(":"), other.partition(":")
    return one == other or ("__main__" in (module, other_module) and name == other_name)


def executor_to_json(on: Any) -> dict[str, Any]:
    """{"name", fields}; a mesh only where there is one."""
    name = next((name for name, cls in EXECUTORS.items() if isinstance(on, cls)), None)
    if name is None:
        raise ShoalError(
            f"on= must be one of {', '.join(c.__name__ for c in EXECUTORS.values())}, got {on!r}"
        )
    if isinstance(on, Cluster | ParameterServer):  # groups are the experiment, whoever they were meant for
        on = dataclasses.replace(on, groups=on.in_groups)
    fields = dataclasses.asdict(on)
    for place in _MESHES & fields.keys():
        if fields.pop(place) is not None:
            fields[place] = mesh.to_json(getattr(on, place))
    return {"name": name, **fields}


def executor_from_json(data: Mapping[str, Any]) -> Executor:
    fields = dict(data)
    for place in _MESHES & fields.keys():
        fields[place] = mesh.from_json(fields[place])
    return EXECUTORS[fields.pop("name")](**fields)


def environment_to_json(source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `envs.resolve` as data. Where the environment or a wrapper is code that cannot be
    imported, both are null, to be given again; the rest is recorded all the same."""
    if source.reference is not None:
        return source.reference
    kwargs = dict(given["env_kwargs"] or {})
    try:
        kwargs = json.loads(json.dumps(kwargs))
    except (TypeError, ValueError):
        kwargs = None
    return {
        "env": None,
        "env_kwargs": kwargs,
        "wrappers": None if given["wrappers"] else [],
        "time_limit": given["time_limit"],
        "vector": given["vector"],
        "journal": source.journal,
    }


def environment_of(
    config: Mapping[str, Any],
    env: Any = None,
    wrappers: Sequence[Any] | None = None,
    *,
    trust_imports: bool = False,
) -> dict[str, Any]:
    """The arguments of `envs.resolve` that make a run's environment again.

    env, wrappers: what is given anew, in the place of what the run recorded. Raises ShoalError where code is
    needed that no checkpoint holds, or that the recorded names would import without `trust_imports`.
    """
    how = dict(config["env"])
    names = [how["env"]] if env is None and how["env"] else []
    names = [name for name in names if ":" in name and name.partition(":")[0] not in ("jax", "gymnax")]
    if wrappers is None:
        names += how["wrappers"] or []
    if names and not trust_imports:
        raise ShoalError(
            f"this run names code to import ({', '.join(names)}): pass trust_imports=True (--trust-imports) "
            "if you trust it, or give env= and wrappers= again"
        )
    if env is not None:
        how["env"] = env
        if not isinstance(env, str) and not callable(env):
            how["env_kwargs"] = None  # a ready JaxEnv, which has its settings already
        elif how["env_kwargs"] is None:
            raise ShoalError("this run's env_kwargs held objects: pass env= as a function that supplies them")
    if wrappers is not None:
        how["wrappers"] = wrappers
    missing = [f"{name}=" for name in ("env", "wrappers") if how[name] is None]
    if missing:
        raise ShoalError(
            f"this run's environment ({config['spec']['id']}) or a wrapper of it was given as code, which no "
            f"checkpoint holds: pass {' and '.join(missing)} again"
        )
    return how


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "observation": spaces.to_json(spec.observation),
        "action": spaces.to_json(spec.action),
        "critic": None if spec.critic is None else spaces.to_json(spec.critic),
        "masked": spec.masked,
        "max_episode_steps": spec.max_episode_steps,
        "frames": spec.frames,
    }


def spec_from_json(data: Mapping[str, Any]) -> EnvSpec:
    return EnvSpec(
        id=data["id"],
        observation=spaces.from_json(data["observation"]),
        action=spaces.from_json(data["action"]),
        critic=None if data["critic"] is None else spaces.from_json(data["critic"]),
        masked=data["masked"],
        max_episode_steps=data["max_episode_steps"],
        frames=data.get("frames", 1),  # absent from what older versions wrote
    )


def agent_of(
    config: Mapping[str, Any], spec: EnvSpec, *, algorithm: Any = None, trust_imports: bool = False
) -> Agent:
    """The agent that a run's configuration describes."""
    algorithm = algorithm_from_json(config["algorithm"], algorithm, trust_imports=trust_imports)
    recipe = Recipe(
        algorithm=algorithm,
        env={},
        normalize=config["normalize_observations"],
        scale=config["scale_rewards"],
    )
    return recipe.agent(spec)


def versions() -> dict[str, str]:
    """What the bits may depend on, to be recorded with a run."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "absent"

    packages = ("jax", "jaxlib", "numpy", "optax", "gymnasium")
    return {
        "shoal": shoal.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        **{package: installed(package) for package in packages},
        "machine": platform.machine(),
    }
