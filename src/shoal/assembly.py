"""From what a user gives to a Trainer: checked, described as data, and put together as an experiment."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

from shoal.checks import number
from shoal.config import algorithm_to_json, environment_to_json, executor_to_json, spec_to_json, versions
from shoal.envs import resolve
from shoal.errors import ShoalError
from shoal.execution import Executor, devices_here
from shoal.recipe import Experiment, Recipe
from shoal.runtime import configure
from shoal.sinks import check_sinks

_LEAST = {"seed": 0, "keep_checkpoints": 1, "evaluate_episodes": 1, "threads": 1}
_LEAST_OR_NONE = {"checkpoint_every": 1, "evaluate_every": 1}


class Assembly(NamedTuple):
    """config: all that is needed to repeat the run, as data (`config.json`)."""

    experiment: Experiment
    config: dict[str, Any]


def check(algorithm: Any, on: Executor, options: Mapping[str, Any]) -> None:
    """What can be refused before anything is begun. options: the Trainer's, by name."""
    algorithm_to_json(algorithm)
    executor_to_json(on)
    for name, least in {**_LEAST, **_LEAST_OR_NONE}.items():
        if options[name] is None and name in _LEAST_OR_NONE:
            continue
        number(name, options[name], least, Integral)
    if options["checkpoint_seconds"] is not None:
        number("checkpoint_seconds", options["checkpoint_seconds"], 0)
    check_sinks(options["sinks"])


def checked_goal(goal: Mapping[str, Any]) -> dict[str, Any]:
    """Of `Trainer.fit`, with NumPy's numbers as Python's: steps, seconds, target_return, of which one at
    least is not None."""
    if all(limit is None for limit in goal.values()):
        raise ShoalError("fit needs a goal: steps=, seconds= or target_return=")
    if goal["steps"] is not None:
        number("steps", goal["steps"], 1)  # 1e6 will do
    if goal["seconds"] is not None:
        number("seconds", goal["seconds"], 0)
    if goal["target_return"] is not None:
        number("target_return", goal["target_return"], -math.inf)
    return {name: limit.item() if hasattr(limit, "item") else limit for name, limit in goal.items()}


def assemble(
    algorithm: Any, environment: Mapping[str, Any], on: Executor, options: Mapping[str, Any]
) -> Assembly:
    """Set JAX up, find the environment and bind the algorithm to it.

    environment: the arguments of `envs.resolve`. options: the Trainer's other arguments, by name.
    """
    threads = configure(options["threads"], devices_here(on))
    source = resolve(**environment)
    warm_start = options["warm_start"]
    config = {
        "algorithm": algorithm_to_json(algorithm),
        "on": executor_to_json(on),
        "env": environment_to_json(source, environment),
        "spec": spec_to_json(source.spec),
        "journal": source.journal,
        **options,
        "threads": threads,
        "warm_start": None if warm_start is None else str(warm_start),
        "sinks": list(options["sinks"]),
        "run_id": secrets.token_hex(4),
        "versions": versions(),
    }
    recipe = Recipe(
        algorithm=algorithm,
        env=source.reference or {**environment, "journal": source.journal},
        normalize=options["normalize_observations"],
        scale=options["scale_rewards"],
        threads=threads,
    )
    return Assembly(Experiment.of(recipe, options["seed"], source), config)
