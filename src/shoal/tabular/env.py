"""Any finite MDP as an environment written in JAX: every algorithm can be run where the truth is known.

MDPEnv(random_mdp(20, 3, 4, gamma=0.9, seed=0), max_steps=100)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from shoal import spaces
from shoal.errors import ShoalError
from shoal.keys import Key, uniform
from shoal.tabular.mdp import MDP
from shoal.types import EnvSpec, Observation


class MDPState(NamedTuple):
    """number: int32 [], the state's. t: int32 [], steps in this episode."""

    number: Any
    t: Any


class _Tables(NamedTuple):
    """The K next states of each pair s * A + a, [S * A, K], and the N first states, [N].

    below: cumulative probabilities up to each next state, without the last one's, above which no number
    in (0, 1) lies. Places beyond a pair's own next states are never reached.
    """

    target: np.ndarray
    below: np.ndarray
    reward: np.ndarray
    start: np.ndarray
    start_below: np.ndarray


@dataclass(frozen=True)
class MDPEnv:
    """A JaxEnv. Observation and action are the numbers of state and action, Discrete(S) and Discrete(A).

    Episodes begin in a state drawn from `mdp.start`, end (terminated) on entering a terminal state, and are
    cut (truncated) after max_steps steps; None: never. Where the MDP has `allowed`, that is the action mask.
    The reward of a step is `mdp.outcome` where there is one, else `mdp.reward`. Two environments are equal
    where they have the very same MDP object.
    """

    mdp: MDP
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ShoalError(f"MDPEnv: max_steps must be at least 1 or None, not {self.max_steps}")

    @property
    def spec(self) -> EnvSpec:
        """What an algorithm may know of it."""
        return EnvSpec(
            id="tabular:MDP",
            observation=spaces.Discrete(self.mdp.states),
            action=spaces.Discrete(self.mdp.actions),
            masked=self.mdp.allowed is not None,
            max_episode_steps=self.max_steps,
        )

    @cached_property
    def tables(self) -> _Tables:
        """What sampling needs, as small NumPy arrays."""
        return _tables(self.mdp)

    def reset(self, key: Key) -> tuple[MDPState, Observation]:
        """A first state, drawn from `mdp.start`."""
        tables = self.tables
        place = (uniform(jnp.asarray(key), 1)[0] >= tables.start_below).sum(dtype=jnp.int32)
        state = MDPState(jnp.asarray(tables.start)[place], jnp.int32(0))
        return state, self._seen(state)

    def step(self, state: MDPState, action: Any, key: Key) -> tuple[MDPState, Observation, Any, Any, Any]:
        """One step: (state, observation, reward, terminated, truncated)."""
        tables = self.tables
        pair = state.number * self.mdp.actions + action
        place = (uniform(jnp.asarray(key), 1)[0] >= jnp.asarray(tables.below)[pair]).sum(dtype=jnp.int32)
        t = state.t + 1
        after = MDPState(jnp.asarray(tables.target)[pair, place], t)
        reward = jnp.asarray(tables.reward)[pair, place]
        terminated = jnp.asarray(self.mdp.terminal)[after.number]
        truncated = jnp.bool_(False) if self.max_steps is None else t >= self.max_steps
        return after, self._seen(after), reward, terminated, truncated

    def _seen(self, state: MDPState) -> Observation:
        allowed = self.mdp.allowed
        return Observation(state.number, mask=None if allowed is None else jnp.asarray(allowed)[state.number])


def _tables(mdp: MDP) -> _Tables:
    from scipy.sparse import csr_array

    pairs = mdp.states * mdp.actions
    matrix = mdp.rows if mdp.sparse else csr_array(mdp.rows)
    counts = np.diff(matrix.indptr)
    row = np.repeat(np.arange(pairs), counts)
    place = np.arange(matrix.nnz) - matrix.indptr[:-1][row]
    widest = int(counts.max())
    chance = np.zeros((pairs, widest))
    target = np.zeros((pairs, widest), np.int32)
    reward = np.zeros((pairs, widest), np.float32)
    chance[row, place], target[row, place] = matrix.data, matrix.indices
    if mdp.outcome is None:
        reward[row, place] = mdp.reward.reshape(-1)[row]
    elif mdp.sparse:
        reward[row, place] = mdp.outcome
    else:
        reward[row, place] = mdp.outcome.reshape(pairs, mdp.states)[row, matrix.indices]
    first = np.flatnonzero(mdp.start)
    return _Tables(
        target=target,
        below=_below(chance),
        reward=reward,
        start=first.astype(np.int32),
        start_below=_below(mdp.start[first][None])[0],
    )


def _below(chance: np.ndarray) -> np.ndarray:
    """[N, K] -> float32 [N, K - 1]: cumulative probabilities; 1, which nothing reaches, from where a row's
    last positive probability is included, so that rounding can lead nowhere else."""
    last = chance.shape[1] - 1 - np.argmax(chance[:, ::-1] > 0, axis=1)
    below = np.cumsum(chance, axis=1).astype(np.float32)
    below[np.arange(chance.shape[1]) >= last[:, None]] = 1.0
    return below[:, :-1]
