"""The finite MDP of an environment, where it is known: GridWorld's, and that of Gymnasium's toy text.

Gymnasium's toy-text environments (FrozenLake, CliffWalking, Taxi) carry their dynamics as a table
P[state][action] = [(probability, next state, reward, terminated), ...].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.envs.source import resolve
from shoal.errors import ShoalError
from shoal.tabular.mdp import MDP, Grid

_LEFT_DOWN_RIGHT_UP = ((0, -1), (1, 0), (0, 1), (-1, 0))
_UP_RIGHT_DOWN_LEFT = ((-1, 0), (0, 1), (1, 0), (0, -1))


def mdp_of(env: Any, *, gamma: float, env_kwargs: Mapping[str, Any] | None = None) -> MDP:
    """The MDP behind an environment that `shoal.envs.resolve` knows, time limits left out.

    env: an id ("FrozenLake-v1", "shoal/GridWorld-v0", "jax:GridWorld"), a class, a function or a JaxEnv; or a
    Gymnasium environment that has been made already, without env_kwargs. Known is the MDP of a JaxEnv with a
    method `mdp(gamma)`, and of a Gymnasium environment with a table `P`.
    Raises ShoalError, one line, for any other.
    """
    import gymnasium

    if isinstance(env, gymnasium.Env):
        return _of_table(env, gamma, str(env.spec.id if env.spec else type(env.unwrapped).__name__))
    source = resolve(env, env_kwargs=env_kwargs, journal="journal")
    name = source.spec.id
    if source.jax_env is not None:
        world: Any = source.jax_env
        while hasattr(world, "env"):  # a time limit around it
            world = world.env
        if not callable(getattr(world, "mdp", None)):
            raise ShoalError(f"{name} has no known MDP: {_known()}")
        return world.mdp(gamma)
    group: Any = source.make_group(0, 0, 1)
    try:
        return _of_table(group.envs[0], gamma, name)
    finally:
        group.close()


def _known() -> str:
    return (
        "known are GridWorld, FrozenLake, CliffWalking, Taxi, and whatever else has a table P or mdp(gamma)"
    )


def _of_table(env: Any, gamma: float, name: str) -> MDP:
    bare = env.unwrapped
    table = getattr(bare, "P", None)
    if table is None:
        raise ShoalError(f"{name} has no known MDP: {_known()}")
    if getattr(bare, "fickle_passenger", False):
        raise ShoalError(f"{name}: a fickle passenger is no part of its table P, so the MDP is not known")
    start = getattr(bare, "initial_state_distrib", None)
    return from_table(table, gamma, start=start, grid=_grid(bare))


def from_table(table: Any, gamma: float, *, start: Any = None, grid: Grid | None = None) -> MDP:
    """An MDP from P[state][action] = [(probability, next state, reward, terminated), ...].

    A state that is entered only by terminating steps is terminal, and what the table says of its own steps
    is not looked at (nor are the steps of states that no episode comes to, where `start` is given). Where a
    state is entered by both kinds of steps, the terminating ones lead to one more state instead, numbered
    S, which is terminal (and the MDP has no grid then).
    Entries with the same next state are added up, their rewards averaged by probability.
    """
    states, actions = len(table), len(table[0])
    steps = [
        (s * actions + a, int(n), float(p), float(r), bool(done))
        for s in range(states)
        for a in range(actions)
        for p, n, r, done in table[s][a]
        if p > 0
    ]
    pair, target, chance, reward, done = (np.array(column) for column in zip(*steps, strict=True))
    met = np.ones(states, bool) if start is None else _met(pair // actions, target, done, start)
    # What a terminal state's own rows say is no entry.
    entry = met[pair // actions] & (pair // actions != target)
    ended = np.bincount(target[entry], done[entry], minlength=states) > 0
    torn = np.bincount(target[entry], ~done[entry], minlength=states) > 0
    if (ended & torn).any():
        extra, grid = 1, None
        target = np.where(done & torn[target], states, target)
        ended = np.append(ended & ~torn, True)
    else:
        extra = 0
    size = states + extra
    transition, total = np.zeros((size, actions, size)), np.zeros((size, actions, size))
    np.add.at(transition.reshape(-1, size), (pair, target), chance)
    np.add.at(total.reshape(-1, size), (pair, target), chance * reward)
    outcome = np.divide(total, transition, out=np.zeros_like(total), where=transition > 0)
    if start is not None:
        start = np.append(np.asarray(start, np.float64), np.zeros(extra))
    return MDP.of(transition, outcome, gamma=gamma, terminal=ended, start=start, grid=grid)


def _met(source: np.ndarray, target: np.ndarray, done: np.ndarray, start: Any) -> np.ndarray:
    """bool [S]: states that an episode can come to and go on from."""
    met = np.asarray(start) > 0
    while True:
        more = met.copy()
        more[target[met[source] & ~done]] = True
        if (more == met).all():
            return met
        met = more


def _grid(bare: Any) -> Grid | None:
    """How FrozenLake and CliffWalking lie in the plane."""
    if hasattr(bare, "desc") and hasattr(bare, "ncol") and hasattr(bare, "nrow"):
        return Grid((int(bare.nrow), int(bare.ncol)), _LEFT_DOWN_RIGHT_UP)
    if hasattr(bare, "_cliff"):
        return Grid((int(bare.shape[0]), int(bare.shape[1])), _UP_RIGHT_DOWN_LEFT)
    return None
