"""Where groups live: moves that are due, places for groups without one, and a better balance now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shoal.execution.cluster.balance import Seat, better_homes, loads_of, seats
from shoal.execution.cluster.orders import Fleet
from shoal.execution.cluster.roster import NOWHERE, Counts, Group, Runner

REBALANCE_SECONDS = 1.0
AGREED = 3  # so many looks in a row must find moves worthwhile: measured times are noisy


class Homes:
    """Carries out what `balance` says, on the supervisor's own groups, runners, counts and events."""

    def __init__(
        self,
        fleet: Fleet,
        groups: dict[int, Group],
        runners: dict[int, Runner],
        counts: Counts,
        events: deque[str],
        clock: Callable[[], float],
    ) -> None:
        self._fleet, self._clock = fleet, clock
        self._groups, self._runners, self._counts, self._events = groups, runners, counts, events
        self._balanced, self._agreed = clock(), 0

    def tend(self) -> None:
        """Let groups move that shall or that had better, and let empty runners go."""
        self._settle()
        if self._balance():
            self._settle()

    def changed(self) -> None:
        """There are other runners than before: see at once who can give them groups."""
        self._agreed = AGREED

    def leave(self, number: int) -> None:
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
        """Find places for groups that need one, let those move that shall, and let empty runners go."""
        for number, runner in seats(self._seats(), self._hosts()).items():
            group = self._groups[number]
            if group.home is not None:
                group.target = None if runner == group.home else runner
            elif runner != NOWHERE:
                group.home = runner
        for number, group in self._groups.items():
            if group.target is not None and not group.under_way:
                home = group.target if group.target in self._runners else None
                self.leave(number)
                group.home = home
                self._counts.moves += 1
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
