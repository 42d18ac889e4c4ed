"""The deep algorithms' values against those of the same finite MDP solved exactly.

python tests/learning/test_exact_values.py      prints the errors, which docs/results.md quotes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from shoal import A2C, DQN, PPO, Compiled, GridWorld, Trainer
from shoal.actor import actor_for
from shoal.tabular import MDP, MDPEnv, evaluate, random_mdp, reachable, value_iteration
from shoal.types import Observation
from shoal.value_distributions import categorical, expected_value, quantiles
from shoal.value_networks import q_network

STATES, ACTIONS, GAMMA = 12, 3, 0.9
BOUND = 0.04  # the greatest error, as a share of the greatest value


class World(NamedTuple):
    """An environment and the MDP that it is, but for time limits."""

    env: Any
    mdp: MDP

    @property
    def seen(self) -> np.ndarray:
        """bool [S]: the states that have values to learn."""
        return reachable(self.mdp) & ~self.mdp.terminal


def random_world(seed: int) -> World:
    """Every state follows every other, so that a policy that has become greedy still sees them all."""
    mdp = random_mdp(STATES, ACTIONS, STATES, gamma=GAMMA, seed=seed)
    return World(MDPEnv(mdp), mdp)


def grid_world() -> World:
    """Episodes end at the goal, and are cut after 30 steps, which values must look past. With slips, so that
    all cells are still seen by a policy that knows its way."""
    env = GridWorld(size=4, slip=0.2, step_cost=0.02, walls=(5,), max_steps=30)
    return World(env, env.mdp(GAMMA))


WORLDS = {**{str(seed): random_world(seed) for seed in range(3)}, "grid": grid_world()}

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
ACTORS = {
    "a2c": A2C(hidden=(), learning_rate=0.02, rollout_length=16, gae_lambda=0.9, entropy_coefficient=0.02),
    "ppo": PPO(hidden=(), learning_rate=0.02, rollout_length=32, epochs=4, entropy_coefficient=0.02),
}


def every_state(world: World) -> Observation:
    return Observation(np.arange(world.mdp.states, dtype=np.int32))


def share(error: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> float:
    """The greatest error over the states that are seen, as a share of the greatest value."""
    return float(np.abs(error)[seen].max() / np.abs(truth[seen]).max())


def q_values(algorithm: DQN, trainer: Trainer, world: World) -> np.ndarray:
    """Q of every state and action, [S, A]."""
    values = {
        "none": expected_value(),
        "quantile": quantiles(algorithm.atoms),
        "categorical": categorical(algorithm.atoms, algorithm.v_min, algorithm.v_max),
    }[algorithm.distributional]
    network = q_network(
        world.env.spec,
        world.mdp.actions,
        values.size,
        None,
        hidden=algorithm.hidden,
        activation=algorithm.activation,
        memory=0,
        dueling=algorithm.dueling,
        noisy_std=None,
    )
    states = world.mdp.states
    nothing = network.noise(np.zeros((states, 2), np.uint32))
    outputs, _ = network.step(
        trainer._run.learner.state.params, (), every_state(world), np.zeros(states, bool), nothing
    )
    return np.asarray(values.mean(outputs), np.float64)


def q_error(name: str, where: str) -> float:
    """Of Q, learned from actions at random, off the policy."""
    world, seed = WORLDS[where], int(where) if where.isdigit() else 0
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
    with Trainer(algorithm, world.env, seed=seed, on=Compiled(envs=16)) as trainer:
        trainer.fit(40_000)
        q = q_values(algorithm, trainer, world)
    truth = value_iteration(world.mdp).q
    return share(q - truth, truth, world.seen)


def v_errors(name: str, where: str) -> tuple[float, float]:
    """(of V against that of the policy that was learned, of that policy's V against V*)."""
    world, seed = WORLDS[where], int(where) if where.isdigit() else 0
    mdp = world.mdp
    algorithm: Any = dataclasses.replace(ACTORS[name], discount=GAMMA, anneal_steps=120_000)
    with Trainer(algorithm, world.env, seed=seed, on=Compiled(envs=32)) as trainer:
        trainer.fit(120_000)
        network, _ = actor_for(world.env.spec, algorithm)
        rows = jax.tree.map(lambda x: x[None], every_state(world))
        params = trainer._run.learner.state.params
        logits, values = network.unroll(params, (), rows, np.zeros((1, mdp.states), bool))
    policy = np.asarray(jax.nn.softmax(logits[0], axis=-1), np.float64)
    exact = evaluate(mdp, policy / policy.sum(axis=-1, keepdims=True))
    loss = exact - value_iteration(mdp).value
    return share(np.asarray(values[0]) - exact, exact, world.seen), share(loss, exact, world.seen)


Q_FAST, V_FAST = [("dqn", "0"), ("prioritized", "grid")], [("a2c", "grid"), ("ppo", "0")]


def cases(names: Iterable[str], fast: list[tuple[str, str]]) -> list[Any]:
    """Every name in every world; those that are not fast are slow."""
    every = product(names, WORLDS)
    return [case if case in fast else pytest.param(*case, marks=pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("name", "where"), cases(DQNS, Q_FAST))
def test_dqn_finds_the_optimal_values(name: str, where: str) -> None:
    assert q_error(name, where) < BOUND


@pytest.mark.parametrize(("name", "where"), cases(ACTORS, V_FAST))
def test_values_are_those_of_the_policy(name: str, where: str) -> None:
    """V of the policy that was learned is known by a linear solve; and the policy is nearly optimal."""
    error, loss = v_errors(name, where)
    assert error < BOUND
    assert loss < 0.1


def main() -> Iterator[str]:
    """A line for each algorithm and world."""
    for name in DQNS:
        for where in WORLDS:
            yield f"{name:<12} {where:<5} Q {q_error(name, where):.2%}"
    for name in ACTORS:
        for where in WORLDS:
            error, loss = v_errors(name, where)
            yield f"{name:<12} {where:<5} V {error:.2%}, policy {loss:.2%}"


if __name__ == "__main__":
    for line in main():
        print(line, flush=True)
