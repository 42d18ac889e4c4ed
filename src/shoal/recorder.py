"""What a run leaves in its directory, and when: a row per iteration, checkpoints, the best one, a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.judging import Verdict
from shoal.metrics import Result
from shoal.rundir import RunDir
from shoal.sinks import open_writers
from shoal.writers import JsonLines, cut

_WAIT = 9.0  # of the time that the last checkpoint took: training has nine tenths of the time at least
Snapshot = Callable[[], tuple[Any, dict[str, Any]]]  # () -> (tree of arrays, info), for a checkpoint


class Recorder:
    """Writes one run, from the iteration at which it now stands; what its files have beyond is cut."""

    def __init__(self, run: RunDir, iteration: int, env_steps: int, waiting: int | None = None) -> None:
        self.run = run
        self._config: Mapping[str, Any] = run.config
        self._writers = open_writers(run, iteration, env_steps)
        cut(run.events_path, iteration)
        self._events: JsonLines | None = None
        self._saved_steps = env_steps
        self._saved_moment = time.monotonic()
        self._saving_took = 0.0  # seconds
        self._waiting = waiting  # see `take`
        self._begun = False  # here

    def take(
        self,
        result: Result,
        events: Sequence[str],
        verdicts: Sequence[Verdict],
        waiting: int | None,
        snapshot: Snapshot,
    ) -> None:
        """An iteration's result, what else happened in it, and the verdicts on evaluated parameters.

        waiting: the environment steps of parameters whose verdict will come later. Their checkpoint is made
        in time and kept until then.
        """
        if not self._begun:
            self._begun = True
            self.run.forget_summary()
        for writer in self._writers:  # before any checkpoint of this iteration, which implies its row
            writer.write(result)
        steps = int(result["env_steps"])
        self._note(int(result["iteration"]), steps, events)
        self._waiting = waiting
        for verdict in verdicts:
            if verdict.env_steps == steps and self._better(verdict):
                self.checkpoint(steps, snapshot)
            self.judge(verdict)
        if waiting == steps or self._due(steps):
            self.catch_up(steps, snapshot)

    def judge(self, verdict: Verdict) -> None:
        """Note the checkpoint of these parameters as the best, if it is there and they are."""
        if self._better(verdict) and verdict.env_steps in self.run.checkpoints():
            self.run.note_best(verdict.env_steps, verdict.evaluation.mean)

    def checkpoint(self, env_steps: int, snapshot: Snapshot) -> Path:
        """Save now."""
        begun, keep_last = time.monotonic(), self._config["keep_checkpoints"]
        path = self.run.save_checkpoint(env_steps, *snapshot(), keep_last=keep_last, keep=[self._waiting])
        self._saved_steps, self._saved_moment = env_steps, time.monotonic()
        self._saving_took = self._saved_moment - begun
        return path

    def catch_up(self, env_steps: int, snapshot: Snapshot) -> None:
        """Save, unless what was saved last is this."""
        if self._saved_steps != env_steps:
            self.checkpoint(env_steps, snapshot)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        if self._events is not None:
            self._events.close()
        self.run.close()

    def _note(self, iteration: int, env_steps: int, events: Sequence[str]) -> None:
        for event in events:
            self._events = self._events or JsonLines(self.run.events_path)
            row = {"iteration": iteration, "env_steps": env_steps, "time": time.time(), "event": event}
            self._events.note(row)

    def _better(self, verdict: Verdict) -> bool:
        best = self.run.best
        return best is None or verdict.evaluation.mean > best.score

    def _due(self, env_steps: int) -> bool:
        every, seconds = self._config["checkpoint_every"], self._config["checkpoint_seconds"]
        if every and env_steps // every > self._saved_steps // every:
            return True
        wait = max(seconds or 0.0, _WAIT * self._saving_took)
        return seconds is not None and time.monotonic() - self._saved_moment >= wait
