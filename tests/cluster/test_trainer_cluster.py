"""A Trainer on a Cluster: the bits of Local, saved and moved between the two, evaluated on the side, and gone
when it is closed or could not be made."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from shoal import PPO, Cluster, GridWorld, Local, QLearning, ShoalError, Trainer, cli
from shoal.execution.cluster import session
from shoal.rundir import RunDir
from shoal.writers import read_rows

SMALL = PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,))
LOCAL = Local(envs=4, groups=4)
CLUSTER = Cluster(runners=2, envs=4, groups=4, cpus=0.5)
INLINE = Cluster(runners=2, envs=4, groups=4, inline=True)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the module: this hold on it keeps it while Trainers come and go."""
    with session.join(cpus=1):
        yield


def same_rows(one: Path, other: Path) -> None:
    """All but the timing; an evaluation is told at its own place."""

    def told(folder: Path) -> list[dict[str, Any]]:
        rows = read_rows(folder / "metrics.jsonl")
        return [
            {k: v for k, v in row.items() if not k.startswith(("timing/", "evaluation/"))} for row in rows
        ]

    assert told(one) == told(other) != []


def evaluations(folder: Path) -> dict[int, tuple[float, float]]:
    """Steps of the evaluated parameters -> mean and deviation."""
    rows = [r for r in read_rows(folder / "metrics.jsonl") if "evaluation/env_steps" in r]
    return {
        r["evaluation/env_steps"]: (r["evaluation/return_mean"], r["evaluation/return_std"]) for r in rows
    }


def test_equals_local(ray_here: None, tmp_path: Path) -> None:
    """In parameters, rows, evaluations and the best checkpoint; and it is used in the same way."""
    runs: dict[str, Trainer] = {}
    for name, on in (("local", LOCAL), ("cluster", CLUSTER)):
        with Trainer(
            SMALL, "CartPole-v1", on=on, run_dir=tmp_path / name, evaluate_every=90, evaluate_episodes=12
        ) as trainer:
            runs[name] = trainer
            last = trainer.fit(300)
            prints = trainer.fingerprint()
            whole = trainer.evaluate(3)
            action = trainer.compute_single_action(np.zeros(4, np.float32))
        if name == "local":
            expected = prints, whole, action
        else:
            assert (prints, whole, action) == expected
            assert last["timing/runners"] <= 2 and last["timing/collect"] > 0
            told = (
                last["evaluation/env_steps"],
                (last["evaluation/return_mean"], last["evaluation/return_std"]),
            )
    same_rows(tmp_path / "local", tmp_path / "cluster")
    here, there = evaluations(tmp_path / "local"), evaluations(tmp_path / "cluster")
    assert len(here) >= 3
    assert there | dict([told]) == here  # the last one was still under way when training ended
    best = [RunDir.read(tmp_path / name).best for name in runs]
    assert best[0] is not None and best[1] is not None
    assert (best[0].step, best[0].score) == (best[1].step, best[1].score)
    for trainer in runs.values():
        trainer.close()
        with pytest.raises(ShoalError, match="is closed"):
            trainer.train()


def test_saved_here_goes_on_there(ray_here: None, tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1", on=LOCAL) as trainer:
        trainer.train()
        here = trainer.save(tmp_path / "here")
        trainer.train()
        middle = trainer.fingerprint()
        trainer.train()
        end = trainer.fingerprint()
    with Trainer.restore(here, on=Cluster(runners=1, envs=4)) as trainer:
        assert trainer.config["on"]["name"] == "cluster" and trainer.config["on"]["groups"] == 4
        trainer.train()
        assert trainer.fingerprint() == middle
        there = trainer.save(tmp_path / "there")
    for on in (LOCAL, INLINE, None):
        with Trainer.restore(there, on=on) as trainer:
            trainer.train()
            assert trainer.fingerprint() == end


def test_an_evaluation_under_way_is_resumed(tmp_path: Path) -> None:
    def run(folder: Path, *goals: int) -> None:
        with Trainer(
            SMALL, "CartPole-v1", on=INLINE, run_dir=folder, evaluate_every=90, evaluate_episodes=2
        ) as trainer:
            trainer.fit(goals[0])
            assert trainer.save() == RunDir.read(folder).checkpoint_path(trainer.summary()["env_steps"])
        for goal in goals[1:]:
            with Trainer.resume(folder, on=replace(INLINE, runners=3)) as trainer:
                trainer.fit(goal)

    run(tmp_path / "whole", 400)
    run(tmp_path / "cut", 130, 250, 400)
    same_rows(tmp_path / "whole", tmp_path / "cut")
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "cut")
    whole, cut = (RunDir.read(tmp_path / name) for name in ("whole", "cut"))
    assert whole.best is not None and cut.best is not None and whole.best.score == cut.best.score
    assert cut.config["on"]["runners"] == 3


def test_parameters_under_evaluation_are_kept_over_a_resume(tmp_path: Path) -> None:
    run, on = tmp_path / "run", Cluster(runners=1, envs=2, groups=1, inline=True)
    often = {"checkpoint_every": 8, "checkpoint_seconds": None, "keep_checkpoints": 1}
    judged = {"evaluate_every": 100, "evaluate_episodes": 1}
    world = GridWorld(size=3, max_steps=20)
    with Trainer(QLearning(rollout_length=4), world, on=on, run_dir=run, **often, **judged) as trainer:
        while trainer._progress.env_steps < 150:
            trainer.train()
        waiting = trainer._judge.waiting
    with Trainer.resume(run) as trainer:
        trainer.fit(150)
    assert waiting is not None and json.loads((run / "best.json").read_text())["step"] == waiting


def test_what_may_not_change(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1", on=INLINE) as trainer:
        place = trainer.save(tmp_path / "place")
    for on, line in (
        (Cluster(envs=8, groups=4), "envs=8 would make this run another experiment: it has envs=4"),
        (Cluster(envs=4, groups=2), "groups=2 would make"),
        (Local(envs=4), "groups=1 would make"),
    ):
        with pytest.raises(ShoalError, match=line) as caught:
            Trainer.restore(place, on=on)
        assert "\n" not in str(caught.value)


def test_events_are_written_down(ray_here: None, tmp_path: Path) -> None:
    """A runner that is lost is told in events.jsonl, and nothing else changes."""
    mark = str(tmp_path / "mark")

    class Fragile(gym.Wrapper):
        """Takes its process down once: where the file is there, which it then removes."""

        def step(self, action: Any) -> Any:
            if self.env.unwrapped.state[0] > 0.05:  # type: ignore[attr-defined]
                with contextlib.suppress(FileNotFoundError):
                    Path(mark).unlink()
                    os._exit(1)
            return self.env.step(action)

    how: dict[str, Any] = {"wrappers": [Fragile], "journal": "journal", "sinks": ()}
    with Trainer(SMALL, "CartPole-v1", on=LOCAL, **how) as trainer:
        trainer.fit(100)
        expected = trainer.fingerprint()
    with Trainer(SMALL, "CartPole-v1", on=CLUSTER, run_dir=tmp_path / "run", **how) as trainer:
        Path(mark).touch()
        trainer.fit(100)
        assert trainer.fingerprint() == expected
    rows = read_rows(tmp_path / "run" / "events.jsonl")
    assert not Path(mark).exists() and any("lost" in row["event"] for row in rows)
    assert all(set(row) == {"iteration", "env_steps", "time", "event"} for row in rows)


def test_the_program(ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained and resumed from the command line, on as many runners as one likes, and the same bits."""
    sizes = ("--rollout-length", "8", "--epochs", "1", "--minibatches", "1", "--hidden", "8", "--envs", "2")
    cluster = ("--on", "cluster", "--runners", "2", "--cpus", "0.5")
    for name, where in (("there", cluster), ("here", ("--groups", "2"))):
        run = ("CartPole-v1", "--steps", "20", "--run-dir", str(tmp_path / name), *sizes, *where)
        assert cli.main(["train", "ppo", *run]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "groups: 2, one for each runner" in shown.out and "runners" in shown.out
    assert cli.main(["resume", str(tmp_path / "there"), "--steps", "50", "--runners", "1"]) == 0
    assert cli.main(["resume", str(tmp_path / "here"), "--steps", "50"]) == 0
    configs = [json.loads((tmp_path / name / "config.json").read_text())["on"] for name in ("there", "here")]
    assert configs[0]["runners"] == 1 and configs[0]["groups"] == configs[1]["groups"] == 2
    there, here = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("there", "here"))
    assert there["fingerprint"] == here["fingerprint"]
    assert cli.main(["evaluate", str(tmp_path / "there"), "--episodes", "2"]) == 0  # needs no Ray


PROGRAM = """
import json, os, sys
from pathlib import Path
from shoal import PPO, Cluster, ShoalError, Trainer
from shoal.execution.cluster import session

small = PPO(rollout_length=8, epochs=1, minibatches=1, hidden=(8,))

def folders():
    return [str(path) for path in Path("/tmp/ray").glob(f"session_*_{os.getpid()}")]

if __name__ == "__main__":
    on = Cluster(runners=1, envs=2, groups=1)
    try:
        Trainer(small, "CartPol-v1", on=on)
    except ShoalError as error:
        print(json.dumps([str(error), session._ray is None, folders()]), flush=True)
    trainer = Trainer(small, "CartPole-v1", on=on)
    print(json.dumps([trainer.train()["env_steps"] > 0, folders()]), flush=True)
"""


def processes_of(folder: str) -> list[str]:
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                command = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if folder.encode() in command:
                found.append(command.decode())
    return found


def test_nothing_is_left_running() -> None:
    """Not by a Trainer that could not be made, nor by one that nobody closed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    failed, trained = map(json.loads, done.stdout.splitlines())
    assert "did you mean 'CartPole-v1'?" in failed[0] and failed[1:] == [True, []]
    assert trained[0] and len(trained[1]) == 1
    deadline = time.monotonic() + 10
    left = lambda: [*processes_of(trained[1][0]), *map(str, Path(trained[1][0]).glob("*"))]  # noqa: E731
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left() == []
