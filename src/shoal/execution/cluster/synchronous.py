"""A synchronous run on a cluster: one fragment of every group, then what is to be learned. The bits of Local.

parameters -> all groups' fragments, wherever they are collected -> joined in group order -> learn
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import jax
import numpy as np

from shoal.errors import ShoalError
from shoal.execution import Iteration
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.pool import Pool
from shoal.execution.host import mean_info
from shoal.execution.learner import Learner, news_of
from shoal.execution.learning import LearnKeys, described, learning_of
from shoal.execution.local import fragment_of, group_state
from shoal.execution.unroll import fragment_form, join
from shoal.recipe import Experiment
from shoal.unbroken import Unbroken

WAIT_SECONDS = 5.0  # between two looks at what else there is to do


class SynchronousRun:
    """A started Cluster executor, for a plan without staleness. close: ends what is behind the pool."""

    def __init__(
        self,
        experiment: Experiment,
        learner: Learner,
        pool: Pool,
        groups: int,
        size: int,
        close: Callable[[], None],
    ) -> None:
        agent, spec, seed = experiment.agent, experiment.source.spec, experiment.seed
        self.learner = learner
        self._pool, self._close = pool, close
        self._learning = learning_of(agent, spec, size * groups, host=True)
        self._groups = range(groups)
        self._keys = LearnKeys.of(seed)
        self._carry = agent.begin(size)
        self._iteration = 0
        self._arrived: dict[int, Delivery] = {}  # of the iteration under way
        self._unbroken = Unbroken()
        self._store = self._learning.begin(fragment_form(agent, spec, size * groups))

    def iterate(self) -> Iteration:
        """One fragment of every group, then what is to be learned. Where that raises and is called again, it
        goes on: nothing is collected twice. Only a learner that does not repeat itself must not be
        interrupted."""
        self._unbroken.check()
        i, begun = self._iteration, perf_counter()
        self._pool.publish(i, jax.device_get(self.learner.acting()))
        for g in self._groups:
            if g not in self._arrived and not self._pool.owed(g):
                self._pool.order(g, i)
        while len(self._arrived) < len(self._groups):
            self._arrived |= {d.report.group: d for d in self._pool.deliveries(WAIT_SECONDS)}
        deliveries = [self._arrived[g] for g in self._groups]
        collected = perf_counter()
        with nullcontext() if self.learner.repeats else self._unbroken.step():
            self._store, metrics, updates = self._learning.take(
                self.learner, self._store, join([d.trajectory for d in deliveries]), self._keys, i
            )
            metrics = jax.device_get(metrics)
            learned = perf_counter()
            self._iteration, self._arrived = i + 1, {}
        news, spent = news_of(self.learner), {"collect": collected - begun, "learn": learned - collected}
        return Iteration(
            metrics=described(metrics, updates),
            fragments=[fragment_of(d.report.group, d.trajectory) for d in deliveries],
            info=mean_info([d.report.info for d in deliveries]),
            spent={**spent, **self._pool.figures(), **news.figures},
            events=[*self._pool.take_events(), *news.events],
        )

    def save(self) -> dict[str, Any]:
        """Raises ShoalError where an iteration broke off: groups whose fragments have arrived are ahead."""
        self._unbroken.check()
        if self._arrived:
            raise ShoalError(
                "an iteration broke off in its middle, and can't be saved there: go on with train() and save "
                "then, or go on from the last checkpoint with Trainer.resume or Trainer.restore"
            )
        groups = {str(g): saved for g in self._groups if (saved := self._pool.saved(g)) is not None}
        store = self._learning.save(self._store)
        return {"iteration": np.int64(self._iteration), "groups": groups, "store": store}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._iteration = int(saved[f"{prefix}/iteration"])
        for g in self._groups:
            self._pool.restart(g, group_state(self._carry, saved, f"{prefix}/groups/{g}"))
        self._store = self._learning.load(self._store, saved, f"{prefix}/store")

    def close(self) -> None:
        self._close()
