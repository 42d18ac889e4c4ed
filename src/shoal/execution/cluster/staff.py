"""The runners that there are: started, started again in the place of lost ones, and let go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from shoal.errors import ShoalError
from shoal.execution.cluster.deadlines import Watch
from shoal.execution.cluster.orders import CollectFailed, Fleet, RunnerLost, Ticket
from shoal.execution.cluster.roster import Counts, Group, Limits, Runner

RETRY_SECONDS = 30.0  # between attempts to start a runner, after some that failed


class Staff:
    """Runners by number; a number is never used again. at_once: so many are started before one is ready, the
    others then (None: all of them)."""

    def __init__(
        self,
        fleet: Fleet,
        limits: Limits,
        counts: Counts,
        events: deque[str],
        clock: Callable[[], float],
        watch: Watch,
        at_once: int | None = None,
    ) -> None:
        self._fleet, self._limits, self._counts, self._events = fleet, limits, counts, events
        self._clock, self._watch = clock, watch
        self._next, self._failed, self._again = 0, 0, float("-inf")
        self._at_once, self._held = at_once, 0  # not started yet
        self.runners: dict[int, Runner] = {}
        self.wanted = 0

    def resize(self, runners: int, groups: Mapping[int, Group], why: str) -> None:
        """Have so many runners from now on; those go first that are not ready or have few groups."""
        if self.wanted and runners != self.wanted:
            self._events.append(f"runners {self.wanted} -> {runners}: {why}")
        self.wanted = runners
        hosted = {n: sum(g.home == n for g in groups.values()) for n in self.runners}
        ranked = sorted(self.runners, key=lambda n: (self.runners[n].live, hosted[n], -n), reverse=True)
        for place, number in enumerate(ranked):  # also those that were to retire may stay
            self.runners[number].retiring = place >= runners
        self._held = max(0, runners - len(self.runners))
        self._release(at_once=self._at_once if not any(r.live for r in self.runners.values()) else None)

    def _release(self, at_once: int | None = None) -> None:
        """Start those that were held back; of all runners, at most so many."""
        most = self._held if at_once is None else max(0, at_once - len(self.runners))
        for _ in range(min(self._held, most)):
            self._held -= 1
            self._start()

    @property
    def pause(self) -> float:
        """Seconds until a runner may be started again; infinity where none is to be."""
        return self._again - self._clock() if self._again > float("-inf") else float("inf")

    def _start(self) -> None:
        number, self._next = self._next, self._next + 1
        self.runners[number] = Runner(self._fleet.start(number), self._watch.now())

    def recruit(self) -> None:
        """Start runners in the place of those that were lost."""
        staff = self._held + sum(not runner.retiring for runner in self.runners.values())
        if staff < self.wanted and self._clock() >= self._again:
            self._again = float("-inf")
            for _ in range(self.wanted - staff):
                self._counts.restarts += 1
                self._start()

    def started(self, number: int, runner: Runner, ticket: Ticket) -> bool:
        """A runner's start has been answered: whether it is ready."""
        try:
            self._fleet.take(ticket)
        except CollectFailed as error:
            self.failed(number, str(error), error.user)
        except RunnerLost as error:
            self.failed(number, str(error), False)
        else:
            runner.ticket, runner.begun, runner.since = None, self._watch.now(), self._clock()
            self._failed, self._again = 0, float("-inf")
            self._release()
            return True
        return False

    def failed(self, number: int, reason: str, user: bool) -> None:
        """A runner could not be started. Raises ShoalError where it is no use to try again."""
        del self.runners[number]
        self._fleet.kill(number)
        self._failed += 1
        self._events.append(f"runner {number} could not be started: {reason}")
        enough = self._failed >= self._limits.strikes
        if (user and not any(r.live for r in self.runners.values())) or (enough and not self.runners):
            raise ShoalError(f"no env runner can be started: {reason}")
        if user or enough:
            self._again = self._clock() + RETRY_SECONDS
