"""How far a run has come: its counters, its finished episodes, and the row that each iteration gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.checkpoint import nested
from shoal.errors import ShoalError
from shoal.execution import Iteration
from shoal.metrics import Episodes


class Progress:
    """iteration, env_steps: done so far. seconds: of wall-clock time spent on them."""

    def __init__(self) -> None:
        self.episodes = Episodes()
        self.iteration = 0
        self.env_steps = 0
        self.seconds = 0.0

    def take(self, iteration: Iteration, env_steps: int, seconds: float) -> dict[str, Any]:
        """The row of an iteration that took so many seconds, after which the run stands at env_steps.

        Raises ShoalError where a loss is not finite.
        """
        for fragment in iteration.fragments:
            self.episodes.add(*fragment)
        before, self.env_steps = self.env_steps, env_steps
        self.iteration += 1
        row: dict[str, Any] = {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes.count,
            "episode_return_mean": self.episodes.mean_return(),
            "episode_length_mean": self.episodes.mean_length(),
            **{name: iteration.metrics[name] for name in sorted(iteration.metrics)},
            **{f"env/{name}": number for name, number in iteration.info.items()},
        }
        _refuse_divergence(row, self.iteration)
        row |= {f"timing/{name}": spent for name, spent in iteration.spent.items()}
        row["timing/steps_per_second"] = (env_steps - before) / seconds
        return row

    def reached(self, target_return: float) -> bool:
        """Whether the mean return over the last 100 episodes (100 must have ended) is at least this."""
        return self.episodes.count >= self.episodes.window and self.episodes.mean_return() >= target_return

    def summary(self) -> dict[str, Any]:
        """Where the run stands."""
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes.count,
            "seconds": self.seconds,
            "episode_return_mean": self.episodes.mean_return(),
            "episode_length_mean": self.episodes.mean_length(),
        }

    def counters(self) -> dict[str, Any]:
        """What `load` takes, beside the episodes' arrays."""
        return {"iteration": self.iteration, "env_steps": self.env_steps, "seconds": self.seconds}

    def load(self, counters: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Stand where a checkpoint says, whose arrays of the episodes lie under `prefix`."""
        self.episodes.load(nested(arrays, prefix))
        self.iteration, self.env_steps = counters["iteration"], counters["env_steps"]
        self.seconds = counters["seconds"]


def _refuse_divergence(row: Mapping[str, Any], iteration: int) -> None:
    for name, number in row.items():
        if name.startswith("loss/") and not np.isfinite(number):
            raise ShoalError(
                f"training diverged: {name} is {float(number)} in iteration {iteration}; the last checkpoint "
                "is kept. A smaller learning_rate or max_grad_norm may help"
            )
