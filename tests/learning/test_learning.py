"""The cases of benchmarks/learning.toml: what the algorithms reach, seed by seed."""

from __future__ import annotations

from pathlib import Path

import learning_cases as cases
import pytest

from shoal import PPO, Local, Trainer

CASES = cases.cases()


def test_the_defaults_of_ppo_balance_the_pole() -> None:
    """A quick sign of life on a Gymnasium environment; the slow tests say how well it ends."""
    with Trainer(PPO(), "CartPole-v1", seed=0, on=Local(envs=8)) as trainer:
        result = trainer.fit(80_000, target_return=195)
        assert trainer.reached(195), result


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_reaches_its_target(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    runs = [cases.run(case, seed, tmp_path / str(seed)) for seed in range(case.seeds)]
    assert cases.judged(case, runs) >= case.target, runs
