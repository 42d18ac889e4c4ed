"""What can follow what in a finite MDP: which states are met, and whether episodes end.

What gamma = 1 needs is said in these words. A policy is *proper* where it ends the episode with probability
1 from every state: in a finite MDP, where from every state it can come to a terminal one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal.errors import ShoalError
from shoal.tabular.mdp import MDP


def reachable(mdp: MDP) -> np.ndarray:
    """bool [S]: states that some policy can come to in an episode."""
    return _search(_graph(mdp), np.flatnonzero(mdp.start))[0]


def toward_end(mdp: MDP) -> np.ndarray:
    """int [S]: of each state the next one on a shortest way to a terminal state, itself for terminal ones; -1
    where there is no such way."""
    found, parent = _search(_graph(mdp).T.tocsr(), np.flatnonzero(mdp.terminal))
    return np.where(mdp.terminal, np.arange(mdp.states), np.where(found, parent, -1))


def never_ending(mdp: MDP) -> np.ndarray:
    """bool [S]: the live states among which some policy can stay for ever. None: every policy is proper."""
    inside = ~mdp.terminal
    while True:
        stays = mdp.expected((~inside).astype(np.float64)) == 0.0
        if mdp.allowed is not None:
            stays &= mdp.allowed
        smaller = inside & stays.any(axis=1)
        if (smaller == inside).all():
            return inside
        inside = smaller


def proper_policy(mdp: MDP) -> np.ndarray:
    """int [S], a proper policy. Raises ShoalError where there is none."""
    toward = toward_end(mdp)
    if (toward < 0).any():
        state = int(np.argmax(toward < 0))
        nowhere = "" if reachable(mdp)[state] else ", to which no episode comes,"
        raise ShoalError(
            f"gamma = 1 needs episodes that can end, but from state {state}{nowhere} "
            "no terminal state can be reached: take gamma < 1"
        )
    if not mdp.sparse:
        chance = np.take_along_axis(mdp.transition, toward[:, None, None], axis=2)[:, :, 0]
    else:
        hit = mdp.rows.indices == np.repeat(np.repeat(toward, mdp.actions), np.diff(mdp.rows.indptr))
        row = np.repeat(np.arange(mdp.states * mdp.actions), np.diff(mdp.rows.indptr))
        chance = np.bincount(row[hit], mdp.rows.data[hit], minlength=mdp.states * mdp.actions)
        chance = chance.reshape(mdp.states, mdp.actions)
    if mdp.allowed is not None:
        chance = np.where(mdp.allowed, chance, -1.0)
    return chance.argmax(axis=1)


def check_proper(mdp: MDP, transition: Any) -> None:
    """Raises ShoalError where a policy, given by its transition [S, S], may never end the episode."""
    from scipy.sparse import csr_array

    graph = csr_array(transition)
    graph.eliminate_zeros()
    ends, _ = _search(graph.T.tocsr(), np.flatnonzero(mdp.terminal))
    if not ends.all():
        raise ShoalError(
            f"gamma = 1 needs a policy that ends the episode with probability 1; from state "
            f"{int(np.argmin(ends))} this one never does: take gamma < 1"
        )


def _graph(mdp: MDP) -> Any:
    """csr [S, S], whose entries are the steps that some allowed action can take."""
    from scipy.sparse import csr_array

    rows = mdp.rows if mdp.sparse else csr_array(mdp.rows)
    chance = rows.data
    if mdp.allowed is not None:
        chance = chance * np.repeat(mdp.allowed.reshape(-1), np.diff(rows.indptr))
    # The rows of a state's actions stand one behind the other: together they are one row.
    # A copy, because the next two lines work in place.
    parts = (chance, rows.indices, rows.indptr[:: mdp.actions])
    graph = csr_array(parts, shape=(mdp.states, mdp.states), copy=True)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    return graph


def _search(graph: Any, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Breadth first from several nodes of a csr graph [S, S]: (found bool [S], from where int [S])."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    n = graph.shape[0]
    indices = np.concatenate([graph.indices, sources.astype(graph.indices.dtype)])
    indptr = np.append(graph.indptr, graph.indptr[-1] + len(sources))
    data = np.ones(len(indices), np.float32)
    joined = csr_array((data, indices, indptr), shape=(n + 1, n + 1))
    order, parent = breadth_first_order(joined, n, return_predecessors=True)
    found = np.zeros(n + 1, bool)
    found[order] = True
    return found[:n], parent[:n]
