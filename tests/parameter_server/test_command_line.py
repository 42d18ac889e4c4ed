"""`--on parameter-server`: flags, what is refused in one line, and where a run of it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal import A2C, A3C, Cluster, ParameterServer, ShoalError, Trainer, algorithms, cli, cli_cluster
from shoal.config import executor_from_json, executor_to_json

TINY = ["--rollout-length", "4", "--hidden", "8", "--sink", "--checkpoint-seconds", "None"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(list(words))
    return code, capsys.readouterr().err


def test_a_run_goes_on_with_other_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "run")
    on = ["--on", "parameter-server", "--inline", "--workers", "2", "--shards", "2", "--mode", "stale"]
    code = cli.main(["train", "a3c", "CartPole-v1", *on, "--steps", "64", "--run-dir", place, *TINY])
    assert code == 0
    assert "groups: 2, one for each worker" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["on"]
    assert recorded["name"] == "parameter-server"
    assert (recorded["workers"], recorded["shards"], recorded["mode"]) == (2, 2, "stale")
    assert cli.main(["resume", place, "--workers", "1", "--steps", "128"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["on"]["workers"] == 1
    capsys.readouterr()
    code, error = said(capsys, "resume", place, "--mode", "sync")
    assert (code, error.count("\n")) == (2, 1)
    assert "has mode='stale' and cannot go on with mode='sync'" in error
    code, error = said(capsys, "resume", place, "--on", "local")
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot go on on local" in error
    executor = cli_cluster.in_process(Path(place))
    assert isinstance(executor, ParameterServer)
    assert executor.inline and executor.in_groups == 2
    assert cli.main(["evaluate", place, "--episodes", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "parameter-server", "--runners", "2", "--inline"], "--runners is for --on cluster"),
        (["--on", "cluster", "--workers", "2", "--inline"], "--workers is for --on parameter-server"),
        (["--mode", "sync"], "--mode is for --on parameter-server, and this run is on local"),
        (["--server-staleness", "2"], "--server-staleness is for --on parameter-server"),
        (
            ["--on", "parameter-server", "--mode", "asink", "--inline"],
            "--mode: unknown value 'asink': did you mean 'async'",
        ),
        (["--on", "parameter-server", "--shards", "0", "--inline"], "shards must be at least 1"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = said(capsys, "train", "a2c", "CartPole-v1", "--run-dir", str(tmp_path / "run"), *words)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_settings_go_through_json() -> None:
    on = ParameterServer(workers=3, shards=2, mode="stale", staleness=4, envs=6, resources={"far": 1.0})
    again: Any = executor_from_json(json.loads(json.dumps(executor_to_json(on))))
    assert again == ParameterServer(**{**on.__dict__, "groups": 3})


def test_it_does_not_go_on_elsewhere(tmp_path: Path) -> None:
    with Trainer(A2C(hidden=(8,)), "CartPole-v1", on=ParameterServer(workers=2, inline=True)) as trainer:
        trainer.train()
        place = trainer.save(tmp_path / "saved")
    with pytest.raises(ShoalError, match="on parameter-server and cannot go on on cluster"):
        Trainer.restore(place, on=Cluster(runners=2, inline=True))


def test_a3c_is_a2c_with_other_settings() -> None:
    assert isinstance(A3C(), A2C)
    assert A3C().rollout_length == 5 and A3C(rollout_length=7).rollout_length == 7
    assert algorithms.load("a3c") is A2C and algorithms.default("a3c") == A3C()
