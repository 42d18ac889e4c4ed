"""How far each group is: which fragments were ordered, and after which one a resumed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np

from shoal.execution.cluster.orders import Report
from shoal.execution.cluster.pool import Pool
from shoal.execution.local import group_state
from shoal.types import Carry

AHEAD = 2  # fragments of one group that may be on their way at once


class Flow:
    """For runs that order fragments ahead, of each group at most `ahead` at once. carry: the form of the
    policy's memory in one group."""

    def __init__(self, pool: Pool, groups: int, carry: Carry, ahead: int = AHEAD) -> None:
        self._pool, self._carry, self._ahead = pool, carry, ahead
        self._ordered = dict.fromkeys(range(groups), 0)  # the next fragment to order
        self._done = dict.fromkeys(range(groups), 0)  # the next fragment that is not done with
        self._states: dict[int, Any] = dict.fromkeys(range(groups))  # before that one; None: new

    def groups(self) -> list[int]:
        """Those that go on."""
        given_up = self._pool.given_up()
        return [g for g in self._ordered if g not in given_up]

    def order(self, room: int, on_the_way: Callable[[int], int], singly: Container[int] = ()) -> None:
        """Order at most `room` fragments: of the groups that have the fewest on the way first, and of these
        of those that were ordered from the least, so that none is left behind where there is little room.
        singly: groups that are not ordered from ahead."""
        groups = sorted(self.groups(), key=lambda g: (self._ordered[g], g))
        for ahead in range(self._ahead):
            for g in groups:
                if room > 0 and on_the_way(g) <= ahead and not (ahead and g in singly):
                    self._pool.order(g, self._ordered[g])
                    self._ordered[g] += 1
                    room -= 1

    def settle(self, reports: Iterable[Report]) -> None:
        """These are done with: a resumed run goes on after them."""
        for report in reports:
            self._done[report.group] = report.fragment + 1
            self._states[report.group] = report.after

    def save(self) -> dict[str, Any]:
        return {
            "fragments": np.array([self._done[g] for g in sorted(self._done)], np.int64),
            "groups": {str(g): state for g, state in self._states.items() if state is not None},
        }

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        for g in self._ordered:
            self._ordered[g] = self._done[g] = int(saved[f"{prefix}/fragments"][g])
            self._states[g] = group_state(self._carry, saved, f"{prefix}/groups/{g}")
            self._pool.restart(g, self._states[g])
