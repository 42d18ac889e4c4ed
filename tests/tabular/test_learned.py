"""Learned tables against the exact ones, through the Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import REINFORCE, SARSA, Compiled, GridWorld, QLearning, Trainer
from shoal.keys import key_for
from shoal.spaces import Discrete
from shoal.tabular import MDP, MDPEnv, mdp_of, policy_iteration, random_mdp, reachable
from shoal.types import EnvSpec, Observation, Trajectory

pytestmark = pytest.mark.as_in_use  # much is computed
EXPLORING: dict[str, Any] = {"epsilon_end": 1.0, "rollout_length": 64, "discount": 0.8}


def learned(algorithm: Any, env: Any, steps: int, envs: int = 16) -> tuple[np.ndarray, float]:
    """(Q [S, A], mean return of the last 100 episodes)."""
    with Trainer(algorithm, env, seed=0, on=Compiled(envs=envs)) as trainer:
        result = trainer.fit(steps)
        policy = trainer.policy()
        return np.asarray(policy.params["q"]), float(result["episode_return_mean"])


def off(q: np.ndarray, mdp: MDP) -> float:
    """The largest error over the pairs that episodes meet, as a share of the largest |Q*|."""
    met = reachable(mdp) & ~mdp.terminal
    exact = policy_iteration(mdp).q
    return float(np.abs(q - exact)[met].max() / np.abs(exact[met]).max())


@pytest.mark.parametrize(
    "double", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["single", "double"]
)
def test_q_learning_converges_on_a_gridworld(double: bool) -> None:
    world = GridWorld(size=4, slip=0.1, step_cost=0.02, walls=(5,), max_steps=100)
    algorithm = QLearning(learning_rate=1.0, visit_exponent=0.75, double=double, **EXPLORING)
    assert off(learned(algorithm, world, 200_000)[0], world.mdp(0.8)) < 0.02


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 10))])
def test_q_learning_converges_on_random_mdps(seed: int) -> None:
    mdp = random_mdp(8, 3, 4, gamma=0.8, seed=seed, terminals=seed % 3)
    algorithm = QLearning(learning_rate=1.0, visit_exponent=0.75, **EXPLORING)
    assert off(learned(algorithm, MDPEnv(mdp, max_steps=100), 200_000)[0], mdp) < 0.025


S, A, GAMMA, ENVS, ROWS, LIMIT = 6, 3, 0.8, 64, 500, 20
TABLE = QLearning(learning_rate=1.0, visit_exponent=0.75, discount=GAMMA).bind(
    EnvSpec(id="test", observation=Discrete(S), action=Discrete(A))
)
LEARN = jax.jit(TABLE.learn)


def at_random(mdp: MDP, seed: int) -> Iterator[Trajectory]:
    """Fragments of ENVS environments that act at random, in episodes of at most LIMIT steps.

    In NumPy, since to compile an MDPEnv for each MDP takes long.
    """
    rng = np.random.default_rng(seed)
    below = np.cumsum(mdp.transition, axis=-1)
    state, over, left = rng.choice(S, ENVS, p=mdp.start), np.zeros(ENVS, bool), np.full(ENVS, LIMIT)
    first = over
    while True:
        obs, resets, actions, rewards, ends = [state], [first], [], [], []
        for _ in range(ROWS):
            action = rng.integers(0, A, ENVS)
            after = np.minimum((rng.random((ENVS, 1)) >= below[state, action]).sum(-1), S - 1)
            rewards.append(np.where(over, 0.0, mdp.reward[state, action]))
            # The row after an episode's end only resets.
            state, first = np.where(over, rng.choice(S, ENVS, p=mdp.start), after), over
            left = np.where(over, LIMIT, left - 1)
            ended = mdp.terminal[state]
            over = ended | (left == 0)
            for column, row in zip((obs, resets, actions, ends), (state, first, action, ended), strict=True):
                column.append(row)
        raw = np.array(actions, np.int32)
        yield Trajectory(
            obs=Observation(np.array(obs, np.int32)),
            first=np.array(resets),
            action=raw,
            reward=np.array(rewards, np.float32),
            terminated=np.array(ends),
            version=np.zeros((ROWS, ENVS), np.int32),
            extras={"raw_action": raw},
            carry=(),
        )


@given(seed=st.integers(0, 100_000), successors=st.integers(1, S), terminals=st.integers(0, 2))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_q_learning_converges_on_any_mdp(seed: int, successors: int, terminals: int) -> None:
    mdp = random_mdp(S, A, successors, gamma=GAMMA, seed=seed, terminals=terminals)
    state = TABLE.init(key_for(0, "init"))
    for fragment in islice(at_random(mdp, seed), 6):
        state = LEARN(state, fragment, key_for(0, "learn")).state
    assert off(np.asarray(state.params["q"][0]), mdp) < 0.05


def walk(mdp: MDP, q: np.ndarray) -> list[tuple[int, int]]:
    """The cells of CliffWalking that the greedy policy passes through."""
    cells, state = [], int(mdp.start.argmax())
    while len(cells) < 40:
        cells.append(divmod(state, 12))
        if mdp.terminal[state]:
            break
        state = int(mdp.transition[state, q[state].argmax()].argmax())
    return cells


def test_on_the_cliff_q_learning_takes_the_edge_and_sarsa_the_safe_path() -> None:
    """Sutton and Barto (2018), example 6.6, with a smaller learning rate and so more episodes."""
    mdp = mdp_of("CliffWalking-v1", gamma=1.0)
    how: dict[str, Any] = {"discount": 1.0, "epsilon_start": 0.1, "epsilon_end": 0.1}
    edge, q_return = learned(QLearning(**how), MDPEnv(mdp), 25_000, envs=1)
    safe, sarsa_return = learned(SARSA(**how), MDPEnv(mdp), 25_000, envs=1)
    expected, expected_return = learned(SARSA(expected=True, **how), MDPEnv(mdp), 25_000, envs=1)
    # Beside the cliff: the shortest way, whose values are right, but which one walks while exploring.
    assert walk(mdp, edge) == [(3, 0), *((2, c) for c in range(12)), (3, 11)]
    assert edge.max(axis=1)[36] == pytest.approx(-13, abs=0.2)
    for q in (safe, expected):
        path = walk(mdp, q)
        assert path[-1] == (3, 11) and len(path) > 14
        assert all(row < 2 for row, column in path if 2 <= column <= 9)
    # Online, while exploring, the safe way pays.
    assert q_return < -35 < -27 < min(sarsa_return, expected_return)


def test_reinforce_without_hidden_layers_keeps_a_table() -> None:
    spec = EnvSpec(id="test", observation=Discrete(7), action=Discrete(3))
    policy = REINFORCE(hidden=(), baseline=False).bind(spec).init(np.zeros(2, np.uint32)).params["policy"]
    assert {name: x.shape for name, x in policy["head"].items()} == {"kernel": (7, 3), "bias": (3,)}
    assert set(policy) == {"head"} or not any(policy[name] for name in policy if name != "head")
