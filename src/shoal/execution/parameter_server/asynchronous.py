"""An asynchronous run: a gradient is applied when it comes, and its group goes on with the newest parameters.

    order -> worker: gradient -> shards: step -> parameters of the next version -> the group's next order

Nobody waits for anybody (Mnih et al. 2016, "Asynchronous methods for deep reinforcement learning"; Nair et
al. 2015, "Massively parallel methods"), or, stale-synchronous, nobody runs far ahead: a group begins a
fragment only while it is done with at most `bound` more than the slowest (Ho et al. 2013, "More effective
distributed ML via a stale synchronous parallel parameter server").

The staleness of a gradient is how many others were applied between the parameters that it was computed with
and itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from shoal.execution import Fragment, Iteration
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.pool import Pool
from shoal.execution.cluster.synchronous import WAIT_SECONDS
from shoal.execution.host import mean_info
from shoal.execution.local import group_state
from shoal.execution.parameter_server.learner import ServerLearner
from shoal.execution.parameter_server.servers import Servers
from shoal.execution.parameter_server.tasks import Tasks
from shoal.execution.parameter_server.work import Done, Plan
from shoal.execution.parameter_server.worker import Collect
from shoal.types import Carry


@dataclass
class Account:
    """Gradients since the run began here. Always: ordered = applied + in flight + lost (of groups that were
    given up)."""

    ordered: int = 0
    applied: int = 0
    in_flight: int = 0
    lost: int = 0


class Arrived(NamedTuple):
    """A delivery, what it came to, and the staleness of its gradient."""

    delivery: Delivery
    done: Done
    staleness: int


class AsynchronousRun:
    """bound: of the groups' fragments ahead of the slowest; None: there is none. carry: the form of the
    policy's memory in one group."""

    def __init__(
        self,
        learner: ServerLearner,
        pool: Pool,
        servers: Servers,
        tasks: Tasks,
        plan: Plan,
        groups: int,
        bound: int | None,
        carry: Carry,
        close: Callable[[], None],
    ) -> None:
        self.learner = learner
        self._pool, self._servers, self._tasks, self._plan = pool, servers, tasks, plan
        self._bound, self._carry, self._close = bound, carry, close
        self._numbers = dict.fromkeys(range(groups), 0)  # of each group's next order
        self._arrived: list[Arrived] = []  # and is not applied
        self._applied: list[Arrived] = []  # in the iteration under way
        self._at: int | None = None  # the shards' version before what is being applied
        self.account = Account()
        # The groups' clocks and states are those of after what has arrived, and so the state shall be too.
        learner.settle = self._apply

    def iterate(self) -> Iteration:
        """Go on until as many fragments are done with as there are groups. Where that raises and is called
        again, it goes on: nothing is lost."""
        begun, applying = perf_counter(), self._servers.spent
        fragments: list[Fragment] = []
        while len(fragments) < len(self._groups()):
            self._apply()  # what had arrived before an interruption, first of all
            self._order()
            self._take(self._pool.deliveries(WAIT_SECONDS))
            self._apply()
            fragments = [one.done.fragment for one in self._applied if one.done.fragment is not None]
        arrived, seconds = self._applied, perf_counter() - begun
        gradients = [one for one in arrived if one.done.computed is not None]
        applying = self._servers.spent - applying
        spent = {"collect": seconds - applying, "learn": applying, **self._pool.figures()}
        spent |= {**self._servers.figures(), "gradients_per_second": len(gradients) / seconds}
        self._applied = []
        return Iteration(
            metrics={name: np.array(value) for name, value in self._metrics(gradients).items()},
            fragments=fragments,
            info=mean_info([one.delivery.report.info for one in arrived]),
            spent=spent,
            events=[*self._pool.take_events(), *self._servers.take_events()],
        )

    def _groups(self) -> list[int]:
        """Those that go on."""
        given_up = self._pool.given_up()
        return [g for g in self._numbers if g not in given_up]

    def _order(self) -> None:
        """Give every group that has nothing to do, and may go on, its next task."""
        self._pool.publish(self._servers.version, None)
        groups = self._groups()
        for g in self._numbers.keys() - set(groups):
            lost = len([task for task in self._tasks.forget(g) if not isinstance(task, Collect)])
            self.account.lost += lost
            self.account.in_flight -= lost
        slowest = min(map(self._plan.clock, groups))
        for g in groups:
            ahead = self._plan.clock(g) - slowest
            wait = self._bound is not None and ahead > self._bound and self._plan.begins(g)
            if wait or self._pool.owed(g):
                continue
            task = self._plan.next(g)
            self._tasks.put(g, self._numbers[g], task)
            if not isinstance(task, Collect):
                self.account.ordered += 1
                self.account.in_flight += 1
            self._pool.order(g, self._numbers[g])
            self._numbers[g] += 1

    def _take(self, deliveries: list[Delivery]) -> None:
        """Note what was delivered, in the order in which it came."""
        applied = self._tasks.applied
        for delivery in deliveries:
            report = delivery.report
            task, before = self._tasks.take(report.group, report.fragment)
            done = self._plan.take(report.group, task, delivery)
            self._arrived.append(Arrived(delivery, done, applied - before))
            applied += done.computed is not None

    def _apply(self) -> None:
        """Have the shards make the steps of what has arrived."""
        if not self._arrived:
            return
        if self._at is None:
            self._at = self._servers.version
        self._servers.advance([one.done.work for one in self._arrived], self._at)
        gradients = sum(one.done.computed is not None for one in self._arrived)
        self.account.applied += gradients
        self.account.in_flight -= gradients
        self._tasks.applied += gradients
        self._applied += self._arrived
        self._arrived, self._at = [], None

    def _metrics(self, gradients: list[Arrived]) -> dict[str, float]:
        """Means over all rows, and what became of gradients."""
        sums: dict[str, float] = defaultdict(float)
        total, travelled = 0.0, 0
        for one in gradients:
            computed = one.done.computed
            assert computed is not None
            total += float(computed.push.weight)
            travelled += computed.bytes
            for name, value in computed.push.metrics.items():
                sums[name] += float(value)
        stale = [one.staleness for one in gradients]
        return {
            **{name: value / max(total, 1e-8) for name, value in sums.items()},
            "staleness/mean": float(np.mean(stale or [0])),
            "staleness/max": max(stale, default=0),
            "gradients/ordered": self.account.ordered,
            "gradients/applied": self.account.applied,
            "gradients/in_flight": self.account.in_flight,
            "gradients/lost": self.account.lost,
            "gradients/bytes": travelled / max(len(gradients), 1),
            **self._plan.metrics(),
        }

    def save(self) -> dict[str, Any]:
        """What is under way is not part of it: a resumed run has it done again. What has arrived is."""
        self._apply()
        states = {str(g): saved for g in self._numbers if (saved := self._pool.saved(g)) is not None}
        return {"applied": np.int64(self._tasks.applied), "groups": states, "plan": self._plan.save()}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._tasks.applied = int(saved[f"{prefix}/applied"])
        self._plan.load(saved, f"{prefix}/plan")
        for g in self._numbers:
            self._pool.restart(g, group_state(self._carry, saved, f"{prefix}/groups/{g}"))

    def close(self) -> None:
        self._close()
