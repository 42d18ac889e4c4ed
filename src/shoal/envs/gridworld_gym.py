"""`GridWorld` as a Gymnasium environment: `gymnasium.make("shoal/GridWorld-v0", size=4, ...)`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from shoal.envs.gridworld import GridWorld

PIXELS = 16  # of one cell's side
COLOURS = {"#": (60, 60, 60), ".": (235, 235, 235), "G": (90, 180, 90), "A": (60, 100, 220)}


class GridWorldEnv(gymnasium.Env[Any, Any]):
    """The same world as `GridWorld`, whose fields are this environment's arguments. The time limit
    `max_steps` truncates. Renders as text (ansi) and as an image (rgb_array)."""

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012 (Gymnasium's own way)

    def __init__(self, render_mode: str | None = None, **world: Any) -> None:
        self.world = GridWorld(**world)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Discrete(self.world.size**2)
        self.action_space = gymnasium.spaces.Discrete(4)
        self._next = self.world.next_cell.tolist()
        self._cell, self._t = self.world.start, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Back to the start cell."""
        super().reset(seed=seed)
        self._cell, self._t = self.world.start, 0
        return self._cell, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One move."""
        world = self.world
        action = int(action)
        if world.slip:
            slipped, turn = world.slips(self.np_random.random(2, np.float32))
            action = (action + int(turn)) % 4 if slipped else action
        self._cell = self._next[self._cell][action]
        self._t += 1
        terminated = self._cell == world.goal
        truncated = world.max_steps is not None and self._t >= world.max_steps
        return self._cell, float(terminated) - world.step_cost, terminated, truncated, {}

    def render(self) -> Any:
        """Text with A the agent, G the goal, # walls; or uint8 [16 N, 16 N, 3]."""
        cells = np.full(self.world.size**2, ".")
        cells[list(self.world.walls)] = "#"
        cells[self.world.goal] = "G"
        cells[self._cell] = "A"
        grid = cells.reshape(self.world.size, self.world.size)
        if self.render_mode == "ansi":
            return "\n".join("".join(row) for row in grid) + "\n"
        if self.render_mode == "rgb_array":
            image = np.array([[COLOURS[c] for c in row] for row in grid], np.uint8)
            return image.repeat(PIXELS, 0).repeat(PIXELS, 1)
        return None
