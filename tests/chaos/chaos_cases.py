"""The runs that are killed and resumed: every algorithm, both executors, memory, normalisation, and
environments that are saved in every way (journal, fresh journal, vector journal, state)."""

from __future__ import annotations

from typing import Any

from shoal import A2C, PPO, REINFORCE, Compiled, Local, Trainer

STEPS = 1500
# ruff: noqa: C408  (keyword arguments read better as dict(...))
SMALL: dict[str, Any] = {"hidden": (16,)}
PPO_SMALL: dict[str, Any] = {"rollout_length": 16, "epochs": 2, "minibatches": 2, **SMALL}
BOTH = {"normalize_observations": True, "scale_rewards": True}

CASES: dict[str, dict[str, Any]] = {
    "ppo-memory-cartpole": dict(
        algorithm=PPO(**PPO_SMALL, memory=8), env="CartPole-v1", on=Local(envs=4, groups=2), **BOTH
    ),
    "ppo-vector-cartpole": dict(algorithm=PPO(**PPO_SMALL), env="CartPole-v1", on=Local(envs=4), vector=True),
    "a2c-acrobot": dict(algorithm=A2C(**SMALL), env="Acrobot-v1", on=Local(envs=4)),
    "reinforce-lunarlander": dict(
        algorithm=REINFORCE(rollout_length=32, **SMALL), env="LunarLander-v3", on=Local(envs=2), **BOTH
    ),
    "ppo-halfcheetah": dict(
        algorithm=PPO(**PPO_SMALL), env="HalfCheetah-v5", on=Local(envs=2), time_limit=100, **BOTH
    ),
    "ppo-bipedalwalker": dict(algorithm=PPO(**PPO_SMALL), env="BipedalWalker-v3", on=Local(envs=2)),
    "a2c-memory-compiled": dict(
        algorithm=A2C(**SMALL, memory=8), env="jax:CartPole-v1", on=Compiled(envs=4, groups=2), **BOTH
    ),
    "ppo-compiled": dict(
        algorithm=PPO(**PPO_SMALL, anneal_steps=2000), env="jax:CartPole-v1", on=Compiled(envs=4), **BOTH
    ),
    "reinforce-compiled": dict(
        algorithm=REINFORCE(rollout_length=16, **SMALL), env="jax:GridWorld", on=Compiled(envs=4)
    ),
}


def make(case: dict[str, Any], run_dir: str | None) -> Trainer:
    options = {"seed": 3, "checkpoint_every": 150, "checkpoint_seconds": None, **case}
    return Trainer(options.pop("algorithm"), options.pop("env"), run_dir=run_dir, **options)
