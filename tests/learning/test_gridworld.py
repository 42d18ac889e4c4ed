"""On a gridworld the optimal return is known, and all algorithms reach it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal import A2C, PPO, REINFORCE, Compiled, Trainer

COST, SIZE = 0.02, 4
OPTIMAL = 1 - COST * 2 * (SIZE - 1)  # the shortest way takes 2 * (SIZE - 1) steps


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [
        (PPO(rollout_length=32, learning_rate=3e-3, epochs=4), 40_000),
        (A2C(learning_rate=3e-3), 60_000),
        (REINFORCE(rollout_length=64, learning_rate=1e-2), 60_000),
        (REINFORCE(rollout_length=64, learning_rate=1e-2, baseline=False), 120_000),
    ],
    ids=["PPO", "A2C", "REINFORCE", "REINFORCE-without-baseline"],
)
def test_reaches_the_optimal_return(algorithm: Any, steps: int) -> None:
    how = {"size": SIZE, "step_cost": COST, "max_steps": 50}
    with Trainer(algorithm, "jax:GridWorld", seed=0, on=Compiled(envs=16), env_kwargs=how) as trainer:
        result = trainer.fit(steps)
        greedy = trainer.evaluate(10)
    assert greedy.mean == pytest.approx(OPTIMAL, abs=1e-5)
    assert result["episode_return_mean"] > OPTIMAL - 0.1
