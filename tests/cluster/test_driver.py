"""The driver of a cluster run is killed with -9: `resume` goes on, in synchronous plans bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shoal import DQN, PPO, Cluster, Local, Trainer
from shoal.algorithms.impala import IMPALA
from shoal.execution.cluster import session

STEPS = 4000
SMALL: dict[str, Any] = {"hidden": (16,)}
CASES: dict[str, dict[str, Any]] = {
    "ppo": {
        "algorithm": PPO(rollout_length=16, epochs=1, minibatches=2, memory=8, **SMALL),
        "normalize_observations": True,
        "scale_rewards": True,
    },
    "dqn": {
        "algorithm": DQN(
            rollout_length=8,
            batch_size=8,
            learning_starts=200,
            prioritized=True,
            n_step=3,
            capacity=1600,
            **SMALL,
        ),
    },
    "impala": {"algorithm": IMPALA(rollout_length=16, **SMALL)},
}


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for what is resumed; what is killed has its own."""
    with session.join(cpus=2):
        yield


def make(name: str, on: Any, run_dir: Path | None) -> Trainer:
    return Trainer(env="CartPole-v1", on=on, run_dir=run_dir, checkpoint_every=500, sinks=(), **CASES[name])


def on_ray(runners: int = 2) -> Cluster:
    return Cluster(runners=runners, envs=8, groups=4, cpus=0.5)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("timing/")} for line in lines]


def kill_midway(name: str, run_dir: Path) -> None:
    command = [sys.executable, __file__, name, str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 6:
                break
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", [pytest.param("ppo", marks=pytest.mark.slow), "dqn"])
def test_a_synchronous_run_goes_on_as_if_nothing_had_happened(
    name: str, ray_here: None, tmp_path: Path
) -> None:
    """Against Local, which needs no Ray; resumed on another number of runners."""
    with ThreadPoolExecutor() as beside:  # starting a Ray is mostly waiting
        killing = beside.submit(kill_midway, name, tmp_path / "killed")
        with make(name, Local(envs=8, groups=4), tmp_path / "whole") as whole:
            whole.fit(STEPS)
        killing.result()
    with Trainer.resume(tmp_path / "killed", on=on_ray(runners=1)) as resumed:
        assert resumed.summary()["env_steps"] < STEPS
        resumed.fit(STEPS)
        assert resumed.fingerprint() == whole.fingerprint()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_an_asynchronous_run_goes_on_from_its_checkpoint(ray_here: None, tmp_path: Path) -> None:
    kill_midway("impala", tmp_path / "killed")
    with Trainer.resume(tmp_path / "killed") as resumed:
        before = resumed.summary()
        assert 0 < before["env_steps"] < STEPS
        resumed.fit(STEPS)
        assert resumed.summary()["episodes"] > before["episodes"]
    steps = [row["env_steps"] for row in rows(tmp_path / "killed")]
    assert steps == sorted(set(steps)) and steps[-1] >= STEPS


if __name__ == "__main__":
    with make(sys.argv[1], on_ray(), Path(sys.argv[2])) as trainer:
        trainer.fit(10**6, on_result=lambda result: print(result["iteration"], flush=True))
