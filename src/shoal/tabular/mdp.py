"""A finite Markov decision process as arrays, dense or sparse.

Shapes: S states, A actions. A terminal state ends the episode: it is written down as a state that every
action keeps with reward 0, and its value is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from shoal.errors import ShoalError

_SUM = 1e-8  # how far from 1 probabilities may sum


class Grid(NamedTuple):
    """How states lie in the plane, row by row, for pictures.

    shape: (rows, columns), whose product is S. moves: for each action the (rows, columns) that it aims at.
    """

    shape: tuple[int, int]
    moves: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class MDP:
    """<S, A, P, R, gamma>. `MDP.of` makes one from less.

    transition: float64 [S, A, S], probabilities of the next state; or a scipy.sparse.csr_array [S * A, S]
    whose row s * A + a is that of state s and action a.
    reward: float64 [S, A], expected. gamma: the discount, in [0, 1].
    terminal: bool [S]. start: float64 [S], the distribution of an episode's first state.
    allowed: bool [S, A], the actions that a state has; None: all. The numbers of the others mean nothing.
    outcome: the reward of each transition, float64 [S, A, S], or [nnz] beside transition.data where that is
    sparse; None where the reward does not depend on where a step leads.
    grid: how the states lie in the plane; None: they do not.

    gamma = 1 is allowed here; each function that then needs more (that episodes end) says and checks it.
    Raises ShoalError, one line, where shapes differ, probabilities are negative or do not sum to 1, a live
    state has no action, a terminal one is left or rewarded, or an episode would begin where it has ended.
    """

    transition: Any
    reward: np.ndarray
    gamma: float
    terminal: np.ndarray
    start: np.ndarray
    allowed: np.ndarray | None = None
    outcome: np.ndarray | None = None
    grid: Grid | None = None

    @staticmethod
    def of(
        transition: Any,
        reward: Any,
        *,
        gamma: float,
        terminal: Any = None,
        start: Any = None,
        allowed: Any = None,
        grid: Grid | None = None,
    ) -> MDP:
        """From arrays of any number type, or any scipy.sparse matrix [S * A, S].

        Probabilities that sum to 1 but for rounding are divided by their sum.
        reward: [S], [S, A], or of each transition: [S, A, S], or where sparse a matrix [S * A, S], in which
        what is left out is 0. terminal: bool [S] or a list of states; None: every state that all its actions
        keep with reward 0. The rows of terminal states and of actions that are not allowed are overwritten:
        they keep the state, without reward. start: [S], or one state; None: any live one.
        """
        sparse = hasattr(transition, "tocsr")
        if sparse:
            from scipy.sparse import csr_array

            transition = csr_array(transition, dtype=np.float64, copy=True)
            transition.sum_duplicates()  # so that the entries have one order, and outcomes stand beside them
        else:
            transition = _numbers(transition, "transition")
            if transition.ndim != 3 or transition.shape[0] != transition.shape[2]:
                raise ShoalError(f"MDP: transition must have shape [S, A, S], not {list(transition.shape)}")
        states = transition.shape[-1]
        actions = transition.shape[0] // states if sparse else transition.shape[1]
        transition = _normalized(transition)
        reward, outcome = _rewards(transition, reward, states, actions)
        none = np.zeros((states, actions), bool)  # of these actions
        if allowed is not None:
            allowed = np.array(allowed, bool)
            none = ~allowed if allowed.shape == none.shape else none  # `check` tells of another shape
        if terminal is None:
            terminal = _absorbing(transition, reward, none)
        terminal = _flags(terminal, states, "terminal")
        if terminal.shape == (states,):
            transition, reward, outcome = _kept(transition, reward, outcome, none | terminal[:, None])
            if allowed is not None and allowed.shape == none.shape:
                allowed[terminal] = True
        if start is None:
            start = ~terminal / max((~terminal).sum(), 1)
        elif np.ndim(start) == 0:
            start = _flags([start], states, "start").astype(np.float64)
        return MDP(
            transition=transition,
            reward=reward,
            gamma=_numbers(gamma, "gamma").tolist(),
            terminal=terminal,
            start=_numbers(start, "start"),
            allowed=allowed,
            outcome=outcome,
            grid=grid,
        )

    def __post_init__(self) -> None:
        check(self)

    @property
    def states(self) -> int:
        """S."""
        return self.reward.shape[0]

    @property
    def actions(self) -> int:
        """A."""
        return self.reward.shape[1]

    @property
    def sparse(self) -> bool:
        """Whether transition is a sparse matrix."""
        return not isinstance(self.transition, np.ndarray)

    @property
    def rows(self) -> Any:
        """transition as a matrix [S * A, S], dense or sparse, without a copy."""
        return self.transition if self.sparse else self.transition.reshape(-1, self.states)

    def expected(self, v: Any) -> Any:
        """The mean of v [S] over next states: [S, A]. NumPy, or JAX where the MDP is dense and v is JAX's."""
        return (self.rows @ v).reshape(self.states, self.actions)


def _numbers(value: Any, name: str) -> np.ndarray:
    """A new array float64."""
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ShoalError(f"MDP: {name} must be of numbers: {error}") from None


def _normalized(transition: Any) -> Any:
    """With rows that sum to 1, where they nearly did; others are left for `check`."""
    sums = np.asarray(transition.sum(axis=-1))
    sums = np.where(np.abs(sums - 1.0) <= _SUM, sums, 1.0)
    if isinstance(transition, np.ndarray):
        return transition / sums[..., None]
    transition.data /= np.repeat(sums, np.diff(transition.indptr))
    return transition


def _rewards(transition: Any, reward: Any, states: int, actions: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(expected [S, A], of each transition or None)."""
    if hasattr(reward, "tocsr"):
        if isinstance(transition, np.ndarray) or reward.shape != transition.shape:
            raise ShoalError("MDP: a sparse reward needs a sparse transition of the same shape")
        entries = transition.tocoo()
        outcome = np.asarray(reward.tocsr()[entries.row, entries.col], np.float64).reshape(-1)
        expected = np.bincount(entries.row, outcome * transition.data, minlength=states * actions)
        return expected.reshape(states, actions), outcome
    reward = _numbers(reward, "reward")
    if reward.shape == (states,):
        return np.repeat(reward[:, None], actions, axis=1), None
    if reward.shape == (states, actions, states) and isinstance(transition, np.ndarray):
        return (transition * reward).sum(-1), reward
    if reward.shape == (states, actions):
        return reward, None
    raise ShoalError(
        f"MDP: reward must have shape [S], [S, A] or that of transition, for S = {states} and A = {actions}, "
        f"not {list(reward.shape)}"
    )


def _absorbing(transition: Any, reward: np.ndarray, none: np.ndarray) -> np.ndarray:
    """bool [S]: states that all their actions keep with reward 0 (none, bool [S, A]: those they have not)."""
    states, actions = reward.shape
    number = np.arange(states)
    if isinstance(transition, np.ndarray):
        chance = transition[number, :, number]
    else:
        chance = transition[np.arange(states * actions), np.repeat(number, actions)]
        chance = np.asarray(chance).reshape(states, actions)
    kept = (chance == 1.0) & (reward == 0.0)
    return (kept | (none & ~none.all(1, keepdims=True))).all(1)


def _flags(which: Any, states: int, name: str) -> np.ndarray:
    """bool [S] from that (whose shape `check` looks at), or from the numbers of states."""
    which = np.asarray(which)
    if which.dtype == bool:
        return which.copy()
    if which.size and which.dtype.kind not in "iu":
        raise ShoalError(f"MDP: {name} must give states by their numbers, not {which.dtype} {which.tolist()}")
    wrong = which[(which < 0) | (which >= states)]
    if wrong.size:
        raise ShoalError(f"MDP: {name} must be among the states 0 ... {states - 1}, not {wrong[0]}")
    flags = np.zeros(states, bool)
    flags[which.astype(np.int64)] = True
    return flags


def _kept(
    transition: Any, reward: np.ndarray, outcome: np.ndarray | None, which: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """The three where these actions, bool [S, A], keep their states, without reward."""
    if not which.any():
        return transition, reward, outcome
    states, actions = which.shape
    reward[which] = 0.0
    if isinstance(transition, np.ndarray):
        transition[which] = np.eye(states)[np.nonzero(which)[0]]
        if outcome is not None:
            outcome[which] = 0.0
        return transition, reward, outcome
    from scipy.sparse import csr_array

    counts = np.diff(transition.indptr)
    ended = which.reshape(-1)
    kept = ~np.repeat(ended, counts)
    counts = np.where(ended, 1, counts)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    data, indices = np.ones(indptr[-1]), np.empty(indptr[-1], transition.indices.dtype)
    old = ~np.repeat(ended, counts)
    data[old], indices[old] = transition.data[kept], transition.indices[kept]
    indices[~old] = np.flatnonzero(ended) // actions
    if outcome is not None:
        outcome, kept_outcome = np.zeros(len(data)), outcome[kept]
        outcome[old] = kept_outcome
    return csr_array((data, indices, indptr), shape=transition.shape), reward, outcome


def check(mdp: MDP) -> None:
    """Raises ShoalError, one line, at the first thing that `MDP` does not allow."""
    if mdp.reward.ndim != 2 or not mdp.reward.size:
        raise ShoalError(f"MDP: reward must have shape [S, A], not {list(mdp.reward.shape)}")
    states, actions = mdp.reward.shape
    wanted = (states * actions, states) if mdp.sparse else (states, actions, states)
    for name, has, needs in (
        ("gamma", np.shape(mdp.gamma), ()),
        ("transition", mdp.transition.shape, wanted),
        ("terminal", mdp.terminal.shape, (states,)),
        ("start", mdp.start.shape, (states,)),
        ("allowed", None if mdp.allowed is None else mdp.allowed.shape, (states, actions)),
        (
            "outcome",
            None if mdp.outcome is None else mdp.outcome.shape,
            (mdp.transition.nnz,) if mdp.sparse else wanted,
        ),
    ):
        if has is not None and tuple(has) != needs:
            raise ShoalError(f"MDP: {name} must have shape {list(needs)}, not {list(has)}")
    if not 0.0 <= mdp.gamma <= 1.0:
        raise ShoalError(f"MDP: gamma must lie between 0 and 1, not {mdp.gamma:g}")
    if not np.isfinite(mdp.reward if mdp.allowed is None else mdp.reward[mdp.allowed]).all():
        raise ShoalError("MDP: a reward is not finite")
    if mdp.grid is not None and (
        mdp.grid.shape[0] * mdp.grid.shape[1] != states or len(mdp.grid.moves) != actions
    ):
        raise ShoalError(f"MDP: a grid of {mdp.grid.shape} with {len(mdp.grid.moves)} moves does not fit")
    _check_probabilities(mdp)
    _check_ends(mdp)


def off_one(mdp: MDP) -> np.ndarray:
    """How far from 1 the probabilities of each allowed action sum: [S, A]."""
    off = np.abs(mdp.expected(np.ones(mdp.states)) - 1.0)
    return off if mdp.allowed is None else np.where(mdp.allowed, off, 0.0)


def _check_probabilities(mdp: MDP) -> None:
    if mdp.allowed is not None and not mdp.allowed.any(axis=1).all():
        raise ShoalError(f"MDP: state {int(np.argmin(mdp.allowed.any(axis=1)))} has no action")
    if not (mdp.transition.data if mdp.sparse else mdp.transition).min() >= 0.0:
        raise ShoalError("MDP: a probability of transition is negative (or no number)")
    off = off_one(mdp)
    if not off.max() <= _SUM:
        s, a = np.unravel_index(int(np.argmax(off)), off.shape)
        total = float(mdp.expected(np.ones(mdp.states))[s, a])
        raise ShoalError(f"MDP: the probabilities of state {s} and action {a} sum to {total:.9g}, not to 1")


def _check_ends(mdp: MDP) -> None:
    ended = np.flatnonzero(mdp.terminal)
    if len(ended) == mdp.states:
        raise ShoalError("MDP: all states are terminal: no episode could begin, leave one live")
    if len(ended):
        stays = mdp.rows @ mdp.terminal.astype(np.float64)
        if mdp.reward[ended].any() or (stays.reshape(mdp.reward.shape)[ended] < 1.0 - _SUM).any():
            raise ShoalError(
                "MDP: a terminal state must be kept by every action, with reward 0 (MDP.of sees to it)"
            )
    if not mdp.start.min() >= 0.0 or abs(mdp.start.sum() - 1.0) > _SUM:
        raise ShoalError(f"MDP: start must be probabilities that sum to 1, not to {mdp.start.sum():.9g}")
    if mdp.start[ended].any():
        raise ShoalError(
            f"MDP: an episode would begin in the terminal state {ended[mdp.start[ended] > 0][0]}"
        )
