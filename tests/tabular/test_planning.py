"""Operators and planning against brute force, and what must hold for every MDP."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import as_sparse, gambler, policies, some_mdp

from shoal.errors import ShoalError
from shoal.tabular import (
    MDP,
    evaluate,
    expectation,
    finite_horizon,
    greedy,
    greedy_actions,
    never_ending,
    optimality,
    policy_iteration,
    policy_return,
    policy_value,
    q_from_v,
    random_mdp,
    reachable,
    solve,
    sweeps,
    under,
    uniform_policy,
    v_from_q,
    value_iteration,
)

FEW = settings(max_examples=25, deadline=None, derandomize=True)
MDPS = st.builds(
    some_mdp,
    st.integers(0, 10_000),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    masked=st.booleans(),
    terminals=st.integers(0, 2),
)


def some_policy(mdp: MDP, seed: int = 0) -> np.ndarray:
    weights = np.random.default_rng(seed).random(mdp.reward.shape) + 0.01
    weights = weights if mdp.allowed is None else weights * mdp.allowed
    return weights / weights.sum(axis=1, keepdims=True)


def some_values(mdp: MDP, seed: int) -> np.ndarray:
    return np.where(mdp.terminal, 0.0, np.random.default_rng(seed).normal(size=mdp.states) * 5)


@given(mdp=MDPS)
@FEW
def test_the_value_of_a_policy_is_the_sum_of_its_rewards(mdp: MDP) -> None:
    policy = some_policy(mdp)
    transition, reward = np.zeros((mdp.states, mdp.states)), np.zeros(mdp.states)
    for s in range(mdp.states):  # once more, in loops
        for a in range(mdp.actions):
            transition[s] += policy[s, a] * mdp.transition[s, a]
            assert mdp.outcome is not None
            reward[s] += policy[s, a] * sum(
                mdp.transition[s, a, t] * mdp.outcome[s, a, t] for t in range(mdp.states)
            )
    expected, chance = np.zeros(mdp.states), np.eye(mdp.states)
    for k in range(3000 if mdp.gamma else 1):
        expected += mdp.gamma**k * chance @ reward
        chance = chance @ transition
    np.testing.assert_allclose(evaluate(mdp, policy), expected, atol=1e-9)
    np.testing.assert_allclose(sweeps(mdp, policy, 3000), expected, atol=1e-9)


@given(mdp=MDPS)
@FEW
def test_planning_finds_the_best_of_all_policies(mdp: MDP) -> None:
    every = np.stack([evaluate(mdp, policy) for policy in policies(mdp)])
    best = every.max(axis=0)
    exact = policy_iteration(mdp)
    np.testing.assert_allclose(exact.value, best, atol=1e-9)
    np.testing.assert_allclose(evaluate(mdp, exact.policy), best, atol=1e-9)
    assert exact.error_bound is not None and np.abs(exact.value - best).max() <= exact.error_bound + 1e-12
    for tolerance in (1.0, 1e-2, 1e-8):
        found = value_iteration(mdp, tolerance)
        assert found.error_bound is not None and found.error_bound <= tolerance
        assert np.abs(found.value - best).max() <= found.error_bound + 1e-12
        assert (best - evaluate(mdp, found.policy)).max() <= 2 * found.error_bound + 1e-12
        assert found.start_value == mdp.start @ found.value


@given(mdp=MDPS, seed=st.integers(0, 1000))
@FEW
def test_operators_contract_keep_order_and_shift(mdp: MDP, seed: int) -> None:
    u, v, policy = some_values(mdp, seed), some_values(mdp, seed + 1), some_policy(mdp, seed)
    for operator in (lambda x: optimality(mdp, x), lambda x: expectation(mdp, x, policy)):
        assert np.abs(operator(u) - operator(v)).max() <= mdp.gamma * np.abs(u - v).max() + 1e-12
        assert (operator(np.minimum(u, v)) <= operator(v) + 1e-12).all()
        np.testing.assert_allclose(operator(v + 3.0), operator(v) + mdp.gamma * 3.0, atol=1e-9)


@given(mdp=MDPS)
@FEW
def test_v_and_q_tell_of_each_other(mdp: MDP) -> None:
    policy = some_policy(mdp)
    v = evaluate(mdp, policy)
    np.testing.assert_allclose(v_from_q(q_from_v(mdp, v), policy), v, atol=1e-9)
    np.testing.assert_allclose(expectation(mdp, v, policy), v, atol=1e-9)
    best = policy_iteration(mdp)
    np.testing.assert_allclose(v_from_q(best.q), best.value, atol=1e-9)
    np.testing.assert_allclose(optimality(mdp, best.value), best.value, atol=1e-9)
    deterministic = greedy(best.q)
    one_hot = np.eye(mdp.actions)[deterministic]
    np.testing.assert_allclose(evaluate(mdp, deterministic), evaluate(mdp, one_hot), atol=1e-12)


@given(mdp=MDPS)
@FEW
def test_sparse_and_dense_agree(mdp: MDP) -> None:
    thin, policy, v = as_sparse(mdp), some_policy(mdp), some_values(mdp, 3)
    assert thin.sparse and not mdp.sparse
    np.testing.assert_allclose(q_from_v(thin, v), q_from_v(mdp, v))
    for p in (policy, greedy(q_from_v(mdp, v))):
        for a, b in zip(under(thin, p), under(mdp, p), strict=True):
            np.testing.assert_allclose(a.toarray() if hasattr(a, "toarray") else a, b)
        np.testing.assert_allclose(evaluate(thin, p), evaluate(mdp, p), atol=1e-9)
        np.testing.assert_allclose(sweeps(thin, p, 5), sweeps(mdp, p, 5))
    for how in (policy_iteration, value_iteration):
        np.testing.assert_allclose(how(thin).value, how(mdp).value, atol=1e-9)
    np.testing.assert_array_equal(reachable(thin), reachable(mdp))
    np.testing.assert_array_equal(never_ending(thin), never_ending(mdp))


@given(mdp=MDPS, steps=st.integers(0, 4))
@FEW
def test_the_best_of_few_steps_is_found(mdp: MDP, steps: int) -> None:
    def best(state: int, left: int) -> float:
        if left == 0:
            return 0.0
        allowed = range(mdp.actions) if mdp.allowed is None else np.flatnonzero(mdp.allowed[state])
        tails = np.array([best(s, left - 1) if left > 1 else 0.0 for s in range(mdp.states)])
        return max(mdp.reward[state, a] + mdp.gamma * mdp.transition[state, a] @ tails for a in allowed)

    small = min(steps, 3)
    value, policy = finite_horizon(mdp, small)
    np.testing.assert_allclose(value[small], [best(s, small) for s in range(mdp.states)], atol=1e-9)
    assert value.shape == policy.shape == (small + 1, mdp.states)


# gamma = 1


@given(seed=st.integers(0, 10_000), masked=st.booleans())
@FEW
def test_undiscounted_planning_where_every_policy_ends(seed: int, masked: bool) -> None:
    mdp = some_mdp(seed, gamma=0.9, masked=masked, terminals=1)
    # A chance of a tenth to end at once: the same values as with gamma = 0.9 and the rewards of before.
    ending = 0.9 * mdp.transition
    ending[:, :, -1] += 0.1
    undiscounted = MDP.of(ending, mdp.reward, gamma=1.0, terminal=mdp.terminal, allowed=mdp.allowed)
    expected = policy_iteration(replace(mdp, outcome=None)).value
    np.testing.assert_allclose(policy_iteration(undiscounted).value, expected, atol=1e-9)
    found = value_iteration(undiscounted, 1e-7)
    assert found.error_bound is not None and found.error_bound <= 1e-7
    assert np.abs(found.value - expected).max() <= found.error_bound
    assert solve(undiscounted).method == "policy-iteration" and solve(mdp).method == "value-iteration"


def chain(reward_of_staying: float) -> MDP:
    """Three states in a row: stay, or go on; going on costs 1, the last state is terminal."""
    transition = np.zeros((3, 2, 3))
    transition[[0, 1], 0, [0, 1]] = transition[[0, 1], 1, [1, 2]] = 1.0
    reward = np.array([[reward_of_staying, -1.0]] * 2 + [[0.0, 0.0]])
    return MDP.of(transition, reward, gamma=1.0, terminal=[2], start=0)


def test_gamma_1_says_what_it_needs() -> None:
    with pytest.raises(ShoalError, match="one can stay in state 0 for ever: take policy iteration"):
        value_iteration(chain(-1.0))
    with pytest.raises(ShoalError, match="from state 0 this one never does"):
        evaluate(chain(-1.0), np.array([0, 0, 0]))
    with pytest.raises(ShoalError, match="the optimal value is infinite"):
        policy_iteration(chain(0.5))
    no_end = MDP.of(np.ones((1, 1, 1)), [[1.0]], gamma=1.0)
    with pytest.raises(ShoalError, match="from state 0 no terminal state can be reached"):
        policy_iteration(no_end)
    for staying in (-1.0, 0.0):
        found = policy_iteration(chain(staying))
        np.testing.assert_array_equal(found.value, [-2, -1, 0])
        np.testing.assert_array_equal(found.policy[:2], [1, 1])
        assert found.error_bound is None
    assert not never_ending(gambler(0.4)).any() and never_ending(chain(0.0)).tolist() == [True, True, False]


def test_a_tolerance_finer_than_rounding_is_refused() -> None:
    with pytest.raises(ShoalError, match="tolerance=1e-16 is finer than rounding"):
        value_iteration(random_mdp(5, 2, 2, gamma=0.99, seed=0), 1e-16)
    with pytest.raises(ShoalError, match="greater than 0"):
        value_iteration(random_mdp(5, 2, 2, gamma=0.99, seed=0), 0.0)
    with pytest.raises(ShoalError, match="did you mean 'value-iteration'"):
        solve(random_mdp(5, 2, 2, gamma=0.99, seed=0), "value_iteration")


# The gradient


@pytest.mark.parametrize("mdp", [some_mdp(3, terminals=1), random_mdp(7, 3, 3, gamma=0.95, seed=0)])
def test_the_gradient_through_the_solve_is_that_of_the_policy_gradient_theorem(mdp: MDP) -> None:
    def both(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        policy = jax.nn.softmax(theta)
        return policy_return(mdp, policy), policy_value(mdp, policy)

    theta = np.random.default_rng(0).normal(size=mdp.reward.shape)
    policy = np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True)
    with jax.enable_x64(True):
        gradient, v = jax.jit(jax.grad(both, has_aux=True))(jnp.asarray(theta))
        gradient, v = np.asarray(gradient), np.asarray(v)
    np.testing.assert_allclose(v, evaluate(mdp, policy), atol=1e-9)
    advantage = q_from_v(mdp, v) - v[:, None]
    transition, _ = under(mdp, policy)
    visited = np.linalg.solve(np.eye(mdp.states) - mdp.gamma * transition.T, mdp.start)
    expected = visited[:, None] * policy * advantage
    np.testing.assert_allclose(gradient, np.where(mdp.terminal[:, None], 0.0, expected), atol=1e-9)


# What is refused


def arrays() -> dict:
    return {"transition": np.full((2, 2, 2), 0.5), "reward": np.zeros((2, 2)), "gamma": 0.9}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gamma": "a"}, "gamma must be of numbers: could not convert string to float: 'a'"),
        ({"gamma": [0.9, 0.8]}, r"gamma must have shape \[\], not \[2\]"),
        ({"gamma": 1.1}, "gamma must lie between 0 and 1, not 1.1"),
        ({"transition": np.full((2, 2, 2), 0.4)}, "state 0 and action 0 sum to 0.8, not to 1"),
        ({"transition": np.array([[[1.5, -0.5]] * 2] * 2)}, "negative"),
        ({"transition": "abc"}, "transition must be of numbers"),
        ({"reward": [[1.0], [1.0, 2.0]]}, "reward must be of numbers"),
        ({"start": ["a", "b"]}, "start must be of numbers"),
        ({"terminal": [0, 1]}, "all states are terminal"),
        ({"transition": np.full((2, 2), 0.5)}, r"shape \[S, A, S\], not \[2, 2\]"),
        ({"reward": np.zeros(3)}, r"for S = 2 and A = 2, not \[3\]"),
        ({"reward": np.full((2, 2), np.nan)}, "not finite"),
        ({"terminal": [1], "start": 1}, "begin in the terminal state 1"),
        ({"start": [0.5, 0.6]}, "sum to 1, not to 1.1"),
        ({"terminal": np.array([True])}, r"terminal must have shape \[2\]"),
        ({"terminal": [1, 9]}, "terminal must be among the states 0 ... 1, not 9"),
        ({"terminal": [-1]}, "terminal must be among the states 0 ... 1, not -1"),
        ({"terminal": [0.0, 1.0]}, r"terminal must give states by their numbers, not float64 \[0.0, 1.0\]"),
        ({"start": 2}, "start must be among the states 0 ... 1, not 2"),
        ({"start": -1}, "start must be among the states 0 ... 1, not -1"),
        ({"allowed": np.array([[True, True], [False, False]])}, "state 1 has no action"),
    ],
)
def test_what_is_no_mdp_is_refused(change: dict, said: str) -> None:
    MDP.of(**arrays())
    with pytest.raises(ShoalError, match=said) as error:
        MDP.of(**{**arrays(), **change})
    assert "\n" not in str(error.value)


def test_terminal_states_are_found_and_must_be_kept() -> None:
    transition = np.array([[[0.5, 0.5]], [[0.0, 1.0]]])
    assert MDP.of(transition, np.array([1.0, 0.0]), gamma=1.0).terminal.tolist() == [False, True]
    assert not MDP.of(transition, np.array([1.0, 1.0]), gamma=0.9).terminal.any()
    mdp = MDP.of(transition, np.array([1.0, 0.0]), gamma=1.0)
    with pytest.raises(ShoalError, match="kept by every action"):
        replace(mdp, reward=np.ones((2, 1)))


def test_policies_that_do_not_fit_are_refused() -> None:
    mdp = replace(MDP.of(**arrays()), allowed=np.array([[True, False], [True, True]]))
    for policy, said in (
        (np.array([0, 2]), "actions 0 ... 1"),
        (np.full((2, 2), 0.4), "sum to 1"),
        (np.zeros(3, int), "not int64"),
        (np.array([1, 0]), "takes action 1 in state 0, which does not allow it"),
    ):
        with pytest.raises(ShoalError, match=said):
            evaluate(mdp, policy)
    np.testing.assert_array_equal(uniform_policy(mdp), [[1.0, 0.0], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda mdp: q_from_v(mdp, np.zeros(3)),
            r"V must have shape \[2\], .* not \[3\]",
        ),
        (lambda mdp: optimality(mdp, np.zeros((2, 2))), r"V must have shape \[2\]"),
        (lambda mdp: sweeps(mdp, np.zeros(2, int), 1, v=np.zeros(3)), r"V must have shape \[2\]"),
        (lambda mdp: sweeps(mdp, np.zeros(2, int), 1.5), "k must be a whole number, got 1.5"),
        (lambda mdp: sweeps(mdp, np.zeros(2, int), -1), "k must be at least 0, got -1"),
        (lambda mdp: finite_horizon(mdp, -1), "steps must be at least 0, got -1"),
        (lambda mdp: greedy([1.0, 2.0]), r"Q must have shape \[S, A\], not \[2\]"),
        (lambda mdp: v_from_q(np.zeros((2, 2)), [[1, 0]]), r"probabilities \[2, 2\], not int64\[1, 2\]"),
        (lambda mdp: v_from_q(np.zeros((2, 2)), [0, 2]), "actions 0 ... 1"),
    ],
)
def test_what_does_not_fit_an_mdp_is_one_line(call: Any, said: str) -> None:
    with pytest.raises(ShoalError, match=said) as error:
        call(MDP.of(**arrays()))
    assert "\n" not in str(error.value)


def test_lists_will_do() -> None:
    assert greedy([[1, 2], [4, 3]]).tolist() == [1, 0]
    assert greedy_actions([[1, 2], [4, 3]]).tolist() == [[False, True], [True, False]]
    assert v_from_q([[1, 2], [4, 3]]).tolist() == [2, 4]
    assert v_from_q([[1, 2], [4, 3]], [[1, 0], [0, 1]]).tolist() == [1, 3]


def test_random_mdps_repeat_and_differ() -> None:
    one, same, other = (random_mdp(6, 2, 3, gamma=0.9, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.transition, same.transition)
    assert not np.array_equal(one.transition, other.transition)
    thin = random_mdp(6, 2, 3, gamma=0.9, seed=1, sparse=True)
    np.testing.assert_allclose(thin.rows.toarray(), one.rows)
    for wrong in (
        {"terminals": 3},
        {"terminals": -1},
        {"successors": 4},
        {"actions": 0},
        {"states": 2.5},
    ):
        with pytest.raises(ShoalError, match="random_mdp"):
            random_mdp(**{"states": 3, "actions": 1, "successors": 1, "gamma": 0.9, "seed": 0, **wrong})


@pytest.mark.slow
def test_a_million_states_are_solved_to_a_millionth_within_a_minute() -> None:
    mdp = random_mdp(1_000_000, 4, 5, gamma=0.99, seed=0)
    begun = time.process_time()
    found = value_iteration(mdp, 1e-6)
    assert time.process_time() - begun < 60
    assert found.error_bound is not None and found.error_bound <= 1e-6
    # The bound once more, from the result alone: |V* - V| <= max |T V - V| / (1 - gamma).
    assert np.abs(v_from_q(found.q) - found.value).max() / (1 - mdp.gamma) <= 4e-6
