"""`shoal`: train, resume, evaluate, plot, list, show and solve from the command line.

Exit codes: 0 done; 1 something failed while running (an environment, a bug); 2 a mistake in what was
asked for; 130 interrupted. Whatever goes wrong is one line on standard error. JAX is imported by the
commands that need it, when they need it: `shoal --help` is quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import shoal
from shoal.errors import ShoalError, did_you_mean
from shoal.signals import INTERRUPTED

if TYPE_CHECKING:
    from rich.console import Console


def main(argv: Sequence[str] | None = None) -> int:
    """The program `shoal`. argv: the arguments without the program's name; None takes this process's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules named as module:Name are looked for in the current folder too
    warnings.formatwarning = lambda message, *_, **__: f"shoal: warning: {_flat(message)}\n"
    with contextlib.ExitStack() as last:
        failure = Failure(last)
        try:
            return _dispatch(arguments, failure)
        except KeyboardInterrupt:
            return _say("interrupted", INTERRUPTED)
        except BrokenPipeError:  # the reader, such as `head`, has left; the interpreter must not flush to it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except SystemExit as stop:
            if failure.run_dir is None:  # of --help; else an environment, say, ended the program
                raise
            return failure.report(stop)
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
    """Turns an exception into one line and an exit code, and keeps its traceback where something broke.

    last: what is left when that is said.
    """

    def __init__(self, last: contextlib.ExitStack) -> None:
        self.last = last
        self.run_dir: Path | None = None

    def in_run(self, run_dir: Path) -> None:
        """From now on what breaks is this run's: its traceback goes there."""
        self.run_dir = run_dir

    def report(self, error: BaseException) -> int:
        """2 for what the user got wrong; 1 where an environment or Shoal itself failed."""
        module = sys.modules.get("shoal.envs.errors")  # imported by now if an environment has run
        from_env = module is not None and isinstance(error, module.EnvError)
        if isinstance(error, ShoalError) and not from_env:
            return _say(_flat(error), 2)
        said = _flat(error) if from_env else f"{type(error).__name__}: {_flat(error)}"
        if isinstance(error, SystemExit):
            said = f"sys.exit({error.code!r}) was called within this run"
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


def train(arguments: list[str], failure: Failure) -> int:
    """shoal train ALGORITHM ENV ..."""
    from shoal import cli_cluster

    failure.last.enter_context(cli_cluster.begun_early("train", arguments))
    from shoal import cli_train

    return cli_train.train(arguments, failure.in_run)


def resume(arguments: list[str], failure: Failure) -> int:
    """shoal resume RUN ..."""
    from shoal import cli_cluster

    failure.last.enter_context(cli_cluster.begun_early("resume", arguments))
    from shoal import cli_train

    return cli_train.resume(arguments, failure.in_run)


def evaluate(arguments: list[str], failure: Failure) -> int:
    """shoal evaluate RUN ..."""
    from shoal.cli_options import Evaluate
    from shoal.cli_parsing import parse

    options = parse(
        {"evaluate": Evaluate}, arguments, "shoal evaluate", "Play episodes with a trained policy."
    )["evaluate"]
    from shoal import cli_cluster
    from shoal.restoring import MOVED
    from shoal.trainer import Trainer

    warnings.filterwarnings("ignore", MOVED)  # to play episodes, one device does
    on = cli_cluster.in_process(Path(options.run))
    video = None if options.video is None else Path(options.video or Path(options.run) / "videos")
    how = {"trust_imports": options.trust_imports, "best": options.best}
    with Trainer.restore(options.run, on=on, **how) as trainer:
        print(trainer.evaluate(options.episodes, explore=options.explore, video=video))
    if video is not None:
        print(f"video: {', '.join(str(p) for p in sorted(video.glob('*.mp4'))) or video}")
    return 0


def plot(arguments: list[str], failure: Failure) -> int:
    """shoal plot RUN ..."""
    from shoal.cli_options import Plot
    from shoal.cli_parsing import parse

    options = parse({"plot": Plot}, arguments, "shoal plot", "Draw learning curves.")["plot"]
    if not options.runs:
        raise ShoalError("shoal plot needs at least one run directory")
    from shoal.plot import plot as draw

    print(f"learning curve: {draw(options.runs, options.output, x=options.x)}")
    return 0


def list_runs(arguments: list[str], failure: Failure) -> int:
    """shoal list [FOLDER]"""
    from shoal.cli_list import described, table
    from shoal.cli_options import List
    from shoal.cli_parsing import parse

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
    """shoal show ALGORITHM [ENV]"""
    from shoal import cli_show

    return cli_show.show(arguments, _console)


def solve(arguments: list[str], failure: Failure) -> int:
    """shoal solve ENV ..."""
    from shoal import cli_solve

    return cli_solve.solve(arguments)


COMMANDS: dict[str, tuple[Callable[[list[str], Failure], int], str]] = {
    "train": (train, "train an algorithm on an environment"),
    "resume": (resume, "continue a run from its latest checkpoint"),
    "evaluate": (evaluate, "play episodes with a trained policy, and record a video"),
    "plot": (plot, "draw the learning curves of runs"),
    "list": (list_runs, "list runs: algorithm, environment, steps, return, state"),
    "show": (show, "all settings of an algorithm; what each device of a mesh would hold"),
    "solve": (solve, "solve a small environment exactly: its optimal values and policy"),
}

if __name__ == "__main__":
    sys.exit(main())
