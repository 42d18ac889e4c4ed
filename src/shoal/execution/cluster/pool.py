"""The supervisor: sees to it that every ordered fragment is delivered once, whatever happens to runners.

    publish(version, parameters), order(group, fragment) ... -> deliveries() -> [Delivery, ...]

It knows runners, groups and orders as plain data (`roster`), and the runners themselves through a `Fleet`.
Every group has a home, the runner that hosts it (`homes`, as `balance` says). A lost runner's groups find a
new home at once and begin again from their state before the fragment under way, so that nothing is lost and
nothing delivered twice; a replacement is started beside that (`staff`). Losses are found by the fleet's word,
or, where a runner is silent, by a deadline that follows the time that fragments took of late (`deadlines`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shoal.errors import ShoalError
from shoal.execution.cluster.deadlines import Usual, Watch, silence
from shoal.execution.cluster.elastic import Decision
from shoal.execution.cluster.homes import Homes
from shoal.execution.cluster.orders import CollectFailed, Delivery, Fleet, Order, Report, RunnerLost, Ticket
from shoal.execution.cluster.roster import Counts, Group, Limits, Runner, Sent, alone, wait_again
from shoal.execution.cluster.staff import Staff

__all__ = ["Counts", "Limits", "Pool"]

AHEAD = 2  # orders that a runner holds: one that it works on, one more
EVENTS = 500  # are kept until somebody takes them


Look = Callable[[int, float, float, float], Decision | None]


class Pool:
    """Runners under supervision. groups: number -> state to begin with (None: new). elastic: says whether the
    number of runners shall change (see `elastic.Elastic.look`). at_once: see `Staff`."""

    def __init__(
        self,
        fleet: Fleet,
        groups: Mapping[int, Any],
        runners: int,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        elastic: Look | None = None,
        at_once: int | None = None,
    ) -> None:
        self._fleet, self._limits, self._clock = fleet, limits, clock
        self._elastic = elastic
        self._groups = {number: Group(saved) for number, saved in groups.items()}
        self._version, self._params = -1, None
        self._watch, self._usual = Watch(clock), Usual()
        self._since, self._waited = clock(), 0.0
        self._found: list[Delivery] = []
        self._events: deque[str] = deque(maxlen=EVENTS)
        self.counts = told = Counts()
        self._staff = Staff(fleet, limits, told, self._events, clock, self._watch, at_once)
        self._runners = self._staff.runners
        self._homes = Homes(fleet, self._groups, self._runners, told, self._events, clock)
        self.resize(runners, "as configured")

    # -- orders and deliveries ---------------------------------------------------------------------------

    def publish(self, version: int, params: Any) -> None:
        """The parameters (NumPy leaves) that act in all fragments that are sent from now on."""
        self._version, self._params = version, self._fleet.publish(params)

    def order(self, group: int, fragment: int) -> None:
        """Have a fragment collected, after those that were ordered of this group before. One of a group that
        is given up never comes."""
        if not self._groups[group].given_up:
            self._groups[group].waiting.append(fragment)

    def restart(self, group: int, saved: Any) -> None:
        """Let a group of which nothing is ordered go on from this state."""
        assert not self._groups[group].owed, f"group {group} is at work"
        self._homes.leave(group)
        self._groups[group].saved = saved

    def owed(self, group: int) -> int:
        """Fragments of this group that were ordered and are not delivered."""
        return self._groups[group].owed

    def tend(self) -> None:
        """Do what can be done without waiting for anything."""
        self._staff.recruit()
        self._homes.tend()
        self._send()

    def deliveries(self, timeout: float) -> list[Delivery]:
        """What has arrived: at least one fragment, unless `timeout` seconds pass before or nothing is owed.

        Raises ShoalError for a group that failed again and again, or where no runner can be started.
        """
        end = self._clock() + timeout
        while True:
            self.tend()
            now, owed = self._clock(), any(group.owed for group in self._groups.values())
            heads = {id(ticket): (number, ticket) for number, ticket in self._heads()}
            patience = min(end - now, self._next_deadline()) if owed else 0.0
            ready = self._fleet.wait([ticket for _, ticket in heads.values()], max(0.0, patience))
            self._watch.waited(now)
            self._waited += self._clock() - now
            for ticket in ready:
                self._take(heads[id(ticket)][0])
            self._find_hung()
            if self._found or not owed or self._clock() >= end:
                self.tend()
                found, self._found = self._found, []
                return found

    def _heads(self) -> Iterable[tuple[int, Ticket]]:
        """What each runner answers next."""
        for number, runner in self._runners.items():
            if runner.ticket is not None:
                yield number, runner.ticket
            elif runner.pinged is not None:
                yield number, runner.pinged
            elif runner.sent:
                yield number, runner.sent[0].ticket

    def _take(self, number: int) -> None:
        """Take in a runner's answer. What has been found so far is kept, also where this raises."""
        runner = self._runners[number]
        if runner.ticket is not None:
            if self._staff.started(number, runner, runner.ticket):
                self._homes.changed()  # it has no groups yet
            return
        if runner.pinged is not None:
            try:
                self._fleet.take(runner.pinged)
                runner.pinged = None
            except (RunnerLost, CollectFailed) as error:
                self._lose(number, str(error))
            return
        sent = runner.sent[0]
        try:
            report: Report = self._fleet.take(sent.ticket)
        except RunnerLost as error:
            self._lose(number, str(error))
            return
        except CollectFailed as error:
            self._fail(number, sent, error)
            return
        if sent.void:
            self._answered(runner)
            return
        try:
            trajectory = self._fleet.fetch(sent.ticket.trajectory)
        except (RunnerLost, CollectFailed) as error:  # the group had done its work
            self._lose(number, str(error), blame=False)
            return
        if (report.group, report.fragment, report.lease) != (sent.group, sent.fragment, sent.lease):
            self.counts.late += 1
            self._lose(number, f"it answered {sent[1:]} with {report[:3]}", blame=False)
            return
        self._found.append(self._deliver(number, runner, report, trajectory))

    def _deliver(self, number: int, runner: Runner, report: Report, trajectory: Any) -> Delivery:
        self._answered(runner)
        group = self._groups[report.group]
        group.under_way -= 1
        group.saved = report.after
        group.acquit()
        first = report.group not in runner.opened
        spent = sum(report.spent.values())  # as the runner measured it: we may have looked long after
        self._usual.note(spent, first=first)
        runner.busy += spent
        if not first:
            runner.work.append(spent)
        runner.opened.add(report.group)
        self.counts.delivered += 1
        return Delivery(report, trajectory, number)

    def _answered(self, runner: Runner) -> None:
        """A runner is done with its first order."""
        runner.sent.popleft()
        runner.begun = self._watch.now()

    # -- runners that come and go ------------------------------------------------------------------------

    def resize(self, runners: int, why: str) -> None:
        """Have so many runners from now on."""
        self._staff.resize(runners, self._groups, why)
        self._homes.changed()

    def _lose(self, number: int, reason: str, *, blame: bool = True, strike: bool = True) -> None:
        """A runner is gone: its orders wait again, and its groups have no home. The group that it was at work
        on gets a strike where it was there alone; else it is suspected, and will be alone sooner or later."""
        runner = self._runners.pop(number)
        self._fleet.kill(number)
        # It may not be the only one that is lost, and no group shall answer for that.
        for n, other in self._runners.items():
            if other.live and not other.sent and other.pinged is None:
                other.pinged, other.begun = self._fleet.ping(n), self._watch.now()
        at_work = runner.sent[0].group if runner.sent and blame else None
        single = at_work is not None and alone(self._groups, number, runner, at_work)
        homeless = [n for n, group in self._groups.items() if group.home == number]
        for n in homeless:
            wait_again(self._groups[n], n, runner.sent)
            self._groups[n].leave()
        self.counts.moves += len(homeless)
        self._events.append(f"runner {number} lost ({reason}); groups {homeless} move")
        if at_work is None:
            return
        if not single:
            self._groups[at_work].suspicion += 1
        elif strike:
            self._strike(at_work, f"its runner died: {reason}")

    def _fail(self, number: int, failed: Sent, error: CollectFailed) -> None:
        """Collecting raised: the group begins again, from its state before, elsewhere if it can."""
        runner, n = self._runners[number], failed.group
        if failed.void:
            self._answered(runner)
            return
        self.counts.raised += 1
        if error.user:
            raise ShoalError(str(error))
        wait_again(self._groups[n], n, runner.sent)
        self._answered(runner)
        # What was sent of this group after the failed order goes on from a broken state.
        runner.sent = deque(s._replace(void=True) if s.group == n else s for s in runner.sent)
        runner.opened.add(n)  # in part at least
        self._homes.leave(n)
        self._strike(n, str(error))

    def _strike(self, number: int, reason: str) -> None:
        group = self._groups[number]
        group.strikes += 1
        group.first_error = group.first_error if group.strikes > 1 else reason
        self._events.append(
            f"group {number} failed {group.strikes} of {self._limits.strikes} times: {reason}"
        )
        if group.strikes < self._limits.strikes:
            return
        verdict = (
            f"group {number} failed {group.strikes} times in a row; the first error: {group.first_error}"
        )
        others = [g for g in self._groups.values() if g is not group and not g.given_up]
        if not (self._limits.give_up and others):
            raise ShoalError(verdict)
        group.given_up = True
        group.waiting.clear()
        self._events.append(f"{verdict}; it is given up")

    # -- silence -----------------------------------------------------------------------------------------

    def _silence(self, runner: Runner) -> tuple[float, bool]:
        """See `deadlines.silence`."""
        hangs = self._groups[runner.sent[0].group].hangs if runner.sent else 0
        return silence(runner, hangs, self._usual, self._limits, self._watch.now())

    def _next_deadline(self) -> float:
        """Seconds until somebody's silence has lasted too long, or a runner may be started again."""
        seconds = [self._silence(runner)[0] for runner in self._runners.values()]
        return min([*seconds, max(0.01, self._staff.pause)])

    def _find_hung(self) -> None:
        for number, runner in list(self._runners.items()):
            left, all_of_it = self._silence(runner)
            if left > 1e-6:
                continue
            if not runner.live:
                self._staff.failed(number, f"not ready after {self._limits.start:.0f} s", False)
                continue
            self.counts.hung += 1
            if runner.sent:
                self._groups[runner.sent[0].group].hangs += 1
            silent = self._watch.now() - runner.begun
            self._lose(number, f"silent for {silent:.1f} s", strike=all_of_it)

    def _send(self) -> None:
        """Give every runner orders of its groups, the group that is furthest behind first."""
        for number, runner in self._runners.items():
            if not runner.live or runner.pinged is not None or len(runner.sent) >= AHEAD:
                continue
            mine = [n for n, g in self._groups.items() if g.home == number and g.target is None and g.waiting]
            while len(runner.sent) < AHEAD and mine:
                n = min(mine, key=lambda n: (self._groups[n].waiting[0], n))
                group = self._groups[n]
                if group.suspect and not alone(self._groups, number, runner, n):
                    mine.remove(n)  # until the others have left
                    continue
                fragment = group.waiting.popleft()
                saved = None if n in runner.opened or group.under_way else group.saved
                order = Order(n, fragment, group.lease, self._version, saved)
                if not runner.sent:
                    runner.begun = self._watch.now()
                ticket = self._fleet.send(number, order, self._params)
                runner.sent.append(Sent(ticket, n, fragment, group.lease))
                group.under_way += 1
                if not group.waiting:
                    mine.remove(n)

    # -- what is said of it ------------------------------------------------------------------------------

    @property
    def wanted(self) -> int:
        """Runners that there shall be."""
        return self._staff.wanted

    def saved(self, group: int) -> Any:
        """The group's state after its last delivered fragment."""
        return self._groups[group].saved

    def figures(self) -> dict[str, float]:
        """How the runners do, since the last call; their number may change by that, where it is elastic.

        runners_idle: the share of their time that they did not work. waiting: the share of this process's
        time that it waited for fragments.
        """
        now = self._clock()
        live = [runner for runner in self._runners.values() if runner.live]
        there = sum(now - runner.since for runner in live)
        busy = sum(min(runner.busy, now - runner.since) for runner in live)
        idle = 1.0 - busy / there if there > 0 else 0.0
        seconds = max(now - self._since, 1e-9)
        waiting = min(1.0, self._waited / seconds)
        for runner in live:
            runner.busy, runner.since = 0.0, now
        self._since, self._waited = now, 0.0
        decision = self._elastic and self._elastic(self.wanted, seconds, waiting, idle)
        if decision:
            self.resize(decision.runners, decision.why)
        return {
            "runners": len(live),
            "runners_idle": idle,
            "waiting": waiting,
            "restarts": self.counts.restarts,
            "moves": self.counts.moves,
        }

    def given_up(self) -> set[int]:
        """Groups that failed too often."""
        return {n for n, g in self._groups.items() if g.given_up}

    def take_events(self) -> list[str]:
        """What happened since the last call, in words."""
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        self._fleet.close()
