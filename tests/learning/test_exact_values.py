"""The deep algorithms' values against those of the same finite MDP solved exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from shoal import A2C, DQN, PPO, Compiled, Trainer
from shoal.actor import actor_for
from shoal.tabular.bellman import evaluate
from shoal.tabular.env import MDPEnv
from shoal.tabular.planning import value_iteration
from shoal.tabular.random import random_mdp
from shoal.types import Observation
from shoal.value_distributions import categorical, expected_value, quantiles
from shoal.value_networks import q_network

STATES, ACTIONS, GAMMA = 12, 3, 0.9
EVERY_STATE = Observation(np.arange(STATES, dtype=np.int32))
# Every state follows every other, so that a policy that has become greedy still sees them all.
WORLDS = {seed: random_mdp(STATES, ACTIONS, STATES, gamma=GAMMA, seed=seed) for seed in range(3)}

DQNS = {
    "dqn": DQN(hidden=(), learning_rate=0.05),
    # Prioritised drawing is without bias only where importance weights make good for all of it.
    "prioritized": DQN(hidden=(), learning_rate=0.05, double=True, prioritized=True, importance_exponent=1.0),
    "network": DQN(hidden=(32,), learning_rate=0.01, dueling=True),
    "quantile": DQN(hidden=(), learning_rate=0.05, distributional="quantile", atoms=16, huber_delta=0.01),
    "categorical": DQN(
        hidden=(), learning_rate=0.1, distributional="categorical", atoms=51, v_min=-3.0, v_max=12.0
    ),
}


def q_values(algorithm: DQN, trainer: Trainer, env: MDPEnv) -> np.ndarray:
    """Q of every state and action, [S, A]."""
    values = {
        "none": expected_value(),
        "quantile": quantiles(algorithm.atoms),
        "categorical": categorical(algorithm.atoms, algorithm.v_min, algorithm.v_max),
    }[algorithm.distributional]
    network = q_network(
        env.spec,
        ACTIONS,
        values.size,
        None,
        hidden=algorithm.hidden,
        activation=algorithm.activation,
        memory=0,
        dueling=algorithm.dueling,
        noisy_std=None,
    )
    nothing = network.noise(np.zeros((STATES, 2), np.uint32))
    outputs, _ = network.step(
        trainer._run.learner.state.params, (), EVERY_STATE, np.zeros(STATES, bool), nothing
    )
    return np.asarray(values.mean(outputs), np.float64)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("dqn", 0),
        ("prioritized", 0),
        *(
            pytest.param(name, seed, marks=pytest.mark.slow)
            for name in ("network", "quantile", "categorical")
            for seed in (0, 1)
        ),
        *(pytest.param(name, seed, marks=pytest.mark.slow) for name in DQNS for seed in (2,)),
    ],
)
def test_dqn_finds_the_optimal_values(name: str, seed: int) -> None:
    """From actions at random, off the policy: the greatest error of Q is below 4 % of the greatest value."""
    algorithm = dataclasses.replace(
        DQNS[name],
        discount=GAMMA,
        anneal_steps=40_000,
        epsilon_end=1.0,
        batch_size=128,
        train_every=8,
        target_every=50,
        max_grad_norm=None,
    )
    env = MDPEnv(WORLDS[seed])
    with Trainer(algorithm, env, seed=seed, on=Compiled(envs=16)) as trainer:
        trainer.fit(40_000)
        q = q_values(algorithm, trainer, env)
    truth = value_iteration(WORLDS[seed]).q
    assert np.abs(q - truth).max() < 0.04 * np.abs(truth).max()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize(
    "algorithm",
    [
        A2C(hidden=(), learning_rate=0.02, rollout_length=16, gae_lambda=0.9, entropy_coefficient=0.05),
        PPO(hidden=(), learning_rate=0.02, rollout_length=32, epochs=4, entropy_coefficient=0.05),
    ],
    ids=["A2C", "PPO"],
)
def test_values_are_those_of_the_policy(algorithm: Any, seed: int) -> None:
    """V of the policy that was learned is known by a linear solve: the greatest error is below 4 % of it, and
    the policy is nearly optimal."""
    mdp = WORLDS[seed]
    env = MDPEnv(mdp)
    algorithm = dataclasses.replace(algorithm, discount=GAMMA, anneal_steps=120_000)
    with Trainer(algorithm, env, seed=seed, on=Compiled(envs=32)) as trainer:
        trainer.fit(120_000)
        network, _ = actor_for(env.spec, algorithm)
        rows = jax.tree.map(lambda x: x[None], EVERY_STATE)
        logits, values = network.unroll(
            trainer._run.learner.state.params, (), rows, np.zeros((1, STATES), bool)
        )
    policy = np.asarray(jax.nn.softmax(logits[0], axis=-1), np.float64)
    exact = evaluate(mdp, policy / policy.sum(axis=-1, keepdims=True))
    assert np.abs(np.asarray(values[0]) - exact).max() < 0.04 * np.abs(exact).max()
    assert np.abs(exact - value_iteration(mdp).value).max() < 0.1 * np.abs(exact).max()
