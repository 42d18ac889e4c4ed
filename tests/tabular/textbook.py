"""MDPs of Sutton and Barto (2018), and random ones made without Shoal's own generator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from shoal.tabular import MDP, Grid

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def small_gridworld() -> MDP:
    """Example 4.1: 4 x 4 cells, two opposite corners terminal, -1 for every step, undiscounted."""
    transition = np.zeros((16, 4, 16))
    for s in range(16):
        for a, (down, right) in enumerate(MOVES):
            row, column = s // 4 + down, s % 4 + right
            inside = 0 <= row < 4 and 0 <= column < 4
            transition[s, a, row * 4 + column if inside else s] = 1.0
    return MDP.of(transition, np.full((16, 4), -1.0), gamma=1.0, terminal=[0, 15], grid=Grid((4, 4), MOVES))


def jumping_gridworld() -> MDP:
    """Examples 3.5 and 3.8: 5 x 5 cells, A (0, 1) -> A' (4, 1) for 10, B (0, 3) -> B' (2, 3) for 5, -1 for
    leaving the grid; gamma 0.9."""
    transition, reward = np.zeros((25, 4, 25)), np.zeros((25, 4))
    jumps = {1: (21, 10.0), 3: (13, 5.0)}
    for s in range(25):
        for a, (down, right) in enumerate(MOVES):
            row, column = s // 5 + down, s % 5 + right
            target, gain = jumps.get(s, (row * 5 + column, 0.0))
            if s not in jumps and not (0 <= row < 5 and 0 <= column < 5):
                target, gain = s, -1.0
            transition[s, a, target], reward[s, a] = 1.0, gain
    return MDP.of(transition, reward, gamma=0.9, grid=Grid((5, 5), MOVES))


def gambler(heads: float) -> MDP:
    """Example 4.3: capital 0 ... 100, action a stakes a + 1, at most what is there or what is missing."""
    transition, reward = np.zeros((101, 50, 101)), np.zeros((101, 50, 101))
    allowed = np.zeros((101, 50), bool)
    for s in range(1, 100):
        for stake in range(1, min(s, 100 - s) + 1):
            transition[s, stake - 1, s + stake] += heads
            transition[s, stake - 1, s - stake] += 1 - heads
            allowed[s, stake - 1] = True
    reward[:, :, 100] = 1.0
    return MDP.of(transition, reward, gamma=1.0, terminal=[0, 100], allowed=allowed, start=50)


def some_mdp(seed: int, *, gamma: float = 0.9, masked: bool = False, terminals: int = 0) -> MDP:
    """2 to 6 states, 1 to 3 actions, rewards of transitions, zeros among the probabilities."""
    rng = np.random.default_rng(seed)
    states, actions = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    chance = rng.random((states, actions, states)) * (rng.random((states, actions, states)) < 0.6)
    chance[np.arange(states), :, rng.integers(0, states, states)] += 0.1
    chance /= chance.sum(-1, keepdims=True)
    allowed = None
    if masked:
        allowed = rng.random((states, actions)) < 0.6
        allowed[np.arange(states), rng.integers(0, actions, states)] = True
    return MDP.of(
        chance,
        rng.normal(size=chance.shape),
        gamma=gamma,
        terminal=np.arange(states) >= states - min(terminals, states - 1),
        allowed=allowed,
    )


def as_sparse(mdp: MDP) -> MDP:
    """The same MDP with sparse arrays."""
    from scipy.sparse import csr_array

    matrix = csr_array(mdp.rows)
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    outcome = None if mdp.outcome is None else mdp.outcome.reshape(matrix.shape)[row, matrix.indices]
    return replace(mdp, transition=matrix, outcome=outcome)


def policies(mdp: MDP) -> Any:
    """Every deterministic policy, int [S]."""
    allowed = np.ones(mdp.reward.shape, bool) if mdp.allowed is None else mdp.allowed
    choices = [
        np.flatnonzero(row)[: 1 if end else None] for row, end in zip(allowed, mdp.terminal, strict=True)
    ]
    grids = np.meshgrid(*choices, indexing="ij")
    return np.stack([g.reshape(-1) for g in grids], axis=1)
