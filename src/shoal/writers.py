"""Where the row of each iteration goes: JSON lines, TensorBoard, W&B, MLflow; and cutting them for a resume.

A resume goes on from a checkpoint, so what was written after it is removed first (`cut`, `cut_events`),
and a run that was killed and resumed leaves the same files as one that never stopped.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from shoal import storage
from shoal.errors import ShoalError
from shoal.metrics import Result


class Writer(Protocol):
    """Takes the result of each iteration."""

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


class _Appender:
    """A file that grows by whole pieces: what a full disk took only in part is taken back."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        with storage.explained(f"could not open {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb" if new else "ab", buffering=0)

    def append(self, piece: bytes) -> None:
        with storage.explained(f"could not write to {self.path}"):
            begin = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(begin)
                raise

    def close(self) -> None:
        with storage.explained(f"could not close {self.path}"):
            self._file.close()


class JsonLines:
    """metrics.jsonl: one JSON object per iteration, NaN as null, on its way to the disk as it is written."""

    def __init__(self, path: str | Path) -> None:
        self._file = _Appender(Path(path))

    def write(self, result: Result) -> None:
        """Add a row. Raises ShoalError where the disk is full or gone; the rows before stay whole."""
        self._file.append(result.to_json_row().encode() + b"\n")

    def note(self, row: Mapping[str, Any]) -> None:
        """Add a row that need not be a result: of anything that JSON has."""
        self._file.append(json.dumps(dict(row)).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A torn last line is left out; other damaged lines too, with a warning."""
    path = Path(path)
    with storage.explained(f"could not read {path}"):
        lines = path.read_bytes().splitlines()
    rows = [_row(line) for line in lines]
    bad = [number for number, row in enumerate(rows, 1) if row is None and number < len(rows)]
    if bad:
        warnings.warn(f"{path}: left out damaged lines {bad[:5]}", RuntimeWarning, stacklevel=2)
    return [row for row in rows if row is not None]


def cut(path: str | Path, iteration: int) -> None:
    """Remove the rows after `iteration` from a metrics.jsonl, and damaged lines. The others stay as they are.

    Atomic: a kill leaves the old file or the new one. No error if the file does not exist.
    """
    path = Path(path)
    with storage.explained(f"could not cut {path}"):
        if not path.exists():
            return
        content = path.read_bytes()
        kept = b"".join(line + b"\n" for line in content.splitlines() if _iteration(line) <= iteration)
        if kept != content:
            storage.write(path, kept)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _iteration(line: bytes) -> float:
    value = (_row(line) or {}).get("iteration")
    return value if isinstance(value, int) else math.inf


class TensorBoard:
    """TensorBoard scalars by environment step. Each writer begins a new event file in `folder`.

    Written through tensorboardX's protocol buffers but in this thread: its own writer does so in another
    one, where nobody learns that the disk is full. NaN (no episode has finished yet) is left out.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._event, self._summary, self._crc = import_tensorboard()
        with storage.explained(f"could not open {folder}"):
            earlier = [int(p.name.split(".")[3]) for p in _event_files(folder)] if folder.exists() else []
        # TensorBoard reads the files in the order of their names.
        stamp = max([int(time.time()), *(t + 1 for t in earlier)])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"
        self._file = _Appender(folder / name, new=True)
        self._add(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, result: Result) -> None:
        """Add the scalars of an iteration at its `env_steps`."""
        value = self._summary.Value
        values = [value(tag=n, simple_value=float(v)) for n, v in result.items() if not math.isnan(v)]
        step = int(result["env_steps"])
        self._add(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Close the event file."""
        self._file.close()

    def _add(self, event: Any) -> None:
        # TFRecord: length, its checksum, data, its checksum; all little-endian.
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = struct.pack("<I", self._crc(length)), struct.pack("<I", self._crc(data))
        self._file.append(length + checks[0] + data + checks[1])


def cut_events(folder: str | Path, env_steps: int) -> None:
    """Remove what TensorBoard's event files in `folder` hold after an environment step, and torn ends.

    Each file is replaced atomically; one without any event left is deleted. No error without the folder.
    """
    folder = Path(folder)
    with storage.explained(f"could not cut the events in {folder}"):
        if not folder.is_dir():
            return
        event, _, _ = import_tensorboard()
        for path in _event_files(folder):
            content = path.read_bytes()
            kept, events = [], 0
            for record, data in _records(content):
                try:
                    read = event.FromString(data)
                except Exception:  # protobuf's own error type differs between its versions
                    break
                if not read.HasField("summary"):
                    kept.append(record)
                elif read.step <= env_steps:
                    kept.append(record)
                    events += 1
            if not events:
                path.unlink()
            elif sum(map(len, kept)) < len(content):
                storage.write(path, b"".join(kept))


def _event_files(folder: Path) -> list[Path]:
    files = folder.glob("events.out.tfevents.*")
    return sorted(p for p in files if p.name.split(".")[3].isdigit())


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(record, its data) of a TFRecord file, up to where it is torn."""
    position = 0
    while len(content) - position >= 12:
        (length,) = struct.unpack_from("<Q", content, position)
        end = position + 12 + length + 4
        if end > len(content):
            return
        yield content[position:end], content[position + 12 : end - 4]
        position = end


def import_tensorboard() -> tuple[Any, Any, Any]:
    """Event, Summary and the checksum of records. As those below: ShoalError without the package."""
    events = _import("tensorboardX.proto.event_pb2", "TensorBoard", "tensorboardX")
    summaries = _import("tensorboardX.proto.summary_pb2", "TensorBoard", "tensorboardX")
    records = _import("tensorboardX.record_writer", "TensorBoard", "tensorboardX")
    return events.Event, summaries.Summary, records.masked_crc32c


class WandB:
    """Weights & Biases: metrics over environment steps.

    run_id: the run's own, the same when it is resumed; letters, digits, "-" and "_". config: JSON-able.
    folder: where wandb keeps its local files. W&B does not forget: rows that a resumed run writes again are
    ignored there until it has passed the last one, which under a synchronous plan they equal anyway.
    """

    def __init__(
        self,
        project: str,
        *,
        run_id: str,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        wandb = import_wandb()
        try:
            self._run = wandb.init(
                project=project,
                id=run_id,
                name=name,
                config=dict(config or {}),
                dir=None if folder is None else str(folder),
                resume="allow",
                reinit="create_new",  # several trainers of one process have a run each
            )
            self._run.define_metric("*", step_metric="env_steps")
        except Exception as error:
            raise ShoalError(f"could not start the W&B run {run_id}: {_line(error)}") from error

    def write(self, result: Result) -> None:
        """Log an iteration. W&B sends it in the background."""
        values = {name: v for name, v in result.items() if math.isfinite(v)}
        try:
            self._run.log(values, step=int(result["iteration"]))
        except Exception as error:
            warnings.warn(f"W&B did not take iteration {result['iteration']}: {_line(error)}", stacklevel=2)

    def close(self) -> None:
        """Send what is left and finish the run."""
        try:
            self._run.finish()
        except Exception as error:
            warnings.warn(f"W&B did not finish: {_line(error)}", RuntimeWarning, stacklevel=2)


class MLflow:
    """MLflow: metrics over environment steps, the configuration as parameters.

    run_id: the run's own, kept as the tag `shoal.run_id`, by which a resume finds it again. uri: of the
    tracking server; None takes MLflow's own setting (MLFLOW_TRACKING_URI). Rows that the server does not
    take are kept and sent with the next, so that its absence does not stop a run. Rows that it already has
    from before a resume are not sent again.
    """

    def __init__(
        self,
        experiment: str,
        *,
        run_id: str,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        uri: str | None = None,
    ) -> None:
        mlflow, entities = import_mlflow()
        self._metric, param = entities.Metric, entities.Param
        self._waiting: list[Any] = []
        try:
            self._client = mlflow.MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            home = found.experiment_id if found else self._client.create_experiment(experiment)
            runs = self._client.search_runs([home], f"tags.`shoal.run_id` = '{run_id}'", max_results=1)
            self._after = runs[0].data.metrics.get("env_steps", -1.0) if runs else -1.0
            if runs:
                self._run = runs[0].info.run_id
                self._client.update_run(self._run, status="RUNNING")
                return
            run = self._client.create_run(home, tags={"shoal.run_id": run_id}, run_name=name)
            self._run = run.info.run_id
            params = [param(key, str(value)[:500]) for key, value in dotted(config or {})]
            for i in range(0, len(params), 100):  # as many as a server takes at once
                self._client.log_batch(self._run, params=params[i : i + 100])
        except Exception as error:
            raise ShoalError(f"could not start the MLflow run {run_id}: {_line(error)}") from error

    def write(self, result: Result) -> None:
        """Log an iteration."""
        now, step = int(time.time() * 1000), int(result["env_steps"])
        if step <= self._after:
            return
        self._waiting += [self._metric(n, float(v), now, step) for n, v in result.items() if math.isfinite(v)]
        self._send()

    def close(self) -> None:
        """Send what is left and finish the run."""
        self._send()
        try:
            self._client.set_terminated(self._run)
        except Exception as error:
            warnings.warn(f"MLflow did not finish: {_line(error)}", RuntimeWarning, stacklevel=2)

    def _send(self) -> None:
        try:
            while self._waiting:
                self._client.log_batch(self._run, metrics=self._waiting[:1000])
                del self._waiting[:1000]
        except Exception as error:
            rows = f"{len(self._waiting)} values are kept for later"
            warnings.warn(f"MLflow is not reached, {rows}: {_line(error)}", RuntimeWarning, stacklevel=3)


def dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of a name with dots, "algorithm.name", and a value."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def import_wandb() -> Any:
    """The module wandb."""
    return _import("wandb", "W&B", "shoal[wandb]")


def import_mlflow() -> tuple[Any, Any]:
    """The modules mlflow and mlflow.entities."""
    mlflow = _import("mlflow", "MLflow", "shoal[mlflow]")
    return mlflow, _import("mlflow.entities", "MLflow", "shoal[mlflow]")


def _import(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ShoalError(f"{what} needs a package that is missing: pip install '{package}'") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
