"""`shoal train` and `shoal resume`: from arguments to a Trainer, until its goal or an interrupt."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal import algorithms, cli_cluster
from shoal.cli_list import read_json
from shoal.cli_options import RESUME, TRAIN, OnCluster, OnServer, Run, Stopping
from shoal.cli_parsing import key_values, parse
from shoal.display import Display
from shoal.errors import ShoalError
from shoal.figures import Goal, Row, duration, number, quantity
from shoal.mesh import parsed
from shoal.rundir import RunDir
from shoal.signals import INTERRUPTED, Signals
from shoal.storage import check_picture

STEPS = 500_000  # where neither --steps nor --target-return nor --seconds says when to stop

InRun = Callable[[Path], None]  # told the run directory as soon as what breaks belongs to it


def train(arguments: Sequence[str], in_run: InRun) -> int:
    """shoal train ALGORITHM ENV ..., and its exit code."""
    names = ", ".join([*algorithms.REGISTRY, *algorithms.PRESETS])
    usage = f"shoal train ALGORITHM ENV ..., where ALGORITHM is one of {names}"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {usage}\nshoal train ALGORITHM --help lists everything that can be set.")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ShoalError(f"the algorithm comes first: {usage}")
    name = arguments[0]
    parts = {**TRAIN, name: algorithms.load(name)}
    defaults = {name: algorithms.default(name)} if name.lower() in algorithms.PRESETS else {}
    given = parse(parts, arguments[1:], f"shoal train {name}", f"Train {name} on an environment.", defaults)
    algorithm, stop, run = given[name], given["stop"], given["run"]
    _check_plot(run.plot)
    settings = _settings(run, given["cluster"], given["server"])
    seeds = "-".join(map(str, run.seeds or (run.seed,)))
    run_dir = Path(run.run_dir) if run.run_dir else new_run_dir(Path("runs"), f"{run.env}-{name}-{seeds}")
    if not run_dir.exists():  # else it is another run's, until this one is accepted in it
        in_run(run_dir)
    title = f"{name} on {run.env}, seed {seeds}"
    if run.seeds:
        return _train_seeds(algorithm, run, settings, stop, run_dir, title)
    from shoal.trainer import Trainer

    with Trainer(algorithm, seed=run.seed, run_dir=run_dir, **settings) as trainer:
        in_run(run_dir)
        if run.on in ("cluster", "parameter-server") and run.groups is None:
            on, each = trainer.config["on"], "runner" if run.on == "cluster" else "worker"
            print(f"groups: {on['groups']}, one for each {each} (part of the experiment, unlike the {each}s)")
        return _fit(trainer, goal_of(stop), run_dir, title, run.plot)


def resume(arguments: Sequence[str], in_run: InRun) -> int:
    """shoal resume RUN ..., and its exit code."""
    given = parse(RESUME, arguments, "shoal resume", "Continue a run from its latest checkpoint.")
    stop, options = given["stop"], given["resume"]
    _check_plot(options.plot)
    run_dir = Path(options.run)
    was = (read_json(run_dir / "config.json") or {}).get("on")  # where there is none, the Trainer says so
    on = cli_cluster.moved(given["cluster"], given["server"], options.on, was) if was else None
    if was and options.mesh is not None:
        on = _over(options.mesh, on, was)
    from shoal.trainer import Trainer

    with Trainer.resume(run_dir, on=on, trust_imports=options.trust_imports) as trainer:
        in_run(run_dir)
        (run_dir / "error.txt").unlink(missing_ok=True)
        before = RunDir.read(run_dir).goal if stop == Stopping() else None
        goal = Goal(**before) if before else goal_of(stop)
        config = trainer.config
        title = f"{config['algorithm']['name']} on {config['spec']['id']}, seed {config['seed']}"
        return _fit(trainer, goal, run_dir, title, options.plot)


def new_run_dir(parent: Path, name: str) -> Path:
    """PARENT/name in letters that suit a folder, with -2, -3, ... behind it where that is taken."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")

    def candidates() -> Iterator[Path]:
        yield parent / name
        number = 2
        while True:
            yield parent / f"{name}-{number}"
            number += 1

    return next(path for path in candidates() if not path.exists())


def goal_of(stop: Stopping) -> Goal:
    """The goal that was asked for; where there was none, one that is announced."""
    if stop == Stopping():
        print(f"training for {STEPS:,} steps (--steps, --target-return or --seconds say otherwise)")
        return Goal(steps=STEPS)
    return Goal(**vars(stop))


def _settings(run: Run, cluster: OnCluster, server: OnServer) -> dict[str, Any]:
    """The Trainer's arguments that a run's options give, but for its seed and its directory."""
    from shoal import Cluster, Compiled, Local, ParameterServer

    translated = ("seed", "seeds", "run_dir", "on", "envs", "groups", "mesh", "env_kwargs", "wrapper", "sink")
    translated += ("plot",)
    wanted = {"envs": run.envs, "groups": run.groups}
    shape: dict[str, Any] = {name: number for name, number in wanted.items() if number is not None}
    if run.mesh is not None:
        shape["mesh"] = parsed(run.mesh, "--mesh")
        if run.on not in ("local", "compiled"):
            raise ShoalError(f"--mesh is for runs in one process, and this one is on {run.on}")
    kinds: dict[str, Any] = {"local": Local, "compiled": Compiled, "cluster": Cluster}
    on = (kinds | {"parameter-server": ParameterServer})[run.on]
    on = on(**shape, **cli_cluster.given_for(run.on, cluster, server))
    return {
        **{name: value for name, value in vars(run).items() if name not in translated},
        "on": on,
        "env_kwargs": key_values(run.env_kwargs) or None,
        "wrappers": run.wrapper,
        "sinks": run.sink,
    }


def _over(mesh: str, on: Any, was: Mapping[str, Any]) -> Any:
    """Where a run goes on, with this mesh. on: where it was asked to go on; None: where it was."""
    from shoal.config import executor_from_json

    on = on or executor_from_json(was)
    if not hasattr(on, "mesh"):
        raise ShoalError(f"--mesh is for runs in one process, and this one is on {was['name']}")
    return dataclasses.replace(on, mesh=cli_cluster.mesh_of(mesh, "--mesh"))


class _Interrupted(Exception):
    """Raised between two iterations, where everything can be saved."""


def _watched(goal: Goal, title: str, work: Callable[[Callable[..., None]], None]) -> bool:
    """Do the work, which calls back with each result, and show how it goes. False if it was interrupted."""
    note = "stopping after this iteration; once more stops at once, without saving"
    with Display(goal, title) as display, Signals(lambda: display.note(note)) as signals:

        def on_result(row: Row, events: Sequence[str] = ()) -> None:
            display.update(row)
            if events and not signals.requested:
                display.note(events[-1])
            if signals.requested:
                raise _Interrupted

        try:
            work(on_result)
        except _Interrupted:
            return False
    return True


def _fit(trainer: Any, goal: Goal, run_dir: Path, title: str, plot_to: str | None) -> int:
    """Train until done or interrupted; then say what came of it and where it lies."""
    print(f"run: {run_dir}", flush=True)
    limits = {"seconds": goal.seconds, "target_return": goal.target_return}

    def work(show: Callable[..., None]) -> None:
        trainer.fit(goal.steps, **limits, on_result=lambda row: show(row, trainer.events))

    if not _watched(goal, title, work):
        trainer.save()
        print(f"interrupted and saved; to go on: shoal resume {run_dir}")
        return INTERRUPTED
    verdict = ""
    if goal.target_return is not None:
        reached = "reached" if trainer.reached(goal.target_return) else "not reached"
        verdict = f", target {goal.target_return:g} {reached}"
    print(f"done: {outcome(trainer.summary())}{verdict}\nrun: {run_dir}")
    _warn_unlearned(trainer)
    _plot(run_dir, plot_to)
    return 0


def _train_seeds(
    algorithm: Any, run: Run, settings: dict[str, Any], stop: Stopping, run_dir: Path, title: str
) -> int:
    """One run per seed, all in one program, each in a directory of its own under `run_dir`."""
    if run.on != "compiled":
        raise ShoalError("--seeds trains several runs in one program: give --on compiled too, or use --seed")
    if stop.target_return is not None or stop.seconds is not None:
        raise ShoalError("several seeds at once train for the same --steps: leave out the other goals")
    from shoal.seeds import train_seeds

    goal = goal_of(stop)
    if run.checkpoint_seconds == Run.checkpoint_seconds:  # a default is not a wish
        del settings["checkpoint_seconds"]
    latest: dict[int, Mapping[str, Any]] = {}
    trainers: list[Any] = []
    print(f"run: {run_dir}", flush=True)

    def work(show: Callable[[Row], None]) -> None:
        def on_results(results: Sequence[Mapping[str, Any]]) -> None:
            latest.update(zip(run.seeds, results, strict=True))
            show(together(results))

        trainers.extend(
            train_seeds(
                algorithm,
                settings.pop("env"),
                run.seeds,
                steps=goal.steps or STEPS,
                run_dir=run_dir,
                on_results=on_results,
                **settings,
            )
        )

    whole = _watched(goal, title, work)
    if trainers:
        _warn_unlearned(trainers[0])  # all are alike but for a few steps
    for trainer in trainers:
        trainer.close()
    for seed, row in latest.items():
        print(f"seed {seed}: {outcome({**row, 'seconds': row['timing/seconds']})}")
    print(
        f"run: {run_dir}"
        if whole
        else f"interrupted and saved in {run_dir}; shoal resume takes one seed's run"
    )
    if whole:
        _plot(run_dir, run.plot)
    return 0 if whole else INTERRUPTED


def _warn_unlearned(trainer: Any) -> None:
    """Where no gradient step was ever made from a replay, which a return alone does not show."""
    starts = trainer.config["algorithm"]["settings"].get("learning_starts")
    if starts is not None and not trainer.updates:
        warnings.warn(
            f"this run never learned: no gradient step was made in {trainer.summary()['env_steps']:,} steps "
            f"(learning_starts is {starts:,})",
            stacklevel=2,
        )


def together(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several seeds' results of one iteration as one row for the display: means over the seeds."""

    def mean(name: str) -> float:
        known = [v for v in (number(r, name) for r in results) if math.isfinite(v)]
        return sum(known) / len(known) if known else math.nan

    return {
        **results[0],
        "env_steps": min(r["env_steps"] for r in results),
        "episodes": sum(r["episodes"] for r in results),
        "episode_return_mean": mean("episode_return_mean"),
        "episode_length_mean": mean("episode_length_mean"),
    }


def outcome(row: Mapping[str, Any]) -> str:
    """What came of a run, in a few words. row: as in summary.json."""
    mean = quantity(number(row, "episode_return_mean"))
    return f"return {mean} after {row['env_steps']:,} steps in {duration(row['seconds'])}"


def _check_plot(output: str | None) -> None:
    """Before training, not after it. "" is the usual place."""
    if output:
        check_picture(output, "--plot")


def _plot(run_dir: Path, output: str | None) -> None:
    """The learning curve, where one was asked for; "" is its usual place."""
    if output is not None:
        from shoal.plot import plot

        print(f"learning curve: {plot([run_dir], output or run_dir / 'curve.png')}")
