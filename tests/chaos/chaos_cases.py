"""The runs that are killed and resumed: every algorithm, both executors, memory, normalisation, replays, and
environments that are saved in every way (journal, fresh journal, vector journal, state)."""

from __future__ import annotations

from typing import Any

from shoal import A2C, DQN, PPO, REINFORCE, SAC, TD3, Compiled, Local, Rainbow, Trainer

STEPS = 1500
# ruff: noqa: C408  (keyword arguments read better as dict(...))
SMALL: dict[str, Any] = {"hidden": (16,)}
PPO_SMALL: dict[str, Any] = {"rollout_length": 16, "epochs": 2, "minibatches": 2, **SMALL}
REPLAYED: dict[str, Any] = {"rollout_length": 8, "batch_size": 8, "learning_starts": 200, **SMALL}
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
    # The replay wraps around within the run: 600 rows are kept of 1500.
    "dqn-cartpole": dict(
        algorithm=DQN(**REPLAYED, capacity=600, prioritized=True, n_step=3, importance_steps=1000),
        env="CartPole-v1",
        on=Local(envs=4, groups=2),
        **BOTH,
    ),
    "dqn-memory-cartpole": dict(
        algorithm=DQN(**REPLAYED, capacity=600, memory=8, burn_in=4, sequence_length=8, prioritized=True),
        env="CartPole-v1",
        on=Local(envs=4),
    ),
    "sac-pendulum": dict(algorithm=SAC(**REPLAYED, capacity=600), env="Pendulum-v1", on=Local(envs=2)),
    "dqn-compiled": dict(
        algorithm=DQN(**REPLAYED, capacity=600, prioritized=True),
        env="jax:CartPole-v1",
        on=Compiled(envs=4, groups=2),
    ),
    "rainbow-compiled": dict(
        algorithm=Rainbow(**REPLAYED, capacity=600, atoms=11, v_max=100.0),
        env="jax:CartPole-v1",
        on=Compiled(envs=4, groups=2),
    ),
    "td3-compiled": dict(
        algorithm=TD3(**REPLAYED, capacity=600), env="gymnax:Pendulum-v1", on=Compiled(envs=4), **BOTH
    ),
}


def make(case: dict[str, Any], run_dir: str | None) -> Trainer:
    options = {"seed": 3, "checkpoint_every": 150, "checkpoint_seconds": None, **case}
    return Trainer(options.pop("algorithm"), options.pop("env"), run_dir=run_dir, **options)
