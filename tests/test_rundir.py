"""Run directories: one writer, the last good checkpoint, and one line for whatever goes wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal import checkpoint
from shoal.errors import ShoalError
from shoal.rundir import RunDir


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ShoalError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with RunDir.create(tmp_path / "run", {"seed": 0, "clip": math.inf}) as made:
        yield made


def save(run: RunDir, *steps: int, keep_last: int | None = None) -> None:
    for step in steps:
        run.save_checkpoint(step, {"x": np.full(3, step)}, {"step": step}, keep_last=keep_last)


class TestCreating:
    def test_a_new_run_holds_its_configuration(self, run: RunDir) -> None:
        assert json.loads((run.path / "config.json").read_text()) == {"seed": 0, "clip": math.inf}
        assert RunDir.read(run.path).config == run.config == {"seed": 0, "clip": math.inf}
        assert run.checkpoint_path(123456) == run.path / "checkpoints" / "step_000123456"
        assert (run.metrics_path, run.tensorboard_path) == (
            run.path / "metrics.jsonl",
            run.path / "tensorboard",
        )
        assert run.summary is None and run.best is None and run.latest_checkpoint() is None

    def test_an_empty_or_unrelated_folder_will_do(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "log.txt").write_text("from the shell")
        RunDir.create(tmp_path / "a", {}).close()
        RunDir.create(tmp_path / "b" / "c", {}).close()

    def test_never_over_another_run(self, run: RunDir, tmp_path: Path) -> None:
        run.close()
        said = error_of(lambda: RunDir.create(run.path, {}))
        assert f"shoal resume {run.path}" in said and "choose another" in said
        (tmp_path / "metrics.jsonl").write_text("{}")
        assert "metrics.jsonl" in error_of(lambda: RunDir.create(tmp_path, {}))
        (tmp_path / "file").write_text("x")
        assert "is a file" in error_of(lambda: RunDir.create(tmp_path / "file", {}))
        assert "could not make" in error_of(lambda: RunDir.create(tmp_path / "file" / "x", {}))

    def test_a_configuration_that_is_not_plain_leaves_nothing(self, tmp_path: Path) -> None:
        assert "not plain data" in error_of(lambda: RunDir.create(tmp_path / "x", {"f": print}))
        assert not (tmp_path / "x").exists()

    def test_a_failed_creation_can_be_repeated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert "No space left" in error_of(lambda: RunDir.create(tmp_path / "x", {}))
        RunDir.create(tmp_path / "x", {}).close()

    def test_opening_what_is_no_run(self, tmp_path: Path) -> None:
        for call in (RunDir.open, RunDir.read):
            assert "no run" in error_of(lambda call=call: call(tmp_path))
            assert "no run" in error_of(lambda call=call: call(tmp_path / "nothing"))
        (tmp_path / "config.json").write_text("{")
        assert "config.json is damaged" in error_of(lambda: RunDir.read(tmp_path))
        (tmp_path / "config.json").write_text("[1]")
        assert "config.json is damaged" in error_of(lambda: RunDir.read(tmp_path))


HOLDER = """
import sys, time
from shoal.rundir import RunDir
run = RunDir.open(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


class TestLock:
    def test_a_second_writer_is_told_who_holds_it(self, run: RunDir) -> None:
        said = error_of(lambda: RunDir.open(run.path))
        assert str(os.getpid()) in said and socket.gethostname() in said
        RunDir.read(run.path).close()  # readers are not kept out, and do not unlock
        error_of(lambda: RunDir.open(run.path))
        run.close()
        run.close()
        RunDir.open(run.path).close()

    def test_the_death_of_the_holder_releases_it(self, run: RunDir) -> None:
        run.close()
        command = [sys.executable, "-c", HOLDER, str(run.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            assert f"process {process.pid} on" in error_of(lambda: RunDir.open(run.path))
            process.send_signal(signal.SIGKILL)
        RunDir.open(run.path).close()

    def test_a_failed_opening_does_not_hold_it(self, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
        run.close()

        def full(*_: Any) -> int:
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert "No space left" in error_of(lambda: RunDir.open(run.path))
        RunDir.open(run.path).close()

    def test_opening_tidies_what_a_killed_writer_left(self, run: RunDir) -> None:
        run.close()
        (run.path / ".best.json.0123456789ab.tmp").write_text("{")
        (run.path / ".mine.tmp").write_text("keep")
        RunDir.open(run.path).close()
        hidden = sorted(p.name for p in run.path.iterdir() if p.name.startswith("."))
        assert hidden == [".lock", ".mine.tmp"]


class TestCheckpoints:
    def test_the_latest(self, run: RunDir) -> None:
        save(run, 5, 1_000_000_000, 999)
        latest = run.latest_checkpoint()
        assert latest is not None and latest.info == {"step": 10**9}
        assert latest.path == run.path / "checkpoints" / "step_1000000000"
        assert list(run.checkpoints()) == [5, 999, 10**9]

    @pytest.mark.parametrize("damage", ["manifest", "arrays", "empty"])
    def test_damaged_ones_are_skipped_with_a_warning(self, run: RunDir, damage: str) -> None:
        save(run, 1, 2)
        newest = run.checkpoint_path(2)
        if damage == "manifest":
            (newest / "manifest.json").write_text("{")
        elif damage == "arrays":
            (newest / "arrays.safetensors").write_bytes(b"")
        else:
            for file in newest.iterdir():
                file.unlink()
        with pytest.warns(RuntimeWarning, match="step_000000002"):
            latest = run.latest_checkpoint()
        assert latest is not None and latest.info == {"step": 1}

    def test_only_damaged_ones_are_an_error(self, run: RunDir) -> None:
        save(run, 1)
        (run.checkpoint_path(1) / "manifest.json").unlink()
        with pytest.warns(RuntimeWarning):
            assert "no checkpoint" in error_of(run.latest_checkpoint)

    def test_one_that_a_killed_writer_left_aside_counts(self, run: RunDir) -> None:
        save(run, 1, 2)
        path = run.checkpoint_path(2)
        path.rename(path.parent / f".{path.name}.shoal-old")
        latest = run.latest_checkpoint()
        assert latest is not None and latest.info == {"step": 2}

    def test_other_folders_are_no_checkpoints(self, run: RunDir) -> None:
        for name in ("notes", "step_x", "step_12", ".step_000000003.0123456789ab.tmp"):
            (run.path / "checkpoints" / name).mkdir()
        assert run.checkpoints() == {} and run.latest_checkpoint() is None

    def test_retention_keeps_the_last_and_the_best(self, run: RunDir) -> None:
        save(run, 1, 2, 3, 4)
        assert list(run.checkpoints()) == [1, 2, 3, 4]
        run.note_best(2, 10.0)
        save(run, 5, keep_last=2)
        assert list(run.checkpoints()) == [2, 4, 5]
        run.note_best(5, 11.0)
        save(run, 6, 7, keep_last=1)
        assert list(run.checkpoints()) == [5, 7]
        run.prune(0)
        assert list(run.checkpoints()) == [5, 7]

    def test_a_new_best_keeps_the_old_until_it_is_noted(self, run: RunDir) -> None:
        save(run, 1)
        run.note_best(1, 1.0)
        save(run, 2, keep_last=1)
        assert list(run.checkpoints()) == [1, 2]

    def test_the_best(self, run: RunDir) -> None:
        save(run, 1)
        run.note_best(1, 2.5)
        assert run.best is not None
        assert (run.best.step, run.best.score, run.best.path) == (1, 2.5, run.checkpoint_path(1))
        checkpoint.remove(run.checkpoint_path(1))
        assert run.best is None
        for text in ('{"step": 1}', "{", '{"step": "../..", "score": 1}', '{"step": 1, "score": null}'):
            (run.path / "best.json").write_text(text)
            assert "best.json is damaged" in error_of(lambda: run.best)

    def test_cut_forgets_what_came_after(self, run: RunDir) -> None:
        save(run, 1, 2, 3)
        run.note_best(3, 1.0)
        run.write_summary({"env_steps": 3})
        run.cut(2)
        assert list(run.checkpoints()) == [1, 2] and run.best is None and run.summary is None
        run.note_best(2, 1.0)
        run.cut(2)
        assert run.best is not None and list(run.checkpoints()) == [1, 2]


def test_summary(run: RunDir) -> None:
    run.write_summary({"env_steps": np.int64(5), "episode_return_mean": math.nan, "fingerprint": "ab"})
    assert run.summary == {"env_steps": 5, "episode_return_mean": None, "fingerprint": "ab"}


def test_a_folder_that_vanished(run: RunDir) -> None:
    run.path.rename(run.path.parent / "moved")
    for call in (
        lambda: run.write_summary({}),
        lambda: run.note_best(1, 1.0),
    ):
        assert "could not write" in error_of(call)
