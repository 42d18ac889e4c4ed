"""Where rows go, and that a run that was cut and resumed leaves what an uninterrupted one leaves."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shoal import storage, writers
from shoal.errors import ShoalError
from shoal.metrics import Result
from shoal.writers import JsonLines, MLflow, TensorBoard, WandB, cut, cut_events, read_rows


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ShoalError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def result(iteration: int) -> Result:
    mean = math.nan if iteration < 3 else 10.0 * iteration
    row = {"iteration": iteration, "env_steps": 100 * iteration, "episode_return_mean": mean}
    return Result({**row, "loss/policy": 0.5 * iteration})


def write(writer: writers.Writer, *iterations: int) -> None:
    for iteration in iterations:
        writer.write(result(iteration))
    writer.close()


class Full:
    """A raw file on a disk that takes some bytes more and then is full."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._file.write(bytes(data)[: self._room])
        self._room -= taken
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class TestJsonLines:
    def test_a_row_is_in_the_file_as_soon_as_it_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "run" / "metrics.jsonl"
        writer = JsonLines(path)
        for iteration in (1, 2, 3):
            writer.write(result(iteration))
            assert [row["iteration"] for row in read_rows(path)] == [*range(1, iteration + 1)]
        writer.close()
        assert read_rows(path)[0]["episode_return_mean"] is None
        assert "NaN" not in path.read_text()

    def test_opening_again_appends(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        write(JsonLines(path), 1, 2)
        write(JsonLines(path), 3)
        assert [row["iteration"] for row in read_rows(path)] == [1, 2, 3]

    @pytest.mark.parametrize("room", [0, 1, 20])
    def test_a_full_disk_leaves_whole_rows(self, tmp_path: Path, room: int) -> None:
        path = tmp_path / "metrics.jsonl"
        writer = JsonLines(path)
        writer.write(result(1))
        before = path.read_bytes()
        real = writer._file._file
        writer._file._file = Full(real, room)  # type: ignore[assignment]
        assert "No space left on device" in error_of(lambda: writer.write(result(2)))
        assert path.read_bytes() == before
        writer._file._file = real
        write(writer, 3)
        assert [row["iteration"] for row in read_rows(path)] == [1, 3]

    def test_where_it_cannot_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        assert "could not open" in error_of(lambda: JsonLines(tmp_path / "file" / "metrics.jsonl"))
        assert "could not read" in error_of(lambda: read_rows(tmp_path / "nothing"))

    def test_a_torn_last_line_is_left_out_and_damaged_ones_are_told(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        write(JsonLines(path), 1, 2, 3)
        path.write_bytes(path.read_bytes()[:-5])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [row["iteration"] for row in read_rows(path)] == [1, 2]
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + b"\0\0\n[1]\n" + lines[1])
        with pytest.warns(RuntimeWarning, match=r"\[2, 3\]"):
            assert [row["iteration"] for row in read_rows(path)] == [1, 2]


class TestCut:
    @pytest.mark.parametrize("iteration", range(6))
    def test_rows_after_the_iteration_go_and_the_others_stay_as_they_are(
        self, tmp_path: Path, iteration: int
    ) -> None:
        path = tmp_path / "metrics.jsonl"
        write(JsonLines(path), 1, 2, 3, 4)
        lines = path.read_bytes().splitlines(keepends=True)
        cut(path, iteration)
        assert path.read_bytes() == b"".join(lines[:iteration])

    @pytest.mark.parametrize("lost", [1, 2, 30])
    def test_a_torn_last_line_goes(self, tmp_path: Path, lost: int) -> None:
        path = tmp_path / "metrics.jsonl"
        write(JsonLines(path), 1, 2)
        lines = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, path.stat().st_size - lost)
        cut(path, 2)
        # Where only the end of the line is missing the row is whole: it stays and gets its end.
        assert path.read_bytes() == b"".join(lines[:2] if lost == 1 else lines[:1])

    def test_resumed_like_uninterrupted(self, tmp_path: Path) -> None:
        write(JsonLines(tmp_path / "a"), 1, 2, 3, 4, 5)
        write(JsonLines(tmp_path / "b"), 1, 2, 3, 4)
        with (tmp_path / "b").open("ab") as file:
            file.write(b'{"iteration": 5, "env_')
        cut(tmp_path / "b", 2)
        write(JsonLines(tmp_path / "b"), 3, 4, 5)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_failed_cut_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "metrics.jsonl"
        write(JsonLines(path), 1, 2)
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert "could not cut" in error_of(lambda: cut(path, 1))
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_nothing_to_cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cut(tmp_path / "nothing", 3)
        cut_events(tmp_path / "nothing", 3)
        write(JsonLines(tmp_path / "metrics.jsonl"), 1)
        monkeypatch.setattr(storage, "write", None)  # an unchanged file is not rewritten
        cut(tmp_path / "metrics.jsonl", 1)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestTensorBoard:
    def test_tensorboard_reads_what_was_written(self, tmp_path: Path) -> None:
        write(TensorBoard(tmp_path / "tb"), 1, 2, 3, 4)
        found = scalars(tmp_path / "tb")
        assert found["loss/policy"] == [(100, 0.5), (200, 1.0), (300, 1.5), (400, 2.0)]
        assert found["episode_return_mean"] == [(300, 30.0), (400, 40.0)]
        assert set(found) == set(result(1))

    def test_a_row_is_in_the_file_as_soon_as_it_is_written(self, tmp_path: Path) -> None:
        writer = TensorBoard(tmp_path)
        writer.write(result(1))
        assert scalars(tmp_path)["loss/policy"] == [(100, 0.5)]
        writer.close()

    @pytest.mark.parametrize("torn", [0, 1, 7, 60])
    def test_resumed_like_uninterrupted(self, tmp_path: Path, torn: int) -> None:
        write(TensorBoard(tmp_path / "a"), 1, 2, 3, 4, 5)
        write(TensorBoard(tmp_path / "b"), 1, 2, 3, 4)
        place = next((tmp_path / "b").iterdir())
        os.truncate(place, place.stat().st_size - torn)
        cut_events(tmp_path / "b", 200)
        write(TensorBoard(tmp_path / "b"), 3, 4, 5)
        assert scalars(tmp_path / "a") == scalars(tmp_path / "b")
        # And once more, now that there are two files.
        cut_events(tmp_path / "b", 300)
        write(TensorBoard(tmp_path / "b"), 4, 5)
        assert scalars(tmp_path / "a") == scalars(tmp_path / "b")
        assert len(files(tmp_path / "b")) == 3

    def test_kept_events_stay_as_they_are(self, tmp_path: Path) -> None:
        write(TensorBoard(tmp_path), 1, 2, 3)
        place = next(tmp_path.iterdir())
        whole = place.read_bytes()
        cut_events(tmp_path, 300)
        assert place.read_bytes() == whole
        cut_events(tmp_path, 299)
        assert whole.startswith(place.read_bytes()) and len(place.read_bytes()) < len(whole)

    def test_cutting_everything_leaves_no_file(self, tmp_path: Path) -> None:
        write(TensorBoard(tmp_path), 1, 2)
        (tmp_path / "events.out.tfevents.mine").write_text("not ours")
        cut_events(tmp_path, 0)
        assert files(tmp_path) == ["events.out.tfevents.mine"]

    def test_a_later_writer_sorts_after_an_earlier_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also within the same second, and where the clock went back."""
        names = []
        for now in (1000.0, 1000.5, 400.0):
            monkeypatch.setattr("time.time", lambda now=now: now)
            write(TensorBoard(tmp_path), 1)
            names.append((set(files(tmp_path)) - set(names)).pop())
        assert names == sorted(names) == files(tmp_path)

    def test_a_record_that_claims_too_much_ends_the_file(self, tmp_path: Path) -> None:
        write(TensorBoard(tmp_path), 1, 2)
        place = next(tmp_path.iterdir())
        whole = place.read_bytes()
        place.write_bytes(whole + struct.pack("<QI", 2**60, 0) + b"x" * 50)
        cut_events(tmp_path, 200)
        assert place.read_bytes() == whole

    def test_a_full_disk(self, tmp_path: Path) -> None:
        writer = TensorBoard(tmp_path)
        writer.write(result(1))
        writer._file._file = Full(writer._file._file, 20)  # type: ignore[assignment]
        assert "No space left on device" in error_of(lambda: writer.write(result(2)))
        assert scalars(tmp_path)["loss/policy"] == [(100, 0.5)]

    def test_where_it_cannot_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        assert "could not open" in error_of(lambda: TensorBoard(tmp_path / "file" / "tb"))


class FakeRun:
    """wandb.Run's methods, with its own signatures (0.31)."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.axes: dict[str, str | None] = {}
        self.finished = False
        self.broken = False

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
    ) -> None:
        self.axes[name] = step_metric

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        if self.broken:
            raise RuntimeError("no\nnetwork")
        self.rows.append((step, data))

    def finish(self, exit_code: int | None = None) -> None:
        if self.broken:
            raise RuntimeError("no\nnetwork")
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("wandb")
    module.runs = []

    def init(
        entity: str | None = None,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        reinit: str | None = None,
        resume: str | None = None,
    ) -> FakeRun:
        if project == "bad":
            raise ValueError("api key\nnot configured")
        module.given = {"project": project, "dir": dir, "id": id, "name": name, "config": config}
        module.how = (resume, reinit)
        module.runs.append(FakeRun())
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class TestWandB:
    def test_rows_and_settings(self, wandb: Any, tmp_path: Path) -> None:
        writer = WandB("p", run_id="r-1", name="n", config={"seed": 0}, folder=tmp_path)
        write(writer, 1, 3)
        given = {"project": "p", "dir": str(tmp_path), "id": "r-1", "name": "n", "config": {"seed": 0}}
        assert wandb.given == given and wandb.how == ("allow", "create_new")
        run = wandb.runs[0]
        assert run.axes == {"*": "env_steps"} and run.finished
        assert [step for step, _ in run.rows] == [1, 3]
        assert run.rows[0][1] == {"iteration": 1, "env_steps": 100, "loss/policy": 0.5}
        assert run.rows[1][1]["episode_return_mean"] == 30.0

    def test_a_start_that_fails_is_one_line(self, wandb: Any) -> None:
        assert "api key not configured" in error_of(lambda: WandB("bad", run_id="r"))

    def test_training_goes_on_without_it(self, wandb: Any) -> None:
        writer = WandB("p", run_id="r")
        wandb.runs[0].broken = True
        with pytest.warns(match="iteration 1: no network"):
            writer.write(result(1))
        with pytest.warns(match="no network"):
            writer.close()

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        assert "pip install 'shoal[wandb]'" in error_of(lambda: WandB("p", run_id="r"))


class FakeServer:
    """An MLflow server, and the client's methods with their own signatures (3.17)."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: list[Any] = []
        self.sent: list[tuple[str, int, float]] = []
        self.params: dict[str, str] = {}
        self.status = ""
        self.down = False
        self.uri: str | None = None

    def client(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> FakeServer:
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        home = self.experiments.get(name)
        return home and types.SimpleNamespace(experiment_id=home)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = 1,
        max_results: int = 1000,
    ) -> list[Any]:
        return [r for r in self.runs if f"tags.`shoal.run_id` = '{r.tags['shoal.run_id']}'" == filter_string]

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Any:
        info = types.SimpleNamespace(run_id=f"run{len(self.runs)}", name=run_name)
        data = types.SimpleNamespace(metrics={})
        self.runs.append(types.SimpleNamespace(info=info, tags=tags, data=data))
        return self.runs[-1]

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self.status = status or ""

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(metrics) <= 1000 and len(params) <= 100
        if self.down:
            raise ConnectionError("refused\nby the server")
        self.sent += [(m.key, m.step, m.value) for m in metrics]
        for m in metrics:
            self.runs[0].data.metrics[m.key] = m.value
        self.params |= {p.key: p.value for p in params}

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self.status = "FINISHED"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    made = FakeServer()
    module: Any = types.ModuleType("mlflow")
    module.MlflowClient = made.client
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: types.SimpleNamespace(
        key=key, value=value, step=step
    )
    entities.Param = lambda key, value: types.SimpleNamespace(key=key, value=value)
    module.entities = entities
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return made


class TestMLflow:
    def test_rows_and_parameters(self, server: FakeServer) -> None:
        config = {
            "algorithm": {"settings": {"lr": 0.1}},
            "sinks": ["mlflow"],
            **{f"p{i}": i for i in range(200)},
        }
        writer = MLflow("e", run_id="r", name="n", config=config, uri="file:x")
        write(writer, 1, 3)
        assert server.uri == "file:x" and server.runs[0].info.name == "n" and server.status == "FINISHED"
        assert server.params["algorithm.settings.lr"] == "0.1" and server.params["p199"] == "199"
        assert ("loss/policy", 300, 1.5) in server.sent
        assert ("episode_return_mean", 300, 30.0) in server.sent
        assert all(math.isfinite(value) for _, _, value in server.sent)

    def test_a_resumed_run_is_the_same_and_repeats_nothing(self, server: FakeServer) -> None:
        write(MLflow("e", run_id="r"), 1, 2, 3)
        write(MLflow("e", run_id="r"), 2, 3, 4)
        write(MLflow("e", run_id="other"), 1)
        assert len(server.runs) == 2 and list(server.experiments) == ["e"]
        steps = [step for key, step, _ in server.sent if key == "loss/policy"]
        assert steps == [100, 200, 300, 400, 100]

    def test_rows_wait_while_the_server_is_down(self, server: FakeServer) -> None:
        writer = MLflow("e", run_id="r")
        server.down = True
        with pytest.warns(RuntimeWarning, match="refused by the server"):
            writer.write(result(1))
        server.down = False
        write(writer, 2)
        assert [step for key, step, _ in server.sent if key == "loss/policy"] == [100, 200]

    def test_a_start_that_fails_is_one_line(self, server: FakeServer) -> None:
        server.down = True
        assert "refused by the server" in error_of(lambda: MLflow("e", run_id="r", config={"a": 1}))

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlflow", None)
        assert "pip install 'shoal[mlflow]'" in error_of(lambda: MLflow("e", run_id="r"))


def test_rows_are_json_that_any_reader_knows(tmp_path: Path) -> None:
    write(JsonLines(tmp_path / "m"), 1)

    def unknown(text: str) -> None:
        raise AssertionError(text)

    json.loads((tmp_path / "m").read_text(), parse_constant=unknown)
