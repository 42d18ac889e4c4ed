"""Planning: the optimal values and policy of a finite MDP that is known.

value_iteration     any size, with a bound on the error of what it returns
policy_iteration    exact, and where episodes need not end also for gamma = 1
finite_horizon      the best that can be had in so many steps, and how
"""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from shoal.checks import number
from shoal.errors import ShoalError, did_you_mean
from shoal.tabular.bellman import TooLong, backup_rounding, checked, evaluate, greedy, q_from_v, v_from_q
from shoal.tabular.mdp import MDP
from shoal.tabular.structure import never_ending, proper_policy
from shoal.tabular.sweeping import Sweeps

_EPS = float(np.finfo(np.float64).eps)
_SWEEPS = 1_000_000  # of value iteration, beyond which something is wrong
_POLICIES = 1000  # of policy iteration, likewise


class Solution(NamedTuple):
    """value: V [S]. q: [S, A], one backup of it. policy: int [S], greedy in the last iteration.

    error_bound: no value is further than this from V*, rounding included; the policy's own value is within
    twice this of V*. None where nothing bounds it (see `policy_iteration`). start_value: the mean of V where
    episodes begin. method, iterations: how it was found.
    """

    value: np.ndarray
    q: np.ndarray
    policy: np.ndarray
    start_value: float
    error_bound: float | None
    iterations: int
    method: str


def solve(mdp: MDP, method: str = "auto", tolerance: float = 1e-6) -> Solution:
    """By the method named; "auto" is value iteration, for gamma = 1 policy iteration. Raises ShoalError for
    an unknown name, and as the methods do."""
    if method == "auto":
        method = "policy-iteration" if mdp.gamma == 1.0 else "value-iteration"
    if method == "value-iteration":
        return value_iteration(mdp, tolerance)
    if method == "policy-iteration":
        return policy_iteration(mdp)
    raise ShoalError(f"unknown method {method!r}: {did_you_mean(method, METHODS)}")


METHODS = ("auto", "value-iteration", "policy-iteration")


def value_iteration(mdp: MDP, tolerance: float = 1e-6, *, max_iterations: int = _SWEEPS) -> Solution:
    """Sweeps of Bellman's optimality operator until no value can be further than `tolerance` from V*.

    With d = T V - V, V* lies between T V + c min(d) and T V + c max(d), c = gamma / (1 - gamma) (MacQueen
    1966; Porteus 1971; Puterman 1994, section 6.6), and so does the value of the policy that is greedy for V.
    What is returned is the middle. The distance of the two shrinks with the *span* of d, which where
    states soon forget where they began falls much faster than gamma^k.

    With gamma = 1 every policy must be proper; c is then the longest expected time to the end, less 1.
    Raises ShoalError where one is not, and for a tolerance that is finer than rounding.
    """
    if not 0.0 < tolerance < np.inf:
        raise ShoalError(f"tolerance must be greater than 0 and finite, not {tolerance:g}")
    ahead = steps_ahead(mdp)
    if ahead is None:
        raise ShoalError(
            "with gamma = 1, value iteration can bound its error only where every policy ends the episode, "
            f"but one can stay in state {int(np.argmax(never_ending(mdp)))} for ever: "
            "take policy iteration, or gamma < 1"
        )
    factor, rounding = np.asarray(ahead - 1.0), backup_rounding(mdp) * float(np.max(ahead))
    sweep, half = Sweeps(mdp), np.inf
    for iteration in range(1, max_iterations + 1):
        low, high, largest = sweep()
        half = float(factor.max()) * (high - low) / 2
        returned = largest + float(factor.max()) * max(abs(high), abs(low))  # no value is larger than that
        noise = rounding * max(returned, _EPS)
        if noise > tolerance and (half <= tolerance or rounding * largest > tolerance):
            raise ShoalError(
                f"tolerance={tolerance:g} is finer than rounding, about {noise:.1e} here: take a larger one"
            )
        if half + noise <= tolerance:
            value = np.where(mdp.terminal, 0.0, sweep.value + factor * (high + low) / 2)
            policy = greedy(sweep.q)  # of the sweep that the bounds are about
            return _solution(
                mdp, value, q_from_v(mdp, value), policy, half + noise, iteration, "value-iteration"
            )
    raise ShoalError(
        f"value iteration is not done after {max_iterations} sweeps; the error may be {half:.1e}"
    )


def policy_iteration(
    mdp: MDP, policy: np.ndarray | None = None, *, max_iterations: int = _POLICIES
) -> Solution:
    """Howard's policy iteration: evaluate exactly, act greedily, until nothing is better.

    policy: where to begin, int [S]; None: a proper one for gamma = 1, else that which rewards itself at once.
    An action is changed only for one that is better by more than rounding.

    With gamma = 1 a terminal state must be reachable from every state. The result is then the best among
    the policies that end the episode with probability 1; the best of all where the others
    lose without end, as they do where every step costs something, or where V* >= 0 for all states. Its
    error has a bound only where *every* policy is proper. Raises ShoalError where episodes cannot end, where
    a policy gains without end, and where one lasts too long for float64.
    """
    if policy is None:
        reward = mdp.reward if mdp.allowed is None else np.where(mdp.allowed, mdp.reward, -np.inf)
        policy = proper_policy(mdp) if mdp.gamma == 1.0 else greedy(reward)
    policy = np.array(checked(mdp, policy))
    if policy.ndim != 1:
        raise ShoalError("policy_iteration begins with one action for each state, int [S]")
    for iteration in range(1, max_iterations + 1):
        try:
            value = evaluate(mdp, policy)
        except TooLong:
            raise
        except ShoalError as error:
            if iteration == 1:
                raise
            raise ShoalError(f"with gamma = 1 the optimal value is infinite: {error}") from error
        q = q_from_v(mdp, value)
        gain = v_from_q(q) - v_from_q(q, policy)
        better = gain > 1e-10 * max(1.0, float(np.abs(value).max()))
        if not better.any():
            bound = _bound(mdp, value, q)
            return _solution(mdp, value, q, policy, bound, iteration, "policy-iteration")
        policy = np.where(better, greedy(q), policy)
    raise ShoalError(f"policy iteration is not done after {max_iterations} policies")


def finite_horizon(mdp: MDP, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(V [steps + 1, S], policy int [steps + 1, S]): V[k] is the best expected return of k steps, policy[k]
    what to do first when k are left (policy[0] means nothing). Any gamma will do."""
    number("steps", steps, 0, Integral)
    value = np.zeros((steps + 1, mdp.states))
    policy = np.zeros((steps + 1, mdp.states), np.int64)
    for k in range(1, steps + 1):
        q = q_from_v(mdp, value[k - 1])
        value[k], policy[k] = v_from_q(q), greedy(q)
    return value, policy


def steps_ahead(mdp: MDP) -> Any:
    """How much a reward of 1 in every step is worth at most: 1 / (1 - gamma), or for gamma = 1 the longest
    expected time [S] until the episode ends; None where that is infinite."""
    if mdp.gamma < 1.0:
        return 1.0 / (1.0 - mdp.gamma)
    if not mdp.terminal.any() or never_ending(mdp).any():
        return None
    clock = np.where(mdp.terminal, 0.0, 1.0)[:, None].repeat(mdp.actions, axis=1)
    timed = replace(mdp, reward=clock, outcome=None)
    policy = greedy(clock if mdp.allowed is None else np.where(mdp.allowed, clock, -np.inf))
    for _ in range(_POLICIES):
        time = evaluate(timed, policy)
        q = q_from_v(timed, time)
        better = v_from_q(q) > v_from_q(q, policy) + 1e-10 * max(1.0, float(time.max()))
        if not better.any():
            return np.where(mdp.terminal, 1.0, time)
        policy = np.where(better, greedy(q), policy)
    raise ShoalError(f"the longest time of an episode is not found after {_POLICIES} policies")


def _bound(mdp: MDP, value: np.ndarray, q: np.ndarray) -> float | None:
    """How far V may be from V*, by one backup of it; None where episodes may last for ever, or nearly so."""
    try:
        ahead = steps_ahead(mdp)
    except TooLong:
        return None
    if ahead is None:
        return None
    off = float(np.abs(v_from_q(q) - value).max()) + backup_rounding(mdp) * float(np.abs(value).max())
    return off * float(np.max(ahead))


def _solution(
    mdp: MDP,
    value: np.ndarray,
    q: np.ndarray,
    policy: np.ndarray,
    error_bound: float | None,
    iterations: int,
    method: str,
) -> Solution:
    return Solution(value, q, policy, float(mdp.start @ value), error_bound, iterations, method)
