"""What Sutton and Barto (2018) print, and what is known in closed form."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from textbook import gambler, jumping_gridworld, small_gridworld

from shoal.tabular import (
    evaluate,
    finite_horizon,
    greedy_actions,
    mdp_of,
    policy_iteration,
    sweeps,
    uniform_policy,
    value_iteration,
)

# Figure 4.1, left column; by symmetry the upper left half is enough.
FIGURE_4_1 = {
    0: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    1: [0.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0],
    2: [0.0, -1.7, -2.0, -2.0, -1.7, -2.0, -2.0, -2.0],
    3: [0.0, -2.4, -2.9, -3.0, -2.4, -2.9, -3.0, -2.9],
    10: [0.0, -6.1, -8.4, -9.0, -6.1, -7.7, -8.4, -8.4],
}


@pytest.mark.parametrize("k", FIGURE_4_1)
def test_example_4_1_after_k_sweeps(k: int) -> None:
    v = sweeps(small_gridworld(), uniform_policy(small_gridworld()), k)
    printed = np.array([*FIGURE_4_1[k], *FIGURE_4_1[k][::-1]])
    np.testing.assert_allclose(v, printed, atol=0.0501)  # the book cuts some off where others round


def test_example_4_1_in_the_end() -> None:
    exact = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    np.testing.assert_allclose(
        evaluate(small_gridworld(), uniform_policy(small_gridworld())), exact, atol=1e-9
    )
    np.testing.assert_allclose(sweeps(small_gridworld(), uniform_policy(small_gridworld()), 1000), exact)
    best = policy_iteration(small_gridworld())
    np.testing.assert_array_equal(best.value, [0, -1, -2, -3, -1, -2, -3, -2, -2, -3, -2, -1, -3, -2, -1, 0])


def test_example_3_5_the_random_policys_values() -> None:
    printed = [
        [3.3, 8.8, 4.4, 5.3, 1.5],
        [1.5, 3.0, 2.3, 1.9, 0.5],
        [0.1, 0.7, 0.7, 0.4, -0.4],
        [-1.0, -0.4, -0.4, -0.6, -1.2],
        [-1.9, -1.3, -1.2, -1.4, -2.0],
    ]
    v = evaluate(jumping_gridworld(), uniform_policy(jumping_gridworld())).reshape(5, 5)
    np.testing.assert_array_equal(v.round(1), printed)


@pytest.mark.parametrize("how", [policy_iteration, lambda mdp: value_iteration(mdp, 1e-9)], ids=["PI", "VI"])
def test_example_3_8_the_optimal_values_and_policies(how) -> None:
    printed = [
        [22.0, 24.4, 22.0, 19.4, 17.5],
        [19.8, 22.0, 19.8, 17.8, 16.0],
        [17.8, 19.8, 17.8, 16.0, 14.4],
        [16.0, 17.8, 16.0, 14.4, 13.0],
        [14.4, 16.0, 14.4, 13.0, 11.7],
    ]
    found = how(jumping_gridworld())
    np.testing.assert_array_equal(found.value.reshape(5, 5).round(1), printed)
    assert found.value[1] == pytest.approx(10 / (1 - 0.9**5), abs=1e-8)
    up, left, right, both, turn, every = {0}, {2}, {3}, {0, 3}, {0, 2}, {0, 1, 2, 3}
    arrows = [right, every, left, every, left, both, up, turn, left, left] + 3 * [both, up, turn, turn, turn]
    best = greedy_actions(found.q, 1e-7)
    assert [set(np.flatnonzero(row)) for row in best] == arrows


def test_example_4_3_the_gamblers_problem() -> None:
    found = value_iteration(gambler(0.4), 1e-9)
    assert found.error_bound is not None and found.error_bound <= 1e-9
    np.testing.assert_allclose(found.value[[25, 50, 75]], [0.16, 0.4, 0.64], atol=1e-9)
    exact = policy_iteration(gambler(0.4))
    np.testing.assert_allclose(exact.value, found.value, atol=2e-9)
    best = greedy_actions(exact.q, 1e-9)
    stakes = {s: {int(a) + 1 for a in np.flatnonzero(best[s])} for s in range(1, 100)}
    assert (
        stakes[50] == {50} and stakes[25] == {25} and stakes[75] == {25}
    )  # where the book's figure has spikes
    assert {1, 49} <= stakes[51] and {1} <= stakes[1]
    for s in range(1, 100):  # bold play is optimal for every capital (Dubins and Savage 1965)
        assert min(s, 100 - s) in stakes[s]


def test_with_a_fair_coin_every_stake_is_as_good() -> None:
    np.testing.assert_allclose(
        value_iteration(gambler(0.5), 1e-8).value[:100], np.arange(100) / 100, atol=1e-8
    )


def test_cliff_walking() -> None:
    found = policy_iteration(mdp_of("CliffWalking-v1", gamma=1.0))
    assert found.start_value == -13
    assert value_iteration(mdp_of("CliffWalking-v1", gamma=0.9), 1e-9).start_value == pytest.approx(
        -(1 - 0.9**13) / 0.1, abs=1e-8
    )


def played(policy: np.ndarray, episodes: int) -> float:
    """The share of FrozenLake8x8's episodes that reach the goal; policy [steps + 1, S] by steps left."""
    env = gymnasium.make("FrozenLake8x8-v1")
    won = 0.0
    for episode in range(episodes):
        state, _ = env.reset(seed=0 if episode == 0 else None)
        done, left = False, 200
        while not done:
            state, reward, terminated, truncated, _ = env.step(int(policy[left, state]))
            done, left = terminated or truncated, left - 1
            won += float(reward)
        assert left >= 0
    return won / episodes


def test_frozen_lake_8x8_has_the_success_rate_that_was_computed() -> None:
    mdp = mdp_of("FrozenLake8x8-v1", gamma=1.0)
    # Without a time limit the goal is reached for certain, by never stepping where a hole may follow.
    assert policy_iteration(mdp).start_value == pytest.approx(1.0, abs=1e-9)
    # Within the 200 steps of the registered environment, by what is best when so many are left:
    value, policy = finite_horizon(mdp, 200)
    rate = float(mdp.start @ value[200])
    assert rate == pytest.approx(0.91322, abs=1e-5)
    assert played(policy, 600) == pytest.approx(rate, abs=3 * np.sqrt(rate * (1 - rate) / 600))
    # A policy that does not look at the clock, that for gamma = 0.995, wins less often.
    stationary = value_iteration(mdp_of("FrozenLake8x8-v1", gamma=0.995), 1e-9)
    within = float(mdp.start @ sweeps(mdp, stationary.policy, 200))
    assert within == pytest.approx(0.89357, abs=1e-5)


def test_frozen_lake_4x4_is_won_with_14_in_17() -> None:
    assert policy_iteration(mdp_of("FrozenLake-v1", gamma=1.0)).start_value == pytest.approx(
        14 / 17, abs=1e-12
    )
