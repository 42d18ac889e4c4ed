"""Gridworld: the small world whose exact answer is known, with three faces that agree.

    GridWorld(size=4)                  a JaxEnv, id "jax:GridWorld"
    gymnasium.make("shoal/GridWorld-v0", size=4)
    GridWorld(size=4).mdp()            the finite MDP as arrays: see shoal.tabular

Cells are numbered row by row from the top left; actions are 0 up, 1 down, 2 left, 3 right. A move into a wall
or off the grid stays where it is. Entering the last cell (bottom right) gives reward 1 and ends the episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shoal import spaces
from shoal.errors import ShoalError
from shoal.keys import Key, uniform
from shoal.types import EnvSpec, Observation

if TYPE_CHECKING:
    from shoal.tabular.mdp import MDP

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]], np.int32)  # up, down, left, right


class GridState(NamedTuple):
    """cell: int32 []. t: int32 [], steps in this episode."""

    cell: Any
    t: Any


@dataclass(frozen=True)
class GridWorld:
    """An N x N grid with one goal.

    size: N. start: the first cell. step_cost: taken from the reward of every step. walls: blocked cells.
    slip: the probability that one of the *three other* actions, each equally likely, is carried out
    instead of the one taken. max_steps: the time limit in steps (truncation); None: none.
    Raises ShoalError where a value is out of range or the start or the goal is a wall.
    """

    size: int = 4
    start: int = 0
    step_cost: float = 0.0
    walls: tuple[int, ...] = ()
    slip: float = 0.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "walls", tuple(int(w) for w in self.walls))
        cells = self.size * self.size
        if self.size < 2:
            raise ShoalError(f"GridWorld: size must be at least 2, not {self.size}")
        if not 0 <= self.start < cells - 1:
            raise ShoalError(f"GridWorld: start must be one of the cells 0 ... {cells - 2}, not {self.start}")
        if any(not 0 <= w < cells - 1 or w == self.start for w in self.walls):
            raise ShoalError(
                f"GridWorld: walls must be cells 0 ... {cells - 2} other than the start, not {self.walls}"
            )
        if not 0.0 <= self.slip <= 1.0:
            raise ShoalError(f"GridWorld: slip is a probability, not {self.slip}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ShoalError(f"GridWorld: max_steps must be at least 1 or None, not {self.max_steps}")

    @property
    def goal(self) -> int:
        """The last cell."""
        return self.size * self.size - 1

    @property
    def spec(self) -> EnvSpec:
        """Observation: the cell's number; action: one of four."""
        return EnvSpec(
            id="jax:GridWorld",
            observation=spaces.Discrete(self.size * self.size),
            action=spaces.Discrete(4),
            max_episode_steps=self.max_steps,
        )

    @cached_property
    def next_cell(self) -> np.ndarray:
        """int32 [S, 4]: where each action leads from each cell when it does not slip."""
        cells = np.arange(self.size * self.size)
        place = np.stack(np.divmod(cells, self.size), -1)[:, None, :] + MOVES
        inside = ((place >= 0) & (place < self.size)).all(-1)
        target = np.where(inside, place[..., 0] * self.size + place[..., 1], cells[:, None])
        blocked = np.isin(target, np.array(self.walls, np.int64))
        return np.where(blocked, cells[:, None], target).astype(np.int32)

    def reset(self, key: Key) -> tuple[GridState, Observation]:
        """The start cell; `key` is not needed."""
        import jax.numpy as jnp

        state = GridState(jnp.int32(self.start), jnp.int32(0))
        return state, Observation(state.cell)

    def step(self, state: GridState, action: Any, key: Key) -> tuple[GridState, Observation, Any, Any, Any]:
        """One move: (state, observation, reward, terminated, truncated)."""
        import jax.numpy as jnp

        if self.slip:
            slipped, turn = self.slips(uniform(jnp.asarray(key), 2))
            action = jnp.where(slipped, (action + turn) % 4, action)
        cell = jnp.asarray(self.next_cell)[state.cell, action]
        terminated = cell == self.goal
        reward = terminated.astype(jnp.float32) - jnp.float32(self.step_cost)
        t = state.t + 1
        truncated = jnp.bool_(False) if self.max_steps is None else t >= self.max_steps
        return GridState(cell, t), Observation(cell), reward, terminated, truncated

    def slips(self, u: Any) -> tuple[Any, Any]:
        """From two uniform numbers: whether the action slips, and how many places it turns (1, 2 or 3)."""
        return u[0] < np.float32(self.slip), 1 + (u[1] * 3).astype(np.int32)

    def mdp(self, gamma: float = 0.99, *, sparse: bool | None = None) -> MDP:
        """The same world as a finite MDP, without its time limit.

        A wall is never entered; it counts as terminal, so that it has a value, 0. sparse: None is sparse
        above ten million dense entries.
        """
        from scipy.sparse import coo_array, csr_array

        from shoal.tabular.mdp import MDP, Grid

        cells, world = self.size * self.size, np.arange(self.size * self.size)
        chance = np.full((4, 4), self.slip / 3) + np.eye(4) * (1 - self.slip - self.slip / 3)
        taken, done = (x.reshape(-1) for x in np.meshgrid(np.arange(4), np.arange(4), indexing="ij"))
        pair = (world[:, None] * 4 + taken).reshape(-1)
        entries = np.broadcast_to(chance[taken, done], (cells, 16)).reshape(-1)
        matrix = csr_array(
            coo_array((entries, (pair, self.next_cell[:, done].reshape(-1))), (cells * 4, cells))
        )
        matrix.eliminate_zeros()
        outcome = csr_array(
            ((matrix.indices == self.goal) - self.step_cost, matrix.indices, matrix.indptr), matrix.shape
        )
        if sparse is None:
            sparse = 4 * cells * cells > 10_000_000
        if not sparse:
            matrix = matrix.toarray().reshape(cells, 4, cells)
            outcome = outcome.toarray().reshape(cells, 4, cells)
        return MDP.of(
            matrix,
            outcome,
            gamma=gamma,
            terminal=[self.goal, *self.walls],
            start=self.start,
            grid=Grid((self.size, self.size), tuple(map(tuple, MOVES.tolist()))),
        )
