"""An asynchronous run on a cluster: runners collect all the time, the learner takes what has arrived.

    groups, each a fragment or two ahead -> queue -> K fragments -> learn -> parameters of the next version

An update learns from K fragments, whichever groups they are of. A fragment's staleness is how many updates
were made between the parameters that acted in it and those that it is learned with; what exceeds the plan's
bound is dropped and counted. Orders are only given while those under way can be learned from within the
bound: that is the queue's back-pressure, so that drops are the exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import numpy as np

from shoal.execution import Iteration
from shoal.execution.cluster.flow import Flow
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.pool import Pool
from shoal.execution.cluster.synchronous import WAIT_SECONDS
from shoal.execution.host import mean_info
from shoal.execution.learner import Learner, news_of
from shoal.execution.learning import LearnKeys, learning_of
from shoal.execution.local import fragment_of
from shoal.execution.unroll import fragment_form, join
from shoal.recipe import Experiment


@dataclass
class Account:
    """Fragments since the run began here. Always: delivered = learned + dropped + those in the queue."""

    delivered: int = 0
    learned: int = 0
    dropped: int = 0


class AsynchronousRun:
    """A started Cluster executor, for an OnPolicy plan with staleness. per_update: K. ahead: how many
    fragments of one group may be ordered before one of them is delivered."""

    def __init__(
        self,
        experiment: Experiment,
        learner: Learner,
        pool: Pool,
        groups: int,
        size: int,
        per_update: int,
        ahead: int,
        close: Callable[[], None],
    ) -> None:
        agent, spec, seed = experiment.agent, experiment.source.spec, experiment.seed
        self.learner = learner
        self._pool, self._close, self._per_update, self._groups = pool, close, per_update, groups
        self._staleness = agent.plan.staleness
        self._learning = learning_of(agent, spec, size * per_update, host=True)
        self._keys = LearnKeys.of(seed)
        self._flow = Flow(pool, groups, agent.begin(size), ahead)
        self._store = self._learning.begin(fragment_form(agent, spec, size * per_update))
        self._version = 0  # updates made
        self._queue: deque[Delivery] = deque()
        self.account = Account()
        self._published = False
        self._late: set[int] = set()  # groups whose fragments come as stale as may be, or staler

    def iterate(self) -> Iteration:
        """Updates until as many fragments as there are groups have been learned from or dropped."""
        before, begun, learning = self._pool.counts.delivered, perf_counter(), 0.0
        taken: list[Delivery] = []
        updates: list[Any] = []
        stale: list[int] = []
        while len(taken) < self._groups or not updates:
            if not self._published:
                self._pool.publish(self._version, jax.device_get(self.learner.acting()))
                self._published = True
            self._gather()
            taken += self._drop_stale()
            if len(self._queue) < self._per_update:
                continue
            batch = [self._queue.popleft() for _ in range(self._per_update)]
            at = perf_counter()
            self._store, metrics, _ = self._learning.take(
                self.learner, self._store, join([d.trajectory for d in batch]), self._keys, self._version
            )
            updates.append(jax.device_get(metrics))
            learning += perf_counter() - at
            stale += [self._staleness_of(d) for d in batch]
            self._done(batch)
            self._version += 1
            self._published = False
            self.account.learned += len(batch)
            taken += batch
        seconds = perf_counter() - begun
        news = news_of(self.learner)
        figures = {**self._pool.figures(), **news.figures}
        figures["fragments_per_second"] = (self._pool.counts.delivered - before) / seconds
        return Iteration(
            metrics={
                **{name: np.array(np.mean([u[name] for u in updates])) for name in updates[0]},
                "staleness/mean": np.array(np.mean(stale)),
                "staleness/max": np.array(max(stale)),
                "fragments/delivered": np.array(self.account.delivered),
                "fragments/learned": np.array(self.account.learned),
                "fragments/dropped": np.array(self.account.dropped),
                "fragments/queued": np.array(len(self._queue)),
            },
            fragments=[fragment_of(d.report.group, d.trajectory) for d in taken],
            info=mean_info([d.report.info for d in taken]),
            spent={"collect": seconds - learning, "learn": learning, **figures},
            events=[*self._pool.take_events(), *news.events],
        )

    def _gather(self) -> None:
        """Order what may be ordered, and take in what has arrived; wait only where there is nothing to do."""
        owed = sum(map(self._pool.owed, self._flow.groups()))
        room = self._per_update * (self._staleness + 1) - len(self._queue) - owed
        self._flow.order(room, self._pool.owed, self._late)
        enough = len(self._queue) >= self._per_update
        arrived = self._pool.deliveries(0.0 if enough else WAIT_SECONDS)
        self._queue.extend(arrived)
        self.account.delivered += len(arrived)

    def _drop_stale(self) -> list[Delivery]:
        """Take out of the queue what is staler than the plan allows."""
        old = [d for d in self._queue if self._staleness_of(d) > self._staleness]
        if old:
            self._queue = deque(d for d in self._queue if self._staleness_of(d) <= self._staleness)
            self.account.dropped += len(old)
            self._done(old)
        return old

    def _staleness_of(self, delivery: Delivery) -> int:
        """If it were learned from now."""
        return self._version - delivery.report.version

    def _done(self, deliveries: list[Delivery]) -> None:
        """These are learned from or dropped. A fragment that waits behind another of its runner becomes about
        twice as stale as one that does not: a slow runner's next is ordered when it has none."""
        for d in deliveries:
            if self._staleness_of(d) >= self._staleness:
                self._late.add(d.report.group)
            elif 2 * self._staleness_of(d) < self._staleness:
                self._late.discard(d.report.group)
        self._flow.settle(d.report for d in deliveries)

    def save(self) -> dict[str, Any]:
        """What is under way or in the queue is not part of it: a resumed run collects it again."""
        return {
            "iteration": np.int64(self._version),
            **self._flow.save(),
            "store": self._learning.save(self._store),
        }

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._version = int(saved[f"{prefix}/iteration"])
        self._flow.load(saved, prefix)
        self._store = self._learning.load(self._store, saved, f"{prefix}/store")
        self._published = False

    def close(self) -> None:
        self._close()
