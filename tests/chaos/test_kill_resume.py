"""2N steps = N steps, kill -9 at a random moment, resume: equal parameters and equal rows, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from chaos_cases import CASES, STEPS, make
from child import start

from shoal import Trainer
from shoal.rundir import RunDir


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("timing/")} for line in lines]


def kill_midway(name: str, run_dir: Path, rng: random.Random) -> None:
    """Start the case in a process of its own and kill it -9 once it has got somewhere."""
    wanted = rng.randrange(3, 10)
    process, told = start(name, str(run_dir))
    with told:
        while told.recv() < wanted:
            pass
        time.sleep(rng.random() * 0.05)  # anywhere: acting, learning, or in the middle of a save
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


# Whose replay, memory, or way of saving environments another case has too.
LONG = {
    "a2c-acrobot",
    "a2c-memory-compiled",
    "ppo-bipedalwalker",
    "ppo-compiled",
    "rainbow-compiled",
    "reinforce-compiled",
    "td3-compiled",
}
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CASES]


@pytest.mark.parametrize("name", EACH)
def test_resume_is_exact(name: str, tmp_path: Path) -> None:
    with make(CASES[name], str(tmp_path / "whole")) as whole:
        whole.fit(STEPS)
    rng = random.Random(name)
    kill_midway(name, tmp_path / "killed", rng)
    assert RunDir.read(tmp_path / "killed").summary is None
    with Trainer.resume(tmp_path / "killed") as resumed:
        assert resumed.summary()["env_steps"] < STEPS
        resumed.fit(STEPS)
    assert resumed.fingerprint() == whole.fingerprint()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    """Nothing was saved yet: the resume begins anew, and ends the same."""
    case = CASES["ppo-compiled"]
    with make(case, str(tmp_path / "whole")) as whole:
        whole.fit(STEPS)
    with pytest.raises(RuntimeError, match="killed"), make(case, str(tmp_path / "killed")) as killed:
        killed.train()
        raise RuntimeError("killed")  # a Trainer that is closed otherwise saves
    with Trainer.resume(tmp_path / "killed") as resumed:
        assert resumed.summary()["iteration"] == 0
        resumed.fit(STEPS)
    assert resumed.fingerprint() == whole.fingerprint()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.as_in_use
def test_two_kills_and_a_restore_elsewhere(tmp_path: Path) -> None:
    """Killed twice; and a checkpoint restored without its run directory goes on the same way."""
    name = "ppo-memory-cartpole"
    with make(CASES[name], None) as whole:
        whole.fit(STEPS)
    kill_midway(name, tmp_path / "run", random.Random(1))
    with Trainer.resume(tmp_path / "run") as resumed:
        for _ in range(3):
            resumed.train()
        place = resumed.save(tmp_path / "elsewhere")
    with Trainer.restore(place) as restored:
        restored.fit(STEPS)
    with Trainer.resume(tmp_path / "run") as again:
        again.fit(STEPS)
    assert restored.fingerprint() == whole.fingerprint() == again.fingerprint()
