"""What a run leaves in its directory, and when: a row per iteration, checkpoints, the best one, a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.evaluation import Evaluation
from shoal.metrics import Result
from shoal.rundir import RunDir
from shoal.sinks import open_writers

Snapshot = Callable[[], tuple[Any, dict[str, Any]]]  # () -> (tree of arrays, info), for a checkpoint


class Recorder:
    """Writes one run, from the iteration at which it now stands; what its files have beyond is cut."""

    def __init__(self, run: RunDir, iteration: int, env_steps: int) -> None:
        self.run = run
        self._config: Mapping[str, Any] = run.config
        self._writers = open_writers(run, iteration, env_steps)
        self._saved_steps = env_steps
        self._saved_moment = time.monotonic()

    def take(self, result: Result, evaluation: Evaluation | None, snapshot: Snapshot) -> None:
        """An iteration's result, and the evaluation that belongs to it, if there was one."""
        for writer in self._writers:  # before any checkpoint of this iteration, which implies its row
            writer.write(result)
        steps = int(result["env_steps"])
        if evaluation is not None and self._better(evaluation):
            self.checkpoint(steps, snapshot)
            self.run.note_best(steps, evaluation.mean)
        elif self._due(steps):
            self.checkpoint(steps, snapshot)

    def checkpoint(self, env_steps: int, snapshot: Snapshot) -> Path:
        """Save now."""
        self._saved_steps, self._saved_moment = env_steps, time.monotonic()
        return self.run.save_checkpoint(env_steps, *snapshot(), keep_last=self._config["keep_checkpoints"])

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self.run.close()

    def _better(self, evaluation: Evaluation) -> bool:
        best = self.run.best
        return best is None or evaluation.mean > best.score

    def _due(self, env_steps: int) -> bool:
        every, seconds = self._config["checkpoint_every"], self._config["checkpoint_seconds"]
        if every and env_steps // every > self._saved_steps // every:
            return True
        return bool(seconds) and time.monotonic() - self._saved_moment >= seconds
