"""What float64 cannot tell is said, and bounds hold also where numbers are hardly any good."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array
from textbook import as_sparse

from shoal.errors import ShoalError
from shoal.tabular import MDP, evaluate, policy_iteration, policy_value, value_iteration


def chain(states: int, forward: float) -> MDP:
    """The last state is the end; else a step goes forward, or back by one. Each costs 1."""
    transition = np.zeros((states + 1, 1, states + 1))
    for s in range(states):
        transition[s, 0, s + 1] += forward
        transition[s, 0, max(s - 1, 0)] += 1.0 - forward
    return MDP.of(transition, np.full(states + 1, -1.0), gamma=1.0, terminal=[states], start=0)


def exact_time(states: int, forward: float) -> Fraction:
    """Of an episode of `chain`: a step from s to s + 1 takes 1 / p + q / p times as long as that before."""
    p = Fraction(forward)
    q = Fraction(1.0 - forward)
    p, q = p / (p + q), q / (p + q)
    step, total = Fraction(0), Fraction(0)
    for _ in range(states):
        step = (1 + q * step) / p
        total += step
    return total


@pytest.mark.parametrize("sparse", [False, True])
def test_long_episodes_are_worth_what_they_are_or_refused(sparse: bool) -> None:
    for states in (2, 4, 8, 10):
        mdp = chain(states, 0.1)
        found = policy_iteration(as_sparse(mdp) if sparse else mdp)
        assert found.error_bound is not None
        assert abs(Fraction(found.value[0]) + exact_time(states, 0.1)) <= Fraction(found.error_bound)
        assert found.error_bound < 1e-3 * -found.value[0]
    for states in (18, 20, 24, 40):
        mdp = chain(states, 0.1)
        with pytest.raises(ShoalError, match="last too long for float64"):
            policy_iteration(as_sparse(mdp) if sparse else mdp)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("solve", [policy_iteration, value_iteration])
def test_an_exit_that_vanishes_in_rounding(sparse: bool, solve: object) -> None:
    mdp = MDP.of([[[1.0, 1e-17]], [[0.0, 1.0]]], [[-1.0], [0.0]], gamma=1.0, terminal=[1])
    with pytest.raises(ShoalError, match="last too long for float64"):
        solve(as_sparse(mdp) if sparse else mdp)  # type: ignore[operator]


@pytest.mark.parametrize("gamma", [0.9, 0.99, 0.999])
def test_probabilities_that_nearly_sum_to_1(gamma: float) -> None:
    """Typed with nine digits; both methods mean the same MDP, and know how well."""
    row = [0.333333331, 0.333333331, 0.333333332]
    mdp = MDP.of(np.tile(row, (3, 1, 1)), np.ones(3), gamma=gamma)
    swept, solved = value_iteration(mdp, 1e-8), policy_iteration(mdp)
    assert swept.error_bound is not None and solved.error_bound is not None
    true = 1.0 / (1.0 - Fraction(gamma))
    for found in (swept, solved):
        assert all(abs(Fraction(v) - true) <= Fraction(found.error_bound or 0.0) for v in found.value)
        assert found.error_bound is not None and found.error_bound <= 1e-8


@pytest.mark.parametrize("junk", [(1.0, 0.0), (np.nan, -3.0)])
@pytest.mark.parametrize("form", [np.array, lambda t: csr_array(t.reshape(4, 2))])
def test_transitions_of_actions_that_are_not_allowed_mean_nothing(
    junk: tuple[float, float], form: Any
) -> None:
    allowed = [[True, True], [True, False]]
    transition = np.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], junk]])
    mdp = MDP.of(form(transition), [[1.0, 2.0], [0.0, 5.0]], gamma=1.0, allowed=allowed)
    assert mdp.terminal.tolist() == [False, True]
    assert value_iteration(mdp).value.tolist() == [2.0, 0.0]


def test_rewards_of_actions_that_are_not_allowed_mean_nothing() -> None:
    allowed = [[True, False], [True, True]]
    transition = [[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]
    mdp = MDP.of(transition, [[1.0, np.nan], [0.0, 0.0]], gamma=0.9, terminal=[1], allowed=allowed)
    policy = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert evaluate(mdp, policy).tolist() == policy_value(mdp, policy).tolist() == [1.0, 0.0]
