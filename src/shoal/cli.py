"""`shoal`: train, resume, evaluate, plot, list and show from the command line.

Exit codes: 0 done; 1 something failed while running (an environment, a bug); 2 a mistake in what was
asked for; 130 interrupted. Whatever goes wrong is one line on standard error. JAX is imported by the
commands that need it, when they need it: `shoal --help` is quick.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shoal
from shoal.errors import ShoalError, did_you_mean
from shoal.signals import INTERRUPTED, Signals

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.display import Goal
    from shoal.metrics import Result
    from shoal.options import Stopping
    from shoal.trainer import Trainer

STEPS = 500_000  # where neither --steps nor --target-return nor --seconds says when to stop
_GOAL = "goal.json"  # in the run directory: what the run was asked to reach, for `resume`


# -- the program -----------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The program `shoal`. argv: the arguments without the program's name; None takes this process's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules named as module:Name are looked for in the current folder too
    warnings.formatwarning = lambda message, *_, **__: f"shoal: warning: {_flat(message)}\n"
    failure = Failure()
    try:
        return _dispatch(arguments, failure)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has left; the interpreter must not flush to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return failure.report(error)


def _dispatch(arguments: list[str], failure: Failure) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"shoal {shoal.__version__}")
        return 0
    if name not in COMMANDS:
        raise ShoalError(f"unknown command {name!r}: {did_you_mean(name, COMMANDS)}")
    return COMMANDS[name][0](rest, failure)


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        (
            "usage: shoal COMMAND ...",
            "",
            "Parallel and distributed reinforcement learning.",
            "",
            *(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()),
            "",
            "For example:  shoal train ppo CartPole-v1 --target-return 475 --plot",
            "shoal COMMAND --help says more.",
        )
    )


class Failure:
    """Turns an exception into one line and an exit code, and keeps its traceback where something broke."""

    def __init__(self) -> None:
        self.run_dir: Path | None = None  # once it is known

    def report(self, error: Exception) -> int:
        """2 for what the user got wrong; 1 where an environment or Shoal itself failed."""
        module = sys.modules.get("shoal.envs.errors")  # imported by now if an environment has run
        from_env = module is not None and isinstance(error, module.EnvError)
        if isinstance(error, ShoalError) and not from_env:
            return _say(_flat(error), 2)
        said = _flat(error) if from_env else f"{type(error).__name__}: {_flat(error)}"
        # Of an environment's error its own traceback is wanted, without Shoal's around it.
        own = error.__cause__ if from_env and error.__cause__ is not None else error
        text = "".join(traceback.format_exception(own))
        try:
            place = self._place()
            place.write_text(text)
        except OSError:
            sys.stderr.write(text)  # many lines are better than a lost traceback
            return _say(said, 1)
        return _say(f"{said} (traceback: {place})", 1)

    def _place(self) -> Path:
        if self.run_dir is None:
            return Path(tempfile.mkdtemp(prefix="shoal-")) / "error.txt"
        if self.run_dir.is_dir():
            return self.run_dir / "error.txt"
        # The run has not begun. An error.txt in its directory would be in the way of the next attempt.
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        return self.run_dir.with_name(f"{self.run_dir.name}.error.txt")


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"shoal: {text}\n")
    return code


def _flat(text: object) -> str:
    return " ".join(str(text).split())


# -- training --------------------------------------------------------------------------------------------


def train(arguments: list[str], failure: Failure) -> int:
    """shoal train ALGORITHM ENV ..."""
    from shoal import algorithms
    from shoal.options import Run, Stopping, key_values, parse

    usage = f"shoal train ALGORITHM ENV ..., where ALGORITHM is one of {', '.join(algorithms.REGISTRY)}"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {usage}\nshoal train ALGORITHM --help lists everything that can be set.")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ShoalError(f"the algorithm comes first: {usage}")
    name = arguments[0]
    parts = {"stop": Stopping, "run": Run, name: algorithms.load(name)}
    parsed = parse(parts, arguments[1:], f"shoal train {name}", f"Train {name} on an environment.")
    stop, run = parsed["stop"], parsed["run"]
    run_dir = Path(run.run_dir) if run.run_dir else new_run_dir(Path("runs"), run.env, name, run.seed)
    from shoal.trainer import Trainer

    if not run_dir.exists():  # else it is another run's, until this one is accepted in it
        failure.run_dir = run_dir
    handled = ("run_dir", "on", "envs", "groups", "env_kwargs", "wrapper", "sink", "plot")
    same = {name: value for name, value in vars(run).items() if name not in handled}
    with Trainer(
        parsed[name],
        on=_executor(run),
        run_dir=run_dir,
        env_kwargs=key_values(run.env_kwargs) or None,
        wrappers=run.wrapper,
        sinks=run.sink,
        **same,
    ) as trainer:
        failure.run_dir = run_dir
        return _fit(trainer, _goal(stop), run_dir, f"{name} on {run.env}, seed {run.seed}", run.plot)


def resume(arguments: list[str], failure: Failure) -> int:
    """shoal resume RUN ..."""
    from shoal.display import Goal
    from shoal.listing import read_json
    from shoal.options import Resume, Stopping, parse

    parts = {"stop": Stopping, "resume": Resume}
    parsed = parse(parts, arguments, "shoal resume", "Continue a run from its latest checkpoint.")
    stop, options = parsed["stop"], parsed["resume"]
    run_dir = Path(options.run)
    from shoal.trainer import Trainer

    with Trainer.resume(run_dir, trust_imports=options.trust_imports) as trainer:
        failure.run_dir = run_dir
        (run_dir / "error.txt").unlink(missing_ok=True)
        before = read_json(run_dir / _GOAL) if stop == Stopping() else None
        goal = Goal(**before) if before else _goal(stop)
        config = trainer.config
        title = f"{config['algorithm']['name']} on {config['spec']['id']}, seed {config['seed']}"
        return _fit(trainer, goal, run_dir, title, options.plot)


def _executor(run: Any) -> Any:
    from shoal import Compiled, Local

    kind = {"local": Local, "compiled": Compiled}[run.on]
    return kind(groups=run.groups) if run.envs is None else kind(envs=run.envs, groups=run.groups)


def new_run_dir(parent: Path, env: str, algorithm: str, seed: int) -> Path:
    """PARENT/<env>-<algorithm>-<seed>, with -2, -3, ... behind it where that is taken."""
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', env).strip('-.')}-{algorithm}-{seed}"

    def candidates() -> Iterator[Path]:
        yield parent / name
        number = 2
        while True:
            yield parent / f"{name}-{number}"
            number += 1

    return next(path for path in candidates() if not path.exists())


def _goal(stop: Stopping) -> Goal:
    from shoal.display import Goal

    if stop.steps is None and stop.target_return is None and stop.seconds is None:
        print(f"training for {STEPS:,} steps (--steps, --target-return or --seconds say otherwise)")
        return Goal(steps=STEPS)
    return Goal(steps=stop.steps, target_return=stop.target_return, seconds=stop.seconds)


class _Interrupted(Exception):
    """Raised between two iterations, where the trainer can be saved."""


def _fit(trainer: Trainer, goal: Goal, run_dir: Path, title: str, plot_to: str | None) -> int:
    """Train until done or interrupted, showing how it goes; then say what came of it and where it lies."""
    from shoal import storage
    from shoal.display import Display, duration, quantity

    storage.write_json(run_dir / _GOAL, vars(goal))
    print(f"run: {run_dir}", flush=True)
    note = "stopping after this iteration; once more stops at once, without saving"
    with Display(goal, title) as display, Signals(lambda: display.note(note)) as signals:

        def on_result(result: Result) -> None:
            display.update(result)
            if signals.requested:
                raise _Interrupted

        try:
            result = trainer.fit(
                goal.steps, seconds=goal.seconds, target_return=goal.target_return, on_result=on_result
            )
        except _Interrupted:
            result = None
            trainer.save()
    if result is None:
        print(f"interrupted and saved; to go on: shoal resume {run_dir}")
        return INTERRUPTED
    text = f"done: return {quantity(result['episode_return_mean'])} after {result['env_steps']:,} steps"
    text += f" in {duration(result['timing/seconds'])}"
    if goal.target_return is not None:
        reached = "reached" if trainer.reached(goal.target_return) else "not reached"
        text += f", target {goal.target_return:g} {reached}"
    print(f"{text}\nrun: {run_dir}")
    if plot_to is not None:
        _draw([run_dir], plot_to or str(run_dir / "curve.png"), "steps")
    return 0


# -- looking at runs -------------------------------------------------------------------------------------


def evaluate(arguments: list[str], failure: Failure) -> int:
    """shoal evaluate RUN ..."""
    from shoal.options import Evaluate, parse

    options = parse(
        {"evaluate": Evaluate}, arguments, "shoal evaluate", "Play episodes with a trained policy."
    )["evaluate"]
    from shoal.trainer import Trainer

    video = None if options.video is None else Path(options.video or Path(options.run) / "videos")
    with Trainer.restore(options.run, trust_imports=options.trust_imports) as trainer:
        print(trainer.evaluate(options.episodes, explore=options.explore, video=video))
    if video is not None:
        print(f"video: {', '.join(str(p) for p in sorted(video.glob('*.mp4'))) or video}")
    return 0


def plot(arguments: list[str], failure: Failure) -> int:
    """shoal plot RUN ..."""
    from shoal.options import Plot, parse

    options = parse({"plot": Plot}, arguments, "shoal plot", "Draw learning curves.")["plot"]
    if not options.runs:
        raise ShoalError("shoal plot needs at least one run directory")
    _draw([Path(run) for run in options.runs], options.output, options.x)
    return 0


def _draw(runs: Sequence[Path], output: str, x: str) -> None:
    from shoal.plot import plot as draw

    draw(runs, output, x=x)
    print(f"learning curve: {output}")


def list_runs(arguments: list[str], failure: Failure) -> int:
    """shoal list [FOLDER]"""
    from shoal.listing import described, table
    from shoal.options import List, parse

    folder = Path(parse({"list": List}, arguments, "shoal list", "List runs.")["list"].folder)
    if not folder.is_dir() and arguments:
        raise ShoalError(f"there is no folder {folder}; shoal list FOLDER looks elsewhere")
    found = sorted(place.parent for place in folder.rglob("config.json"))
    rows = [row for row in map(described, found) if row is not None]
    if rows:
        _console().print(table(rows))
    else:
        print(f"no runs in {folder}")
    return 0


def _console() -> Console:
    """A console that cuts no columns where the output is no terminal (a pipe, a file)."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


def show(arguments: list[str], failure: Failure) -> int:
    """shoal show ALGORITHM"""
    from shoal import algorithms

    names = ", ".join(algorithms.REGISTRY)
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: shoal show ALGORITHM, one of {names}")
        return 0
    if len(arguments) != 1:
        raise ShoalError(f"shoal show needs one algorithm: {names}")
    from rich.table import Table
    from rich.text import Text

    from shoal.options import documented

    cls = algorithms.load(arguments[0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "default", "type"):
        table.add_column(heading, no_wrap=heading != "type")
    table.add_column("meaning")
    for setting, kind, default, text in documented(cls):
        table.add_row(setting, default, Text(kind, "dim"), Text(text))
    console = _console()
    console.print(Text(_flat(cls.__doc__)))
    console.print(table)
    return 0


COMMANDS: dict[str, tuple[Callable[[list[str], Failure], int], str]] = {
    "train": (train, "train an algorithm on an environment"),
    "resume": (resume, "continue a run from its latest checkpoint"),
    "evaluate": (evaluate, "play episodes with a trained policy, and record a video"),
    "plot": (plot, "draw the learning curves of runs"),
    "list": (list_runs, "list runs: algorithm, environment, steps, return, state"),
    "show": (show, "all settings of an algorithm"),
}

if __name__ == "__main__":
    sys.exit(main())
