"""What a Trainer saves, and from that to a Trainer that goes on there, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from shoal import checkpoint
from shoal.config import (
    agent_of,
    algorithm_from_json,
    check_settings,
    environment_of,
    executor_from_json,
    executor_to_json,
    spec_from_json,
    spec_to_json,
)
from shoal.errors import ShoalError
from shoal.execution import Executor
from shoal.execution.cluster import Cluster
from shoal.execution.parameter_server import ParameterServer
from shoal.recorder import Recorder
from shoal.rundir import RunDir, newest
from shoal.sinks import check_packages
from shoal.writers import dotted

if TYPE_CHECKING:
    from shoal.trainer import Trainer

# The Trainer's arguments that a configuration holds as they were given.
_KEPT = ("seed", "normalize_observations", "scale_rewards", "checkpoint_every", "checkpoint_seconds")
_KEPT += ("keep_checkpoints", "evaluate_every", "evaluate_episodes", "threads", "sinks")

# What of a configuration says which run it is: of these, config.json must agree with the checkpoints. The
# others, such as intervals, may be edited there, and where it runs may have moved since.
_SAME = ("algorithm", "env", "spec", "seed", "normalize_observations", "scale_rewards")
_SAME_ON = ("envs", "groups")

MOVED = "this run learned "  # how the warning begins that it goes on over other devices


_STATE = "policies/main"  # where a checkpoint has the learner's


class Given(NamedTuple):
    """What is given anew, in the place of what was recorded; None: nothing."""

    on: Executor | None = None
    algorithm: Any = None
    env: Any = None
    wrappers: Sequence[Any] | None = None
    trust_imports: bool = False


def restored(
    make: type[Trainer], path: str | Path, given: Given, run_dir: str | Path | None, *, best: bool
) -> Trainer:
    """See `Trainer.restore`."""
    loaded = newest(path, best=best)
    if loaded.info.get("kind") != "trainer":
        raise ShoalError(f"{path} holds a policy, not a training run: load it with Policy.load")
    if run_dir is not None:
        check_packages(loaded.info["config"]["sinks"])
    trainer = _rebuilt(make, loaded.info["config"], given, loaded)
    try:
        if run_dir is not None:
            _record(trainer, RunDir.create(run_dir, trainer.config))
            trainer.save()  # else a resume from there would begin anew
    except BaseException:
        trainer.close()
        raise
    return trainer


def resumed(make: type[Trainer], run_dir: str | Path, given: Given) -> Trainer:
    """See `Trainer.resume`."""
    directory = RunDir.open(run_dir)
    try:
        loaded = directory.latest_checkpoint()
        if loaded is not None:
            _check_unedited(directory.config, loaded.info["config"], run_dir)
        trainer = _rebuilt(make, directory.config, given, loaded)
        if loaded is not None:
            _tell_of_threads(loaded.info["config"]["threads"], trainer.config["threads"])
    except BaseException:
        directory.close()
        raise
    try:
        if loaded is None and directory.config["warm_start"] is not None:
            take_parameters(trainer, directory.config["warm_start"])
        if trainer.config["on"] != directory.config["on"]:
            directory.move(trainer.config["on"])
        directory.cut(trainer._progress.env_steps)
        _record(trainer, directory)
    except BaseException:
        trainer.close()
        directory.close()
        raise
    return trainer


def snapshot(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that training needs to go on exactly: (arrays, what is said of them)."""
    evaluating, said = trainer._judge.save()
    tree = {
        "policies": {"main": jax.device_get(trainer._run.learner.state)},
        "run": trainer._run.save(),
        "episodes": trainer._progress.episodes.save(),
        **evaluating,
    }
    progress = trainer._progress.counters() | said
    return tree, {"kind": "trainer", "config": trainer.config, "progress": progress}


def _stand(trainer: Trainer, loaded: checkpoint.Loaded) -> None:
    """Let a new Trainer stand where a snapshot was taken."""
    progress, arrays = loaded.info["progress"], loaded.arrays
    learner = trainer._run.learner
    learner.state = checkpoint.restore(learner.state, arrays, _STATE)
    trainer._run.load(arrays, "run")
    trainer._progress.load(progress, arrays, "episodes")
    form = jax.eval_shape(trainer._agent.policy, learner.state)
    trainer._judge.load(progress, arrays, form)


def take_parameters(trainer: Trainer, path: str | Path) -> None:
    """Begin with what a checkpoint has learned: its parameters, and what was made of or with them (target
    networks, running statistics). Counts, the optimizer's state and the replay begin anew."""
    loaded = newest(path)
    if loaded.info.get("kind") != "trainer":
        raise ShoalError(f"{path} holds a policy alone: warm_start needs a checkpoint of a training run")
    learner = trainer._run.learner
    state = learner.state
    try:
        params = checkpoint.restore(state.params, loaded.arrays, f"{_STATE}/params")
    except ShoalError as error:
        was, now = (config["algorithm"]["name"] for config in (loaded.info["config"], trainer.config))
        if was == now:  # else arrays are only a consequence; and PPO's, say, do fit where A2C's were
            raise
        raise ShoalError(f"{path} is a checkpoint of {was}, and its parameters do not fit {now}") from error
    known = {name.split("/")[3] for name in loaded.arrays if name.startswith(f"{_STATE}/extra/")}
    if ("observation_stats" in known) != ("observation_stats" in state.extra):
        was = "observation_stats" in known
        raise ShoalError(f"{path} was trained with normalize_observations={was}: give that here too")
    extra = {
        name: checkpoint.restore(own, loaded.arrays, f"{_STATE}/extra/{name}") if name in known else own
        for name, own in state.extra.items()
    }
    if untaken := [name for name in extra if name.endswith("_target") and name not in known]:
        raise ShoalError(f"{path} holds no {', '.join(untaken)}, which this algorithm needs too")
    learner.state = state._replace(params=params, extra=extra)


def _record(trainer: Trainer, run: RunDir) -> None:
    progress = trainer._progress
    trainer._recorder = Recorder(run, progress.iteration, progress.env_steps, trainer._judge.waiting)


def _rebuilt(
    make: type[Trainer], config: Mapping[str, Any], given: Given, loaded: checkpoint.Loaded | None
) -> Trainer:
    """A Trainer as the configuration says, without a run directory, standing where `loaded` says."""
    on = moved(config, given)
    how = environment_of(config, given.env, given.wrappers, trust_imports=given.trust_imports)
    algorithm = algorithm_from_json(config["algorithm"], given.algorithm, trust_imports=given.trust_imports)
    trainer = make(algorithm, on=on, **how, **{name: config[name] for name in _KEPT})
    try:
        _check_same(trainer.config["spec"], config["spec"])
        check_settings(trainer.config["algorithm"], config["algorithm"])
        trainer.config = dict(config) | {name: trainer.config[name] for name in ("threads", "on")}
        if loaded is not None:
            _stand(trainer, loaded)
    except BaseException:
        trainer.close()
        raise
    return trainer


def moved(config: Mapping[str, Any], given: Given) -> Executor:
    """Where a run goes on: with another mesh it is the same run to rounding, which a warning says. Raises
    ShoalError where that would make it another experiment, or where what was saved there does not fit."""
    on, was = given.on, config["on"]
    if on is None:
        return executor_from_json(was)
    if isinstance(on, Cluster | ParameterServer) and on.groups is None and not on.envs % was["groups"]:
        on = dataclasses.replace(on, groups=was["groups"])
    now = executor_to_json(on)
    for name in ("envs", "groups"):
        if now[name] != was[name]:
            raise ShoalError(
                f"{name}={now[name]} would make this run another experiment: it has {name}={was[name]}; "
                "the number of runners may change, that of environments and groups may not"
            )
    _tell_of_mesh(was, now)
    if now["name"] == was["name"]:
        if (now.get("mode") == "sync") != (was.get("mode") == "sync"):
            raise ShoalError(
                f"this run has mode={was['mode']!r} and cannot go on with mode={now['mode']!r}, which saves "
                "something else"
            )
        return on
    if {now["name"], was["name"]} != {"local", "cluster"}:
        raise ShoalError(
            f"this run is on {was['name']} and cannot go on on {now['name']}: only local and cluster can be "
            "exchanged, whose saved states have the same form"
        )
    agent = agent_of(
        config,
        spec_from_json(config["spec"]),
        algorithm=given.algorithm,
        trust_imports=given.trust_imports,
    )
    if agent.plan.staleness:
        raise ShoalError(
            f"{config['algorithm']['name']} is asynchronous on a cluster, with another form of saved state: "
            f"this run is on {was['name']} and cannot go on on {now['name']}"
        )
    return on


def _tell_of_mesh(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn where learning goes on over other devices: what is saved is whole, but sums round otherwise."""
    before, after = (_mesh_in_words(on) for on in (was, now))
    if before != after:
        warnings.warn(
            f"{MOVED}on {before} and goes on on {after}: it is the same run to rounding, and not to the bit",
            stacklevel=2,
        )


def _tell_of_threads(was: int, now: int) -> None:
    if was != now:
        warnings.warn(
            f"{MOVED}with threads={was} and goes on with {now}: it is the same run to rounding, and not to "
            "the bit",
            stacklevel=2,
        )


def _mesh_in_words(on: Mapping[str, Any]) -> str:
    mesh = on.get("mesh") or on.get("learners")
    if not mesh or mesh["data"] * mesh["model"] == 1:
        return "one device"
    return f"data={mesh['data']}, model={mesh['model']}"


def _check_unedited(recorded: Mapping[str, Any], saved: Mapping[str, Any], run_dir: str | Path) -> None:
    """Raise ShoalError where a run directory's config.json is of another run than its checkpoint: a resume
    would go on with those settings without a word."""

    def flat(config: Mapping[str, Any]) -> dict[str, str]:
        same = {name: config[name] for name in _SAME} | {
            "on": {name: config["on"][name] for name in _SAME_ON}
        }
        return {name: json.dumps(value) for name, value in dotted(same)}  # as text NaN equals itself

    now, was = flat(recorded), flat(saved)
    for name in {**now, **was}:
        if now.get(name) != was.get(name):
            raise ShoalError(
                f"{Path(run_dir) / 'config.json'} has {name}={now.get(name, 'nothing')}, and the run's "
                f"checkpoint {was.get(name, 'nothing')}: put it back, or begin another run from here with "
                "warm_start="
            )


def _check_same(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    then = spec_to_json(spec_from_json(recorded))
    if now != then:
        differing = [name for name, value in then.items() if now[name] != value]
        raise ShoalError(
            f"the environment is not the one of this run, {recorded['id']}: its {', '.join(differing)} differ"
        )
