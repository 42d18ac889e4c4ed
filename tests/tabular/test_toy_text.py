"""The MDPs behind environments say what the environments do."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from shoal import GridWorld
from shoal.envs.toy_text import from_table
from shoal.errors import ShoalError
from shoal.tabular import evaluate, mdp_of, policy_iteration, reachable

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
    thin = world.mdp(0.9, sparse=True)
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
