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


def mdp_of(
    env: Any, *, gamma: float, env_kwargs: Mapping[str, Any] | None = None, sparse: bool | None = None
) -> MDP:
    """The MDP behind an environment that `shoal.envs.resolve` knows, time limits left out.

    env: an id ("FrozenLake-v1", "shoal/GridWorld-v0", "jax:GridWorld"), a class, a function or a JaxEnv; or a
    Gymnasium environment that has been made already, without env_kwargs. Known is the MDP of a JaxEnv with a
    method `mdp(gamma)`, and of a Gymnasium environment with a table `P`.
    sparse: whether transitions are a sparse matrix, for a `mdp` that takes it too; None: where it is large.
    Raises ShoalError, one line, for any other.
    """
    import gymnasium

    if isinstance(env, gymnasium.Env):
        name = str(env.spec.id if env.spec else type(env.unwrapped).__name__)
        return _of_table(env, gamma, name, sparse)
    source = resolve(env, env_kwargs=env_kwargs, journal="journal")
    name = source.spec.id
    if source.jax_env is not None:
        world: Any = source.jax_env
        while hasattr(world, "env"):  # a time limit around it
            world = world.env
        if not callable(getattr(world, "mdp", None)):
            raise ShoalError(f"{name} has no known MDP: {_known()}")
        return world.mdp(gamma) if sparse is None else world.mdp(gamma, sparse=sparse)
    group: Any = source.make_group(0, 0, 1)
    try:
        return _of_table(group.envs[0], gamma, name, sparse)
    finally:
        group.close()


def _known() -> str:
    return (
        "known are GridWorld, FrozenLake, CliffWalking, Taxi, and whatever else has a table P or mdp(gamma)"
    )


# What is around an environment and leaves its steps as they are.
_HARMLESS = {
    "HumanRendering",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "RenderCollection",
    "TimeLimit",
}


def _check_wrappers(env: Any, name: str) -> None:
    """Raises ShoalError where a wrapper may change what the table says."""
    while env is not env.unwrapped:
        if type(env).__name__ not in _HARMLESS:
            raise ShoalError(
                f"{name}: the wrapper {type(env).__name__} may change what its table P says, so the MDP is "
                "not known; that of the environment within is: give env.unwrapped"
            )
        env = env.env


def _of_table(env: Any, gamma: float, name: str, sparse: bool | None) -> MDP:
    bare = env.unwrapped
    _check_wrappers(env, name)
    table = getattr(bare, "P", None)
    if table is None:
        raise ShoalError(f"{name} has no known MDP: {_known()}")
    if getattr(bare, "fickle_passenger", False):
        raise ShoalError(f"{name}: a fickle passenger is no part of its table P, so the MDP is not known")
    start = getattr(bare, "initial_state_distrib", None)
    return from_table(table, gamma, start=start, grid=_grid(bare), sparse=sparse)


def from_table(
    table: Any, gamma: float, *, start: Any = None, grid: Grid | None = None, sparse: bool | None = None
) -> MDP:
    """An MDP from P[state][action] = [(probability, next state, reward, terminated), ...].

    A state to which terminating steps lead, and in which no episode goes on, is terminal, and what the table
    says of its own steps is not looked at. Where a terminating step leads to a state in which episodes begin
    or go on (to its own, say: to stop there), it leads to one more state instead, numbered S, which is
    terminal (and the MDP has no grid then).
    start: float [S]; None: any state that is not terminal, and episodes go on in all but those which other
    states enter by terminating steps only.
    Entries with the same next state are added up, their rewards averaged by probability.
    sparse: None is sparse above ten million dense entries.
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
    source = pair // actions
    live = _live(source, target, done, start, states)
    # Gymnasium's terminal states keep themselves with terminated=True, as a live state does by an action that
    # stops there: only whether episodes go on in a state tells the two apart.
    terminal = ~live & _led_to(target[done], states)
    stops = done & live[target]
    extra = int((stops & live[source]).any())
    if extra:
        target, grid = np.where(stops, states, target), None
        terminal = np.append(terminal, True)
    size = states + extra
    # Each pair (s, a) and next state once, in the order of a sparse matrix's entries.
    place, entry = np.unique(pair * size + target, return_inverse=True)
    shares = np.bincount(entry, chance)
    transition = _matrix(place, shares, actions, size)
    outcome = _matrix(place, np.bincount(entry, chance * reward) / shares, actions, size)
    if sparse is None:
        sparse = size * actions * size > 10_000_000
    if not sparse:
        transition, outcome = (x.toarray().reshape(size, actions, size) for x in (transition, outcome))
    if start is not None:
        start = np.append(np.asarray(start, np.float64), np.zeros(extra))
    return MDP.of(transition, outcome, gamma=gamma, terminal=terminal, start=start, grid=grid)


def _matrix(place: np.ndarray, value: np.ndarray, actions: int, size: int) -> Any:
    """csr [size * A, size] with these values at these places, which are sorted."""
    from scipy.sparse import csr_array

    row, column = np.divmod(place, size)
    counts = np.bincount(row, minlength=size * actions)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((value, column, indptr), shape=(size * actions, size))


def _led_to(target: np.ndarray, states: int) -> np.ndarray:
    """bool [S]: the states that are among the targets."""
    return np.bincount(target, minlength=states) > 0


def _live(source: np.ndarray, target: np.ndarray, done: np.ndarray, start: Any, states: int) -> np.ndarray:
    """bool [S]: states in which an episode begins or goes on, as far as the table says."""
    if start is None:
        # What a state's own loops say is no entry: a terminal state has them too.
        other = source != target
        return _led_to(target[other & ~done], states) | ~_led_to(target[other & done], states)
    met = np.asarray(start) > 0
    while True:
        more = met | _led_to(target[met[source] & ~done], states)
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
