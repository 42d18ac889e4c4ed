"""Sweeps of Bellman's optimality operator that compute again only what can have changed.

V, which values changed -> the pairs (s, a) that lead to one of them -> their Q -> V of their states
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal.tabular.bellman import q_from_v, v_from_q
from shoal.tabular.mdp import MDP

_FEW = 1 / 16  # of the states: where fewer have changed, finding what leads to them pays


class Change(NamedTuple):
    """What a sweep did: the least and greatest change of a value, and a bound on the values' size."""

    low: float
    high: float
    largest: float


class Sweeps:
    """V = 0, T 0, T T 0, ..., one with each call; the bits are those of whole sweeps.

    In a sparse MDP a sweep costs what it changes: where values travel like a wave and then rest, as in a
    maze without slips, that is the front of the wave.

    value: V [S], after the last sweep. q: [S, A], of which it is the maximum.
    """

    def __init__(self, mdp: MDP) -> None:
        self._mdp = mdp
        self.value = np.zeros(mdp.states)
        self.q = np.empty((mdp.states, mdp.actions))
        self._largest = 0.0
        self._changed: np.ndarray | None = None  # states; None: any may have, and in a dense MDP
        self._columns: Any = None  # the transitions, by where they lead

    def __call__(self) -> Change:
        changed = self._changed
        if changed is None or len(changed) > _FEW * self._mdp.states:
            low, high = self._whole()
        else:
            low, high = self._part(changed)
        return Change(low, high, self._largest)

    def _whole(self) -> tuple[float, float]:
        self.q = q_from_v(self._mdp, self.value)
        new = v_from_q(self.q)
        change, self.value = new - self.value, new
        self._largest = float(np.abs(new).max())
        self._changed = np.flatnonzero(change) if self._mdp.sparse else None
        return float(change.min()), float(change.max())

    def _part(self, changed: np.ndarray) -> tuple[float, float]:
        mdp = self._mdp
        if self._columns is None:
            self._columns = mdp.rows.tocsc()
        pairs = np.unique(self._columns[:, changed].indices)
        q = mdp.rows[pairs] @ self.value
        q *= mdp.gamma
        q += mdp.reward.reshape(-1)[pairs]
        if mdp.allowed is not None:
            q[~mdp.allowed.reshape(-1)[pairs]] = -np.inf
        self.q.reshape(-1)[pairs] = q
        states = np.unique(pairs // mdp.actions)
        new = v_from_q(self.q[states])
        change = new - self.value[states]
        self.value[states] = new
        self._changed = states[change != 0.0]
        self._largest = max(self._largest, float(np.abs(new).max(initial=0.0)))
        rest = 0.0 if len(states) < mdp.states else change[0]  # by how much the other states' values change
        return float(change.min(initial=rest)), float(change.max(initial=rest))
