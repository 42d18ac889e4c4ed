"""The evaluations of a run: when one is due, who plays its episodes, and when its verdict is told.

In this process an evaluation is played at once, and its verdict stands in the row of the parameters that
were evaluated. Where an `Evaluator` plays the episodes elsewhere, training goes on meanwhile, and the verdict
stands in the row at which the next evaluation is due, whenever it was ready: so equal runs have equal rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.checkpoint import restore
from shoal.evaluation import Deferred, Evaluation
from shoal.execution import EvaluationTicket, Evaluator
from shoal.types import Params


class Verdict(NamedTuple):
    """An evaluation of the parameters at env_steps."""

    evaluation: Evaluation
    env_steps: int

    def row(self) -> dict[str, float]:
        return {
            "evaluation/return_mean": self.evaluation.mean,
            "evaluation/return_std": self.evaluation.std,
            "evaluation/env_steps": self.env_steps,
        }


class _Waiting(NamedTuple):
    env_steps: int
    params: Params
    ticket: EvaluationTicket


class Judge:
    """every: environment steps between evaluations; None: none. episodes: of each.

    here: (acting parameters, episodes) -> Evaluation, in this process. evaluator: who plays elsewhere, if
    anybody does.
    """

    def __init__(
        self,
        every: int | None,
        episodes: int,
        here: Callable[[Params, int], Evaluation],
        evaluator: Evaluator | None,
    ) -> None:
        self._every, self._episodes, self._here, self._evaluator = every, episodes, here, evaluator
        self._evaluated_at = 0
        self._waiting: _Waiting | None = None

    def take(self, env_steps: int, params: Callable[[], Params]) -> list[Verdict]:
        """The verdicts to be told now that the run stands at env_steps; a new evaluation is begun if due."""
        if not self._every or env_steps // self._every <= self._evaluated_at // self._every:
            return []
        self._evaluated_at = env_steps
        told = [] if self._waiting is None else [self._verdict(self._waiting)]
        self._waiting = None
        if self._evaluator is None:
            return [*told, Verdict(self._here(params(), self._episodes), env_steps)]
        self._begin(env_steps, jax.device_get(params()))
        return told

    @property
    def waiting(self) -> int | None:
        """The environment steps of the parameters whose verdict is not told yet."""
        return None if self._waiting is None else self._waiting.env_steps

    def ahead(self) -> Verdict | None:
        """The verdict that is not told yet, as soon as it is there; it will be told all the same."""
        return None if self._waiting is None else self._verdict(self._waiting)

    def save(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arrays, what is said of them): for `load`."""
        said = {"evaluated_at": self._evaluated_at, "evaluating": self.waiting}
        return {} if self._waiting is None else {"evaluating": self._waiting.params}, said

    def load(self, said: Mapping[str, Any], arrays: Mapping[str, np.ndarray], form: Params) -> None:
        """Go on from what `save` gave: what was being evaluated is so again. form: of the parameters."""
        self._evaluated_at = said["evaluated_at"]
        steps = said.get("evaluating")  # absent from what older versions wrote
        if steps is not None:
            self._begin(steps, restore(form, arrays, "evaluating"))

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.ticket.cancel()
            self._waiting = None

    def _begin(self, env_steps: int, params: Params) -> None:
        play = self._evaluator.begin if self._evaluator is not None else self._later
        self._waiting = _Waiting(env_steps, params, play(params, self._episodes))

    def _later(self, params: Params, episodes: int) -> EvaluationTicket:
        return Deferred(lambda: self._here(params, episodes))

    def _verdict(self, waiting: _Waiting) -> Verdict:
        return Verdict(waiting.ticket.result(), waiting.env_steps)
