"""The MDPs behind environments say what the environments do."""

from __future__ import annotations

import tracemalloc
from typing import Any

import gymnasium
import numpy as np
import pytest

from shoal import GridWorld
from shoal.envs.toy_text import from_table
from shoal.errors import ShoalError
from shoal.tabular import evaluate, mdp_of, policy_iteration, reachable, value_iteration

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("FrozenLake-v1", {}, 16),
    ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}, 64),
    ("CliffWalking-v1", {}, 48),
    ("CliffWalking-v1", {"is_slippery": True}, 48),
    ("Taxi-v4", {}, 500),
    ("Taxi-v4", {"is_rainy": True}, 500),
]


@pytest.mark.parametrize(("name", "kwargs", "states"), CASES)
def test_is_the_environments_table(name: str, kwargs: dict[str, Any], states: int) -> None:
    mdp, bare = mdp_of(name, gamma=0.9, env_kwargs=kwargs), gymnasium.make(name, **kwargs).unwrapped
    assert mdp.states == states and mdp.actions == bare.action_space.n
    np.testing.assert_allclose(mdp.start, bare.initial_state_distrib)
    for s in np.flatnonzero(reachable(mdp) & ~mdp.terminal):
        for a in range(mdp.actions):
            chance = np.zeros(states)
            for p, n, _, done in bare.P[s][a]:
                chance[n] += p
                assert mdp.terminal[n] == done
            np.testing.assert_allclose(mdp.transition[s, a], chance)
            assert mdp.reward[s, a] == pytest.approx(sum(p * r for p, _, r, _ in bare.P[s][a]))


def test_what_was_computed_is_what_is_played() -> None:
    """The return of Taxi's optimal policy from each of 40 starts, step for step."""
    mdp = mdp_of("Taxi-v4", gamma=0.97)
    found, env = policy_iteration(mdp), gymnasium.make("Taxi-v4")
    for seed in range(40):
        begun, _ = env.reset(seed=seed)
        state, done, gained, weight = begun, False, 0.0, 1.0
        while not done:
            state, reward, terminated, truncated, _ = env.step(int(found.policy[state]))
            gained, weight, done = gained + weight * float(reward), weight * 0.97, terminated or truncated
        assert gained == pytest.approx(found.value[begun], abs=1e-9)


def test_a_state_that_is_entered_both_ways_is_told_apart() -> None:
    # From 0 one can enter 1 with or without ending there; 1 leads back to 0 for a reward of 2.
    table = {
        0: {0: [(1.0, 1, 1.0, False)], 1: [(0.5, 1, 0.0, True), (0.5, 1, 4.0, False)]},
        1: {0: [(1.0, 0, 2.0, False)], 1: [(1.0, 1, 0.0, False)]},
    }
    mdp = from_table(table, 0.5, start=[1.0, 0.0])
    assert mdp.states == 3 and mdp.terminal.tolist() == [False, False, True]
    np.testing.assert_allclose(mdp.transition[0], [[0, 1, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(mdp.reward[0], [1.0, 2.0])
    v = evaluate(mdp, np.array([1, 0, 0]))
    assert v[0] == pytest.approx(2 + 0.5 * 0.5 * v[1]) and v[1] == pytest.approx(2 + 0.5 * v[0])


def test_a_live_state_can_stop_where_it_is() -> None:
    """Terminating steps that keep their state: of a terminal state they say nothing, of a live one all."""
    table = {0: {0: [(1.0, 0, 1.0, True)], 1: [(1.0, 0, 0.0, True)]}}
    for start in (None, [1.0]):
        mdp = from_table(table, 0.9, start=start)
        assert mdp.terminal.tolist() == [False, True]
        np.testing.assert_allclose(policy_iteration(mdp).value, [1.0, 0.0])

    # Wait, or stop for what the state is worth; state 2 is terminal, and keeps itself as Gymnasium's do.
    worth = [0.1, 1.0]
    stopping = {s: {0: [(1.0, s + 1, 0.0, s == 1)], 1: [(1.0, s, worth[s], True)]} for s in (0, 1)}
    stopping[2] = {a: [(1.0, 2, -5.0, True)] for a in (0, 1)}
    for start in (None, [1.0, 0.0, 0.0]):
        mdp = from_table(stopping, 0.9, start=start)
        assert mdp.terminal.tolist() == [False, False, True, True]
        np.testing.assert_allclose(policy_iteration(mdp).value, [0.9, 1.0, 0.0, 0.0])


def test_an_episode_can_end_where_it_began() -> None:
    """The start is entered by a terminating step only, and is not terminal for that."""
    table = {0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: [(1.0, 0, 2.0, True)]}}
    mdp = from_table(table, 0.5, start=[1.0, 0.0])
    assert mdp.terminal.tolist() == [False, False, True]
    np.testing.assert_allclose(policy_iteration(mdp).value, [1.0, 2.0, 0.0])


def test_a_hole_that_no_step_leads_to_is_one() -> None:
    """Cell 15 has holes for neighbours. With gamma = 1 a state without an end would be refused."""
    lake = {"desc": ["SFFF", "FFFF", "FFHH", "GFHH"], "is_slippery": False}
    mdp = mdp_of("FrozenLake-v1", gamma=1.0, env_kwargs=lake)
    assert np.flatnonzero(mdp.terminal).tolist() == [10, 11, 12, 14, 15] and mdp.grid is not None
    assert policy_iteration(mdp).start_value == 1.0


@pytest.mark.parametrize(("name", "kwargs", "states"), CASES)
def test_sparse_is_the_same(name: str, kwargs: dict[str, Any], states: int) -> None:
    thin, mdp = (mdp_of(name, gamma=0.9, env_kwargs=kwargs, sparse=sparse) for sparse in (True, None))
    assert thin.sparse and not mdp.sparse and thin.grid == mdp.grid
    np.testing.assert_array_equal(thin.rows.toarray(), mdp.rows)
    np.testing.assert_allclose(thin.reward, mdp.reward, atol=1e-12)
    np.testing.assert_array_equal(thin.terminal, mdp.terminal)
    np.testing.assert_array_equal(thin.start, mdp.start)
    assert thin.outcome is not None and mdp.outcome is not None
    entries = thin.rows.tocoo()
    np.testing.assert_array_equal(thin.outcome, mdp.outcome.reshape(-1, states)[entries.row, entries.col])


def test_a_large_table_is_never_dense() -> None:
    """A line of 2500 states, to go along or to stop at any: 100 MB for each dense array."""
    states = 2500
    table = [
        [[(0.5, min(s + 1, states - 1), 0.0, False), (0.5, s, -1.0, False)], [(1.0, s, float(s), True)]]
        for s in range(states)
    ]
    tracemalloc.start()
    try:
        mdp = from_table(table, 0.9999)
        found = value_iteration(mdp, 1e-6)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mdp.sparse and mdp.states == states + 1 and most < 20e6
    assert found.value[-2] == states - 1


def test_all_ways_to_name_a_gridworld_give_its_mdp() -> None:
    fields = {"size": 3, "slip": 0.3, "step_cost": 0.1, "walls": (4,)}
    world = GridWorld(**fields)
    for env, kwargs in (
        (world, {}),
        ("jax:GridWorld", fields),
        ("shoal/GridWorld-v0", fields),
        (GridWorld, fields),
        (GridWorld(**fields, max_steps=7), {}),
    ):
        mdp = mdp_of(env, gamma=0.9, env_kwargs=kwargs)
        np.testing.assert_array_equal(mdp.transition, world.mdp(0.9).transition)
        assert mdp.gamma == 0.9 and mdp.grid == world.mdp().grid
    thin = mdp_of(world, gamma=0.9, sparse=True)
    np.testing.assert_allclose(thin.rows.toarray(), world.mdp(0.9).rows)
    np.testing.assert_allclose(policy_iteration(thin).value, policy_iteration(world.mdp(0.9)).value)
    np.testing.assert_allclose(thin.reward, world.mdp().reward)


def test_an_environment_made_already_will_do() -> None:
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    assert policy_iteration(mdp_of(env, gamma=0.9)).start_value == pytest.approx(0.9**5)


def test_what_has_no_known_mdp_is_refused() -> None:
    for env in ("CartPole-v1", "jax:CartPole-v1", "Blackjack-v1"):
        with pytest.raises(ShoalError, match="has no known MDP: known are GridWorld, FrozenLake"):
            mdp_of(env, gamma=0.9)
    with pytest.raises(ShoalError, match="fickle passenger is no part of its table"):
        mdp_of("Taxi-v4", gamma=0.9, env_kwargs={"fickle_passenger": True})


def test_wrappers_that_change_the_table_are_refused() -> None:
    """Those that only watch, or cut, are not."""
    from gymnasium.wrappers import RecordEpisodeStatistics, TransformReward

    lake = RecordEpisodeStatistics(gymnasium.make("FrozenLake-v1", max_episode_steps=7))
    plain = mdp_of("FrozenLake-v1", gamma=0.9)
    np.testing.assert_array_equal(mdp_of(lake, gamma=0.9).reward, plain.reward)
    changed = TransformReward(lake, lambda reward: 10 * reward)
    with pytest.raises(ShoalError, match="the wrapper TransformReward may change"):
        mdp_of(changed, gamma=0.9)
    np.testing.assert_array_equal(mdp_of(changed.unwrapped, gamma=0.9).reward, plain.reward)
