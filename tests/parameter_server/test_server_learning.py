"""A3C learns what A2C learns, also with gradients of which a small part travels."""

from __future__ import annotations

from typing import Any

import pytest

from shoal import A2C, A3C, Local, ParameterServer, Trainer

pytestmark = [pytest.mark.slow, pytest.mark.as_in_use]
STEPS = {"CartPole-v1": 400_000, "Acrobot-v1": 200_000}
ON = ParameterServer(workers=2, groups=4, envs=32, shards=2, inline=True)


def settings(env: str) -> dict[str, Any]:
    """Those of the case `a2c-cartpole` of benchmarks/learning.toml."""
    how = {"rollout_length": 32, "gae_lambda": 0.95, "learning_rate": 2e-3, "anneal_steps": STEPS[env]}
    return how | {"shared": False, "max_grad_norm": 0.5}


def reached(algorithm: Any, env: str, on: Any, seed: int, target: float) -> bool:
    """Whether the mean of 100 training episodes reaches the target in time."""
    with Trainer(algorithm, env, seed=seed, on=on, scale_rewards=True) as trainer:
        trainer.fit(STEPS[env], target_return=target)
        return trainer.reached(target)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env", "target"), [("CartPole-v1", 475.0), ("Acrobot-v1", -100.0)])
def test_a3c_reaches_what_a2c_reaches(env: str, target: float, seed: int) -> None:
    if seed == 0:
        assert reached(A2C(**settings(env)), env, Local(envs=32), seed, target)
    assert reached(A3C(**settings(env)), env, ON, seed, target)


@pytest.mark.parametrize("mode", ["async", "stale", "sync"])
def test_a3c_on_ray(mode: Any) -> None:
    on = ParameterServer(workers=2, groups=4, envs=32, shards=2, cpus=0.5, mode=mode)
    assert reached(A3C(**settings("CartPole-v1")), "CartPole-v1", on, 0, 475.0)


@pytest.mark.parametrize("seed", range(2))
def test_a_hundredth_of_each_gradient_is_enough(seed: int) -> None:
    on = ParameterServer(**{**ON.__dict__, "compression": "top-k", "keep": 0.01})
    assert reached(A3C(**settings("CartPole-v1")), "CartPole-v1", on, seed, 475.0)
