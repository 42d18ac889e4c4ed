"""The supervisor: sees to it that every ordered fragment is delivered once, whatever happens to runners.

    publish(version, parameters), order(group, fragment) ... -> deliveries() -> [Delivery, ...]

It knows runners, groups and orders as plain data, and the runners themselves through a `Fleet`. Every group
has a home, the runner that hosts it. A lost runner's groups find a new home at once and begin again from
their state before the fragment under way, so that nothing is lost and nothing delivered twice; a replacement
is started beside that. Losses are found by the fleet's word, or, where a runner is silent, by a deadline that
follows the time that fragments took of late.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shoal.errors import ShoalError
from shoal.execution.cluster.balance import Load, better_homes, place
from shoal.execution.cluster.orders import CollectFailed, Delivery, Fleet, Order, Report, RunnerLost, Ticket

START_SECONDS = 120.0  # until a runner must be ready; and a group's first fragment there be done
SLACK_SECONDS = 3.0  # what every deadline allows beyond a multiple of what is usual
AHEAD = 2  # orders that a runner holds: one that it works on, one more
REBALANCE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """patience: a runner that takes so many times the longest fragment of late, and 3 s, is taken for hung.
    strikes: how often in a row a group may raise, or take down a runner that it has for itself. give_up: go
    on without such a group, as long as there are others, in the place of stopping."""

    patience: float = 10.0
    strikes: int = 3
    give_up: bool = False


@dataclass
class _Group:
    saved: Any  # its state before the next fragment that has not been delivered; None: new
    home: int | None = None
    target: int | None = None  # where it moves as soon as nothing of it is under way
    lease: int = 0
    waiting: deque[int] = field(default_factory=deque)  # fragments
    under_way: int = 0
    strikes: int = 0
    suspicion: int = 0  # how often in a row it was at work on a runner, among others, that died
    first_error: str = ""
    given_up: bool = False

    @property
    def suspect(self) -> bool:
        """It shall be alone on a runner, so that it is known whether it is to blame."""
        return self.suspicion >= 2


class _Sent(NamedTuple):
    ticket: Ticket
    group: int
    fragment: int


@dataclass
class _Runner:
    ticket: Ticket | None  # of its start; None once it is ready
    begun: float  # when it began what it is at now
    sent: deque[_Sent] = field(default_factory=deque)
    opened: set[int] = field(default_factory=set)
    seconds: float | None = None  # a fragment's, here, of late
    idle: float = 0.0
    retiring: bool = False

    @property
    def live(self) -> bool:
        return self.ticket is None


@dataclass
class Counts:
    """What has happened so far: fragments delivered, runners started anew, groups moved, runners found hung,
    fragments whose environments raised, results that came too late."""

    delivered: int = 0
    restarts: int = 0
    moves: int = 0
    hung: int = 0
    raised: int = 0
    late: int = 0


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
        self._groups = {number: _Group(saved) for number, saved in groups.items()}
        self._runners: dict[int, _Runner] = {}
        self._next = 0
        self._version, self._params = -1, None
        self._failed_starts = 0
        self._durations: deque[float] = deque(maxlen=50)
        self._balanced = clock()
        self._since = clock()
        self.counts = Counts()
        self.events: list[str] = []
        self.wanted = 0
        self.resize(runners, "as configured")

    # -- orders and deliveries ---------------------------------------------------------------------------

    def publish(self, version: int, params: Any) -> None:
        """The parameters (NumPy leaves) that act in all fragments that are sent from now on."""
        self._version, self._params = version, self._fleet.publish(params)

    def order(self, group: int, fragment: int) -> None:
        """Have a fragment collected, after those that were ordered of this group before."""
        self._groups[group].waiting.append(fragment)

    def restart(self, group: int, saved: Any) -> None:
        """Let a group of which nothing is ordered go on from this state."""
        state = self._groups[group]
        state.saved = saved
        if state.home is not None:
            self._leave(state)

    def owed(self, group: int) -> int:
        """Fragments of this group that were ordered and are not delivered."""
        state = self._groups[group]
        return len(state.waiting) + state.under_way

    def tend(self) -> None:
        """Send what can be sent, without waiting for anything."""
        self._settle()
        self._balance()
        self._settle()
        self._send()

    def deliveries(self, timeout: float) -> list[Delivery]:
        """What has arrived: at least one fragment, unless `timeout` seconds pass before.

        Raises ShoalError for a group that failed again and again, or where no runner can be started.
        """
        end = self._clock() + timeout
        while True:
            self.tend()
            tickets = {id(ticket): (number, ticket) for number, ticket in self._heads()}
            now = self._clock()
            patience = max(0.0, min(end, self._next_deadline()) - now)
            ready = self._fleet.wait([ticket for _, ticket in tickets.values()], patience)
            found = [d for t in ready if (d := self._take(tickets[id(t)][0])) is not None]
            self._find_hung()
            if found or self._clock() >= end:
                self.tend()
                return found

    def _heads(self) -> Iterable[tuple[int, Ticket]]:
        """What each runner answers next."""
        for number, runner in self._runners.items():
            if runner.ticket is not None:
                yield number, runner.ticket
            elif runner.sent:
                yield number, runner.sent[0].ticket

    def _take(self, number: int) -> Delivery | None:
        runner = self._runners[number]
        if runner.ticket is not None:
            self._started(number, runner)
            return None
        ticket, group, _ = runner.sent[0]
        try:
            report: Report = self._fleet.take(ticket)
            trajectory = self._fleet.fetch(ticket.trajectory)
        except RunnerLost as error:
            self._lose(number, str(error))
            return None
        except CollectFailed as error:
            self._fail(number, group, error)
            return None
        return self._deliver(number, runner, report, trajectory)

    def _deliver(self, number: int, runner: _Runner, report: Report, trajectory: Any) -> Delivery | None:
        group = self._groups[report.group]
        runner.sent.popleft()
        now = self._clock()
        spent = now - runner.begun
        runner.begun = now
        group.under_way -= 1
        if (group.home, group.lease) != (number, report.lease):  # cannot be; would it be, it must not count
            self.counts.late += 1
            return None
        group.saved = report.after
        group.strikes = group.suspicion = 0
        work = spent - report.spent.get("rebuild", 0.0)
        runner.seconds = work if runner.seconds is None else 0.7 * runner.seconds + 0.3 * work
        if report.group in runner.opened:  # the first one here compiles and builds, and is no measure
            self._durations.append(spent)
        runner.opened.add(report.group)
        self.counts.delivered += 1
        return Delivery(report, trajectory, number)

    # -- runners that come and go ------------------------------------------------------------------------

    def resize(self, runners: int, why: str) -> None:
        """Have so many runners from now on."""
        if self.wanted and runners != self.wanted:
            self.events.append(f"runners {self.wanted} -> {runners}: {why}")
        self.wanted = runners
        kept = [r for r in self._runners.values() if not r.retiring]
        for _ in range(runners - len(kept)):
            self._start()
        surplus = sorted(kept, key=lambda r: (r.live, len(r.opened)))[: max(0, len(kept) - runners)]
        for runner in surplus:
            runner.retiring = True
        self._balanced = float("-inf")

    def _start(self) -> None:
        number, self._next = self._next, self._next + 1
        self._runners[number] = _Runner(self._fleet.start(number), self._clock())

    def _started(self, number: int, runner: _Runner) -> None:
        assert runner.ticket is not None
        try:
            self._fleet.take(runner.ticket)
        except CollectFailed as error:
            self._not_started(number, str(error), error.user)
        except RunnerLost as error:
            self._not_started(number, str(error), False)
        else:
            runner.ticket, runner.begun = None, self._clock()
            self._failed_starts = 0
            self._balanced = float("-inf")  # it has no groups yet: see who can give it some

    def _not_started(self, number: int, reason: str, user: bool) -> None:
        del self._runners[number]
        self._fleet.kill(number)
        self._failed_starts += 1
        self.events.append(f"runner {number} could not be started: {reason}")
        alone = not any(r.live for r in self._runners.values())
        if alone and (user or self._failed_starts >= self._limits.strikes):
            raise ShoalError(f"no env runner can be started: {reason}")
        if self._failed_starts < self._limits.strikes:
            self._replace()

    def _replace(self) -> None:
        if sum(not r.retiring for r in self._runners.values()) < self.wanted:
            self.counts.restarts += 1
            self._start()

    def _lose(self, number: int, reason: str) -> None:
        """A runner is gone: its jobs wait again, its groups have no home, and another one is started."""
        runner = self._runners.pop(number)
        self._fleet.kill(number)
        at_work = runner.sent[0].group if runner.sent else None
        for sent in reversed(runner.sent):
            self._groups[sent.group].waiting.appendleft(sent.fragment)
            self._groups[sent.group].under_way -= 1
        homeless = [n for n, g in self._groups.items() if g.home == number]
        for n in homeless:
            self._leave(self._groups[n])
        self.counts.moves += len(homeless)
        self.events.append(f"runner {number} lost ({reason}); groups {homeless} move")
        if at_work is not None:
            group = self._groups[at_work]
            if runner.opened | {at_work} == {at_work}:
                self._strike(at_work, f"its runner died: {reason}")
            else:
                group.suspicion += 1
        self._replace()

    def _fail(self, number: int, group: int, error: CollectFailed) -> None:
        """Collecting raised: the group begins again, from its state before, elsewhere if it can."""
        runner, state = self._runners[number], self._groups[group]
        self.counts.raised += 1
        if error.user:
            raise ShoalError(str(error))
        # What was sent of this group after the failed order would go on from a broken state.
        again = [sent.fragment for sent in runner.sent if sent.group == group]
        runner.sent = deque(sent for sent in runner.sent if sent.group != group)
        state.waiting.extendleft(reversed(again))
        state.under_way -= len(again)
        runner.begun = self._clock()
        runner.opened.discard(group)
        self._fleet.drop(number, group)
        self._leave(state)
        self._strike(group, str(error))

    def _leave(self, group: _Group) -> None:
        group.home = group.target = None
        group.lease += 1

    def _strike(self, number: int, reason: str) -> None:
        group = self._groups[number]
        group.strikes += 1
        group.first_error = group.first_error if group.strikes > 1 else reason
        self.events.append(f"group {number} failed {group.strikes} of {self._limits.strikes} times: {reason}")
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
        self.events.append(f"{verdict}; it is given up")

    # -- deadlines ---------------------------------------------------------------------------------------

    def _deadline(self, runner: _Runner) -> float:
        """When this runner's silence has lasted too long."""
        if not runner.live:
            return runner.begun + START_SECONDS
        if not runner.sent:
            return float("inf")
        if runner.sent[0].group not in runner.opened or not self._durations:
            return runner.begun + START_SECONDS
        return runner.begun + SLACK_SECONDS + self._limits.patience * max(self._durations)

    def _next_deadline(self) -> float:
        return min(map(self._deadline, self._runners.values()), default=float("inf"))

    def _find_hung(self) -> None:
        now = self._clock()
        for number, runner in list(self._runners.items()):
            if now <= self._deadline(runner):
                continue
            silent = f"silent for {now - runner.begun:.1f} s"
            if runner.live:
                self.counts.hung += 1
                self._lose(number, silent)
            else:
                self._not_started(number, f"not ready after {START_SECONDS:.0f} s", False)

    # -- homes -------------------------------------------------------------------------------------------

    def _loads(self) -> dict[int, Load]:
        """What the runners that take groups have."""
        hosts = {n: g.home if g.target is None else g.target for n, g in self._groups.items()}
        return {
            number: Load(tuple(n for n, host in hosts.items() if host == number), runner.seconds)
            for number, runner in self._runners.items()
            if runner.live and not runner.retiring
        }

    def _shared(self, loads: dict[int, Load]) -> dict[int, Load]:
        """Without the runners that a suspect has for itself."""
        suspects = {g.home for g in self._groups.values() if g.suspect}
        return {runner: load for runner, load in loads.items() if runner not in suspects}

    def _settle(self) -> None:
        """Find homes for groups that have none, and let those move that shall."""
        for number, group in self._groups.items():
            if group.target is not None and not group.under_way:
                if group.home in self._runners:
                    assert group.home is not None
                    self._runners[group.home].opened.discard(number)
                    self._fleet.drop(group.home, number)
                home = group.target if group.target in self._runners else None
                self._leave(group)
                group.home = home
                self.counts.moves += 1
        homeless = [n for n, g in self._groups.items() if g.home is None and not g.given_up]
        for number in sorted(homeless, key=lambda n: not self._groups[n].suspect):
            loads = self._loads()
            if self._groups[number].suspect:
                loads = {runner: load for runner, load in loads.items() if not load.groups}
            else:
                loads = self._shared(loads)
            if loads:
                self._groups[number].home = place(loads)
        for number, runner in list(self._runners.items()):
            if runner.retiring and not any(number in (g.home, g.target) for g in self._groups.values()):
                del self._runners[number]
                self._fleet.kill(number)

    def _balance(self) -> None:
        """Now and then, give groups of slow and retiring runners to others."""
        now = self._clock()
        if now - self._balanced < REBALANCE_SECONDS:
            return
        self._balanced = now
        for group in self._groups.values():
            loads = self._shared(self._loads())
            if group.home in self._runners and self._runners[group.home].retiring and loads:
                group.target = place(loads)
        loads = self._shared(self._loads())
        for group, (runner, why) in better_homes(loads).items():
            self._groups[group].target = runner
            self.events.append(f"group {group} moves to runner {runner}: {why}")

    def _send(self) -> None:
        """Give every runner orders of its groups, the group that is furthest behind first."""
        now = self._clock()
        for number, runner in self._runners.items():
            if not runner.live:
                continue
            mine = [n for n, g in self._groups.items() if g.home == number and g.target is None]
            while len(runner.sent) < AHEAD:
                able = [n for n in mine if self._groups[n].waiting]
                if not able:
                    break
                group = min(able, key=lambda n: (self._groups[n].waiting[0], n))
                state = self._groups[group]
                fragment = state.waiting.popleft()
                saved = None if group in runner.opened or state.under_way else state.saved
                order = Order(group, fragment, state.lease, self._version, saved)
                if not runner.sent:
                    runner.idle += now - runner.begun
                    runner.begun = now
                ticket = self._fleet.send(number, order, self._params)
                runner.sent.append(_Sent(ticket, group, fragment))
                state.under_way += 1

    # -- what is said of it ------------------------------------------------------------------------------

    def saved(self, group: int) -> Any:
        """The group's state after its last delivered fragment."""
        return self._groups[group].saved

    def figures(self) -> dict[str, float]:
        """How the runners do, since the last call: for the metrics."""
        now = self._clock()
        live = [r for r in self._runners.values() if r.live]
        idle = sum(r.idle + (0.0 if r.sent else now - r.begun) for r in live)
        span = max(now - self._since, 1e-9) * max(len(live), 1)
        for runner in live:
            runner.idle = 0.0
            if not runner.sent:
                runner.begun = now
        self._since = now
        return {
            "runners": len(live),
            "runners_idle": min(1.0, idle / span),
            "restarts": self.counts.restarts,
            "moves": self.counts.moves,
        }

    def given_up(self) -> set[int]:
        """Groups that failed too often."""
        return {n for n, g in self._groups.items() if g.given_up}

    def take_events(self) -> list[str]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self._fleet.close()
