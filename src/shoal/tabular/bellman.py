"""Bellman's operators, V and Q, and the exact value of a policy (Sutton and Barto 2018, chapters 3 and 4).

Shapes: V [S], Q [S, A]; a policy is int [S], one action for each state, or float [S, A], probabilities. All
in float64 NumPy; `shoal.tabular.gradient` has what JAX is to differentiate. Actions that are not allowed
have Q = -inf. The value of a terminal state is 0.
"""

from __future__ import annotations

import functools
import warnings
from numbers import Integral
from typing import Any

import numpy as np

from shoal.checks import number
from shoal.errors import ShoalError
from shoal.tabular.mdp import MDP, off_one
from shoal.tabular.structure import check_proper

_EPS = float(np.finfo(np.float64).eps)
_MOST_OFF = 1e-3  # the relative error of a policy's value, above which it is none


class TooLong(ShoalError):
    """Episodes of a policy that last so long that float64 cannot tell what they are worth."""


def q_from_v(mdp: MDP, v: np.ndarray) -> np.ndarray:
    """Q(s, a) = r(s, a) + gamma * E[V(s')]: [S, A]."""
    _check_values(mdp, v)
    q = mdp.expected(v)
    q *= mdp.gamma
    q += mdp.reward
    if mdp.allowed is not None:
        q[~mdp.allowed] = -np.inf
    return q


def v_from_q(q: np.ndarray, policy: np.ndarray | None = None) -> np.ndarray:
    """The mean of Q over the policy's actions, or its maximum where no policy is given: [S]."""
    q = _q(q)
    if policy is None:
        # Column by column: a reduction over an axis as short as A is several times slower.
        return functools.reduce(np.maximum, q.T) if q.shape[1] > 1 else q[:, 0].copy()
    return _mean(q, _of_size(policy, *q.shape))


def _mean(q: np.ndarray, policy: np.ndarray) -> np.ndarray:
    if policy.ndim == 1:
        return np.take_along_axis(q, policy[:, None], axis=1)[:, 0]
    return np.asarray((policy * np.where(policy > 0, q, 0.0)).sum(axis=1))


def expectation(mdp: MDP, v: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Bellman's expectation operator, T_pi V: the reward of one step under the policy, and then V. [S]"""
    return _mean(q_from_v(mdp, v), checked(mdp, policy))


def optimality(mdp: MDP, v: np.ndarray) -> np.ndarray:
    """Bellman's optimality operator, T V: the best that one step and then V can give. [S]"""
    return v_from_q(q_from_v(mdp, v))


def greedy(q: np.ndarray) -> np.ndarray:
    """The best action of each state, the first of them where several are exactly equal: int [S]."""
    return _q(q).argmax(axis=1)


def greedy_actions(q: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """bool [S, A]: all actions that are best to within `tolerance`. Divided by its rows' sums it is the
    greedy policy that splits ties."""
    q = _q(q)
    return q >= v_from_q(q)[:, None] - tolerance


def uniform_policy(mdp: MDP) -> np.ndarray:
    """Every allowed action alike: float64 [S, A]."""
    allowed = np.ones(mdp.reward.shape, bool) if mdp.allowed is None else mdp.allowed
    return allowed / allowed.sum(axis=1, keepdims=True)


def under(mdp: MDP, policy: np.ndarray) -> tuple[Any, np.ndarray]:
    """The Markov reward process of a policy: (transition [S, S], dense or sparse as the MDP, reward [S])."""
    policy = checked(mdp, policy)
    pairs = np.arange(mdp.states) * mdp.actions
    if policy.ndim == 1:
        pairs = pairs + policy
        return mdp.rows[pairs], mdp.reward.reshape(-1)[pairs]
    reward = (policy * np.where(policy > 0, mdp.reward, 0.0)).sum(axis=1)
    if not mdp.sparse:
        return (policy[:, None, :] @ mdp.transition)[:, 0], reward
    from scipy.sparse import csr_array

    indptr = np.append(pairs, mdp.states * mdp.actions)
    weights = csr_array((policy.reshape(-1), np.arange(policy.size), indptr), shape=(mdp.states, policy.size))
    return weights @ mdp.rows, reward


def evaluate(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """V of a policy, exactly (to rounding): the solution of V = r + gamma * P V. [S]

    Dense: one solve, O(S^3). Sparse: a sparse LU, whose fill-in is small where the states lie in a line or
    a plane and hopeless for a large random graph; `sweeps` goes on there.
    With gamma = 1 the policy must be proper (see `structure`); raises ShoalError where it is not, and where
    its episodes last too long for float64.
    """
    transition, reward = under(mdp, policy)
    live = np.flatnonzero(~mdp.terminal)
    wanted = reward[live]
    if mdp.gamma == 1.0:
        check_proper(mdp, transition)
        wanted = np.stack([wanted, np.ones(len(live))], axis=1)  # and how long episodes last
    found = _solved(mdp, transition, live, wanted)
    if mdp.gamma == 1.0:
        found, time = found.T
        off = backup_rounding(mdp) * float(np.abs(time).max(initial=0.0))
        if not off < _MOST_OFF or time.min(initial=1.0) < 1.0 - _MOST_OFF:
            raise TooLong(
                "with gamma = 1 the episodes of a policy last too long for float64 to tell their worth: "
                "take gamma < 1"
            )
    v: np.ndarray = np.zeros(mdp.states)
    v[live] = found
    return v


def _solved(mdp: MDP, transition: Any, live: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The x for which x = wanted + gamma * P x, over the live states; NaN or inf where there is none."""
    if not mdp.sparse:
        among = np.eye(len(live)) - mdp.gamma * transition[np.ix_(live, live)]
        try:
            return np.linalg.solve(among, wanted)
        except np.linalg.LinAlgError:
            return np.full(wanted.shape, np.nan)
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import MatrixRankWarning, spsolve

    among = eye_array(len(live)) - mdp.gamma * transition[live][:, live]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatrixRankWarning)
        return np.asarray(spsolve(among.tocsc(), wanted)).reshape(wanted.shape)


def backup_rounding(mdp: MDP) -> float:
    """The relative error of one backup in float64: a sum of so many products, what is added to it, and how
    far from 1 the probabilities sum."""
    terms = np.diff(mdp.rows.indptr).max() if mdp.sparse else np.count_nonzero(mdp.rows, axis=1).max()
    return (float(terms) + 8.0) * _EPS + float(off_one(mdp).max())


def sweeps(mdp: MDP, policy: np.ndarray, k: int, v: np.ndarray | None = None) -> np.ndarray:
    """V after k sweeps of iterative policy evaluation, all states at once, from v (None: zeros): [S].

    From zeros that is also the expected return of episodes that are cut after k steps.
    """
    number("k", k, 0, Integral)
    transition, reward = under(mdp, policy)
    now = np.zeros(mdp.states) if v is None else np.array(v, np.float64)
    _check_values(mdp, now)
    for _ in range(k):
        now = reward + mdp.gamma * (transition @ now)
    return now


def _check_values(mdp: MDP, v: Any) -> None:
    if np.shape(v) != (mdp.states,):
        raise ShoalError(f"V must have shape [{mdp.states}], a value for each state, not {list(np.shape(v))}")


def _q(q: Any) -> np.ndarray:
    q = np.asarray(q)
    if q.ndim != 2:
        raise ShoalError(f"Q must have shape [S, A], not {list(q.shape)}")
    return q


def _of_size(policy: Any, states: int, actions: int) -> np.ndarray:
    """The policy, int [S] or float64 [S, A]. Raises ShoalError, one line, where it is none of this size."""
    policy = np.asarray(policy)
    if policy.shape == (states,) and policy.dtype.kind in "iu":
        if policy.min() < 0 or policy.max() >= actions:
            raise ShoalError(f"a policy must take actions 0 ... {actions - 1}")
        return policy
    if policy.shape == (states, actions):
        policy = policy.astype(np.float64)
        if not policy.min() >= 0.0 or np.abs(policy.sum(axis=1) - 1.0).max() > 1e-6:
            raise ShoalError("the rows of a policy must be probabilities that sum to 1")
        return policy
    raise ShoalError(
        f"a policy must be integers [{states}] or probabilities [{states}, {actions}], not "
        f"{policy.dtype}{list(policy.shape)}"
    )


def checked(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """`_of_size`, and ShoalError too where the policy takes an action that is not allowed."""
    policy = _of_size(policy, mdp.states, mdp.actions)
    if mdp.allowed is not None:
        taken = policy > 0 if policy.ndim == 2 else np.arange(mdp.actions) == policy[:, None]
        if (taken & ~mdp.allowed).any():
            s, a = np.argwhere(taken & ~mdp.allowed)[0]
            raise ShoalError(f"the policy takes action {a} in state {s}, which does not allow it")
    return policy
