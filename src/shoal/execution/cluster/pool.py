"""The supervisor: sees to it that every ordered fragment is delivered once, whatever happens to runners.

    publish(version, parameters), order(group, fragment) ... -> deliveries() -> [Delivery, ...]

It knows runners, groups and orders as plain data (`roster`), and the runners themselves through a `Fleet`.
Every group has a home, the runner that hosts it (`balance` says which). A lost runner's groups find a new
home at once and begin again from their state before the fragment under way, so that nothing is lost and
nothing delivered twice; a replacement is started beside that. Losses are found by the fleet's word, or, where
a runner is silent, by a deadline that follows the time that fragments took of late (`deadlines`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shoal.errors import ShoalError
from shoal.execution.cluster.balance import Seat, better_homes, loads_of, seats
from shoal.execution.cluster.deadlines import Usual, Watch, allowed
from shoal.execution.cluster.orders import CollectFailed, Delivery, Fleet, Order, Report, RunnerLost, Ticket
from shoal.execution.cluster.roster import NOWHERE, Counts, Group, Limits, Runner, Sent, alone, wait_again

__all__ = ["Counts", "Limits", "Pool"]

AHEAD = 2  # orders that a runner holds: one that it works on, one more
REBALANCE_SECONDS = 1.0
AGREED = 3  # so many looks in a row must find moves worthwhile: measured times are noisy
RETRY_SECONDS = 30.0  # between attempts to start a runner, after some that failed
EVENTS = 500  # are kept until somebody takes them


class Pool:
    """Runners under supervision. groups: number -> state to begin with (None: new)."""

    def __init__(
        self,
        fleet: Fleet,
        groups: Mapping[int, Any],
        runners: int,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._limits, self._clock = fleet, limits, clock
        self._groups = {number: Group(saved) for number, saved in groups.items()}
        self._runners: dict[int, Runner] = {}
        self._next = 0
        self._version, self._params = -1, None
        self._failed_starts, self._start_again = 0, float("-inf")
        self._watch, self._usual = Watch(clock), Usual()
        self._balanced, self._agreed = clock(), 0
        self._since, self._waited = clock(), 0.0
        self._found: list[Delivery] = []
        self._events: deque[str] = deque(maxlen=EVENTS)
        self.counts = Counts()
        self.wanted = 0
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
        self._leave(group)
        self._groups[group].saved = saved

    def owed(self, group: int) -> int:
        """Fragments of this group that were ordered and are not delivered."""
        return self._groups[group].owed

    def tend(self) -> None:
        """Do what can be done without waiting for anything."""
        self._recruit()
        self._settle()
        if self._balance():
            self._settle()
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
            self._started(number, runner, runner.ticket)
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
        if self.wanted and runners != self.wanted:
            self._events.append(f"runners {self.wanted} -> {runners}: {why}")
        self.wanted = runners
        hosted = {n: sum(g.home == n for g in self._groups.values()) for n in self._runners}
        ranked = sorted(self._runners, key=lambda n: (self._runners[n].live, hosted[n], -n), reverse=True)
        for place, number in enumerate(ranked):  # also those that were to retire may stay
            self._runners[number].retiring = place >= runners
        for _ in range(runners - len(self._runners)):
            self._start()
        self._agreed = AGREED

    def _start(self) -> None:
        number, self._next = self._next, self._next + 1
        self._runners[number] = Runner(self._fleet.start(number), self._watch.now())

    def _recruit(self) -> None:
        """Start runners in the place of those that were lost."""
        staff = sum(not runner.retiring for runner in self._runners.values())
        if staff < self.wanted and self._clock() >= self._start_again:
            self._start_again = float("-inf")
            for _ in range(self.wanted - staff):
                self.counts.restarts += 1
                self._start()

    def _started(self, number: int, runner: Runner, ticket: Ticket) -> None:
        try:
            self._fleet.take(ticket)
        except CollectFailed as error:
            self._not_started(number, str(error), error.user)
        except RunnerLost as error:
            self._not_started(number, str(error), False)
        else:
            runner.ticket, runner.begun, runner.since = None, self._watch.now(), self._clock()
            self._failed_starts, self._start_again = 0, float("-inf")
            self._agreed = AGREED  # it has no groups yet: see who can give it some

    def _not_started(self, number: int, reason: str, user: bool) -> None:
        del self._runners[number]
        self._fleet.kill(number)
        self._failed_starts += 1
        self._events.append(f"runner {number} could not be started: {reason}")
        enough = self._failed_starts >= self._limits.strikes
        if (user and not any(r.live for r in self._runners.values())) or (enough and not self._runners):
            raise ShoalError(f"no env runner can be started: {reason}")
        if user or enough:
            self._start_again = self._clock() + RETRY_SECONDS

    def _lose(self, number: int, reason: str, *, blame: bool = True, strike: bool = True) -> None:
        """A runner is gone: its orders wait again, and its groups have no home. The group that it was at work
        on gets a strike where it was there alone; else it is suspected, and will be alone sooner or later."""
        runner = self._runners.pop(number)
        self._fleet.kill(number)
        for (
            n,
            other,
        ) in self._runners.items():  # it may not be the only one, and no group shall answer for that
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
        self._leave(n)
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
        """(seconds until a runner's silence has lasted too long, whether its group cannot have more)."""
        if not runner.live:
            seconds, all_of_it = self._limits.start, True
        elif runner.pinged is not None:
            seconds, all_of_it = self._limits.slack, False
        elif not runner.sent:
            return float("inf"), False
        else:
            group = runner.sent[0].group
            first = group not in runner.opened
            seconds, all_of_it = allowed(
                self._usual, self._limits, first=first, hangs=self._groups[group].hangs
            )
        return runner.begun + seconds - self._watch.now(), all_of_it

    def _next_deadline(self) -> float:
        """Seconds until somebody's silence has lasted too long, or a runner may be started again."""
        seconds = [self._silence(runner)[0] for runner in self._runners.values()]
        if self._start_again > float("-inf"):
            seconds.append(max(0.01, self._start_again - self._clock()))
        return min(seconds, default=float("inf"))

    def _find_hung(self) -> None:
        for number, runner in list(self._runners.items()):
            left, all_of_it = self._silence(runner)
            if left > 1e-6:
                continue
            if not runner.live:
                self._not_started(number, f"not ready after {self._limits.start:.0f} s", False)
                continue
            self.counts.hung += 1
            if runner.sent:
                self._groups[runner.sent[0].group].hangs += 1
            silent = self._watch.now() - runner.begun
            self._lose(number, f"silent for {silent:.1f} s", strike=all_of_it)

    # -- homes -------------------------------------------------------------------------------------------

    def _leave(self, number: int) -> None:
        """End a group's stay on its runner, and have it closed there."""
        group = self._groups[number]
        runner = self._runners.get(NOWHERE if group.home is None else group.home)
        if runner is not None and number in runner.opened:
            assert group.home is not None
            runner.opened.discard(number)
            self._fleet.drop(group.home, number)
        group.leave()

    def _hosts(self) -> dict[int, float | None]:
        return {n: r.seconds for n, r in self._runners.items() if r.live and not r.retiring}

    def _seats(self) -> dict[int, Seat]:
        return {
            n: Seat(g.home if g.target is None else g.target, g.suspect)
            for n, g in self._groups.items()
            if not g.given_up
        }

    def _settle(self) -> None:
        """Let groups move that shall, find places for those that need one, and let empty runners go."""
        for number, runner in seats(self._seats(), self._hosts()).items():
            group = self._groups[number]
            if group.home is not None:
                group.target = None if runner == group.home else runner
            elif runner != NOWHERE:
                group.home = runner
        for number, group in self._groups.items():
            if group.target is not None and not group.under_way:
                home = group.target if group.target in self._runners else None
                self._leave(number)
                group.home = home
                self.counts.moves += 1
        for number, runner in list(self._runners.items()):
            if runner.retiring and not any(number in (g.home, g.target) for g in self._groups.values()):
                del self._runners[number]
                self._fleet.kill(number)

    def _balance(self) -> bool:
        """Now and then, give groups of slow runners to others, where that has seemed right for a while."""
        now = self._clock()
        if now - self._balanced < REBALANCE_SECONDS and self._agreed < AGREED:
            return False
        self._balanced = now
        placed, hosts = self._seats(), self._hosts()
        taken = {seat.runner for seat in placed.values() if seat.suspect}
        open_to_all = {runner: seconds for runner, seconds in hosts.items() if runner not in taken}
        moves = better_homes(loads_of(placed, open_to_all))
        self._agreed = self._agreed + 1 if moves else 0
        if self._agreed < AGREED:
            return False
        self._agreed = 0
        for group, (runner, why) in moves.items():
            home = self._groups[group].home
            self._groups[group].target = None if runner == home else runner
            self._events.append(f"group {group} moves to runner {runner}: {why}")
        return True

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

    def saved(self, group: int) -> Any:
        """The group's state after its last delivered fragment."""
        return self._groups[group].saved

    def figures(self) -> dict[str, float]:
        """How the runners do, since the last call. runners_idle: the share of their time that they did not
        work. waiting: the share of this process's time that it waited for fragments."""
        now = self._clock()
        live = [runner for runner in self._runners.values() if runner.live]
        there = sum(now - runner.since for runner in live)
        busy = sum(min(runner.busy, now - runner.since) for runner in live)
        waiting = self._waited / max(now - self._since, 1e-9)
        for runner in live:
            runner.busy, runner.since = 0.0, now
        self._since, self._waited = now, 0.0
        return {
            "runners": len(live),
            "runners_idle": 1.0 - busy / there if there > 0 else 0.0,
            "waiting": min(1.0, waiting),
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
