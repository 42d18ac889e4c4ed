"""A run directory: everything that one run leaves behind, and the lock that keeps a second writer out.

config.json                  all that is needed to repeat the run
metrics.jsonl                a row per iteration (`writers.JsonLines`)
events.jsonl                 what else happened: env runners lost, groups moved (none where nothing did)
tensorboard/                 the same for TensorBoard
checkpoints/step_000123456/  see `checkpoint`; the number is in environment steps
best.json                    which checkpoint evaluated best, and its score
goal.json                    what the last `fit` was asked to reach
summary.json                 written at the end
.lock                        held by the writer as long as it lives; says who it is
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal import checkpoint, storage
from shoal.errors import ShoalError

_STEP = re.compile(r"step_(\d{9,})")
_NAMES = ("metrics.jsonl", "events.jsonl", "tensorboard", "checkpoints")
_NAMES += ("best.json", "goal.json", "summary.json")


@dataclass(frozen=True)
class Best:
    """The checkpoint that evaluated best: its step, its score and its folder."""

    step: int
    score: float
    path: Path


@dataclass(frozen=True)
class RunDir:
    """A run directory, from `create` or `open` (the one writer: close it) or `read` (readers, any number)."""

    path: Path
    config: dict[str, Any]
    _lock: int | None  # descriptor of the lock file; None for readers

    @staticmethod
    def create(path: str | Path, config: Mapping[str, Any]) -> RunDir:
        """A new run, locked. `config` is JSON-able. Raises ShoalError where a run is already."""
        folder = storage.resolve(path)
        try:
            # Not null for infinities: what a run is repeated from must say them.
            text = json.dumps(dict(config), indent=2) + "\n"
        except (TypeError, ValueError) as error:
            raise ShoalError(f"the configuration of {path} is not plain data: {error}") from error
        with storage.explained(f"could not make the run directory {path}"):
            if folder.exists() and not folder.is_dir():
                raise ShoalError(f"{path} is a file; choose another run directory")
            _refuse_used(folder, path)
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder, path)
            try:
                _refuse_used(folder, path)  # another writer may have been quicker
                storage.write(folder / "config.json", text.encode())
                (folder / "checkpoints").mkdir()
                storage.sync(folder.parent)
                return RunDir(folder, json.loads(text), lock)
            except BaseException:
                os.close(lock)
                raise

    @staticmethod
    def open(path: str | Path) -> RunDir:
        """An existing run, to continue it: locked until `close`, or until this process ends.

        Raises ShoalError if there is no run or if another process holds it, naming that process.
        """
        run = RunDir.read(path)
        with storage.explained(f"could not open the run directory {path}"):
            lock = _acquire(run.path, path)
            storage.clean_files(run.path)
        return RunDir(run.path, run.config, lock)

    @staticmethod
    def read(path: str | Path) -> RunDir:
        """An existing run, only to look at it. Raises ShoalError if there is none."""
        folder = storage.resolve(path)
        with storage.explained(f"could not read the run directory {path}"):
            if not (folder / "config.json").is_file():
                raise ShoalError(f"there is no run in {path}: it has no config.json")
            return RunDir(folder, storage.read_json(folder / "config.json"), None)

    def close(self) -> None:
        """Release the lock. Closing twice is harmless."""
        if self._lock is not None:
            os.close(self._lock)
            object.__setattr__(self, "_lock", None)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def metrics_path(self) -> Path:
        """Where the row per iteration goes."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def events_path(self) -> Path:
        """What else happened, a row each; there is none before something has."""
        return self.path / "events.jsonl"

    def checkpoint_path(self, step: int) -> Path:
        """The folder of the checkpoint at an environment step: checkpoints/step_000123456."""
        return self.path / "checkpoints" / f"step_{step:09d}"

    def checkpoints(self) -> dict[int, Path]:
        """step -> folder in rising order, unverified."""
        with storage.explained(f"could not read {self.path}"):
            names = storage.names(self.path / "checkpoints")
        steps = sorted(int(match[1]) for match in map(_STEP.fullmatch, names) if match)
        return {step: self.checkpoint_path(step) for step in steps}

    def latest_checkpoint(self) -> checkpoint.Loaded | None:
        """The newest checkpoint that can be loaded; None if there is none.

        A damaged one is skipped with a warning. Raises ShoalError if there are only damaged ones, since
        starting over is not what anybody wants then.
        """
        faults: list[str] = []
        for path in reversed(self.checkpoints().values()):
            try:
                return checkpoint.load(path)
            except ShoalError as error:
                faults.append(str(error))
                warnings.warn(f"skipping a checkpoint: {error}", RuntimeWarning, stacklevel=2)
        if faults:
            raise ShoalError(f"no checkpoint in {self.path} can be loaded; the newest: {faults[0]}")
        return None

    def save_checkpoint(
        self,
        step: int,
        tree: Any,
        info: Mapping[str, Any],
        *,
        keep_last: int | None = None,
        keep: Collection[int | None] = (),
    ) -> Path:
        """Save a checkpoint, then `prune`, unless `keep_last` is None."""
        path = self.checkpoint_path(step)
        with storage.explained(f"could not write {self.metrics_path}"):
            if self.metrics_path.exists():
                storage.sync(self.metrics_path)  # no checkpoint outlives a power cut without its rows
        checkpoint.save(path, tree, info)
        if keep_last is not None:
            self.prune(keep_last, keep)
        return path

    def prune(self, keep_last: int, keep: Collection[int | None] = ()) -> None:
        """Delete all checkpoints but the last `keep_last` (at least 1), the best, and those at `keep`."""
        best = self.best
        for step in list(self.checkpoints())[: -max(keep_last, 1)]:
            if step not in keep and (best is None or step != best.step):
                checkpoint.remove(self.checkpoint_path(step))

    @property
    def best(self) -> Best | None:
        """The checkpoint that evaluated best, if one was noted and is still there."""
        place = self.path / "best.json"
        with storage.explained(f"could not read {place}"):
            if not place.exists():
                return None
            noted = storage.read_json(place)
            if type(noted.get("step")) is not int or not isinstance(noted.get("score"), int | float):
                raise ShoalError(f"{place} is damaged: it names no step and score")
            path = self.checkpoint_path(noted["step"])
            return Best(noted["step"], float(noted["score"]), path) if storage.find(path) else None

    def note_best(self, step: int, score: float) -> None:
        """Say that the checkpoint at `step`, which exists, evaluated best."""
        self._write("best.json", {"step": step, "score": score})

    def cut(self, step: int) -> None:
        """Forget what came after the checkpoint at `step`, from which a resume goes on: later checkpoints,
        a best one among them, a summary. (`writers.cut` does the same for the metrics.)"""
        best, summary = self.best, self.summary
        if summary is not None and summary.get("env_steps") != step:
            self.forget_summary()
        with storage.explained(f"could not tidy {self.path}"):
            if best is not None and best.step > step:
                (self.path / "best.json").unlink()
        for later in self.checkpoints():
            if later > step:
                checkpoint.remove(self.checkpoint_path(later))

    def move(self, on: Mapping[str, Any]) -> None:
        """Write down that the run goes on elsewhere: `on` in the place of what config.json says."""
        self.config["on"] = dict(on)
        self._write("config.json", self.config)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json; NaN becomes null."""
        self._write("summary.json", summary)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What `write_summary` was given; None where the run has not ended."""
        return self._read("summary.json")

    def forget_summary(self) -> None:
        """The run goes on from its end."""
        with storage.explained(f"could not tidy {self.path}"):
            (self.path / "summary.json").unlink(missing_ok=True)

    def write_goal(self, goal: Mapping[str, Any]) -> None:
        """goal.json: arguments of `Trainer.fit`."""
        self._write("goal.json", goal)

    @property
    def goal(self) -> dict[str, Any] | None:
        """What `write_goal` was given; None where there was none."""
        return self._read("goal.json")

    def _read(self, name: str) -> dict[str, Any] | None:
        place = self.path / name
        with storage.explained(f"could not read {place}"):
            return storage.read_json(place) if place.exists() else None

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        with storage.explained(f"could not write {self.path / name}"):
            storage.write_json(self.path / name, dict(value))


def newest(path: str | Path, *, best: bool = False) -> checkpoint.Loaded:
    """The checkpoint that a path names: itself, or of a run directory the last one, or the best one.

    Raises ShoalError, one line, where there is none, or none that can be loaded.
    """
    if not (storage.resolve(path) / "config.json").exists():
        if best:
            raise ShoalError(f"best=True chooses among a run directory's checkpoints, and {path} is none")
        return checkpoint.load(path)
    run = RunDir.read(path)
    if best:
        if run.best is None:
            raise ShoalError(f"the run in {path} noted no best checkpoint: evaluate_every= makes it look")
        return checkpoint.load(run.best.path)
    loaded = run.latest_checkpoint()
    if loaded is None:
        raise ShoalError(f"the run in {path} has made no checkpoint yet")
    return loaded


def _refuse_used(folder: Path, shown: str | Path) -> None:
    if (folder / "config.json").exists():
        raise ShoalError(
            f"there is already a run in {shown}; choose another run directory, or `shoal resume {shown}`"
        )
    for name in _NAMES:
        if (folder / name).exists():
            raise ShoalError(f"{shown} holds {name!r} of something else; choose another run directory")


def _acquire(folder: Path, shown: str | Path) -> int:
    """Take the lock and write down who holds it. The system releases it when the process dies."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise ShoalError(f"the run in {shown} is being written by {holder}; stop it first") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
