"""How many runners there should be: `runners="auto"`.

    figures of a while -> decide -> so many runners, and why

More of them help where the learner waits for fragments and the runners are all at work; fewer do where they
idle. A change follows only from several looks that agree, and after each one it is quiet for a while, because
a new runner takes seconds to start and what was measured before it says little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

WAITS = 0.5  # share of its time that the learner waits for fragments, above which more runners may help
AT_WORK = 0.35  # share of their time that runners may idle and still be said to be at work
IDLE = 0.6  # share of their time that runners idle, above which there is one too many
LOOK_SECONDS = 2.0
AGREED = 3  # looks in a row
QUIET_SECONDS = 10.0  # after a change
CLUSTER_SECONDS = 5.0  # between two questions to the cluster


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """least, most: of the number of runners. A runner without a group would do nothing: `most` is at most the
    number of groups."""

    least: int = 1
    most: int


class Figures(NamedTuple):
    """runners: wanted now. waiting: share of its time that the learner waited for fragments. idle: share of
    their time that the runners did not work. room: how many runners the cluster has resources for, those that
    there are included."""

    runners: int
    waiting: float
    idle: float
    room: int


class Decision(NamedTuple):
    """runners: that there should be. why: in words."""

    runners: int
    why: str


def decide(figures: Figures, bounds: Bounds) -> Decision:
    """What one look says. Too little room and bounds that are left count before all else.

    With one runner less the others work more: the idle share that would be left must still be below what lets
    one more start, or the number would swing.
    """
    runners, waiting, idle, room = figures
    most = max(bounds.least, min(bounds.most, room))
    if runners > most:
        return Decision(most, f"the cluster has room for {room}")
    if runners < bounds.least:
        return Decision(bounds.least, "the least that was asked for")
    seen = f"the learner waits {waiting:.0%} of its time, runners idle {idle:.0%} of theirs"
    if waiting > WAITS and idle < AT_WORK and runners < most:
        return Decision(runners + 1, seen)
    if idle > IDLE and runners > bounds.least and 1 - (1 - idle) * runners / (runners - 1) > AT_WORK:
        return Decision(runners - 1, seen)
    return Decision(runners, seen)


def room_for(totals: Mapping[str, float], beside: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many runners fit into a cluster. totals: its resources. beside: what else of the run occupies them.
    each: what a runner asks for."""
    fits = [
        int((totals.get(name, 0.0) - beside.get(name, 0.0)) / amount + 1e-9)
        for name, amount in each.items()
        if amount > 0
    ]
    return max(0, min(fits)) if fits else 10**6


class Elastic:
    """Looks at what a run measures, once for each iteration, and says when to change the number of runners.

    room: asks the cluster how many runners it has room for; called at most every few seconds.
    """

    def __init__(
        self, bounds: Bounds, room: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bounds, self._room, self._clock = bounds, room, clock
        self._asked, self._space = float("-inf"), 0
        self._looked, self._quiet = clock(), clock() + QUIET_SECONDS
        self._seconds = self._waiting = self._idle = 0.0
        self._last, self._agreed = 0, 0

    def look(self, runners: int, seconds: float, waiting: float, idle: float) -> Decision | None:
        """What to change, if anything. runners: wanted now. seconds: for which waiting and idle were measured
        (see `Figures`)."""
        now = self._clock()
        if now - self._asked >= CLUSTER_SECONDS:
            self._asked, self._space = now, self._room()
            if runners > max(self._bounds.least, self._space):  # a node has left
                return self._change(decide(Figures(runners, 0.0, 0.0, self._space), self._bounds))
        self._seconds += seconds
        self._waiting += waiting * seconds
        self._idle += idle * seconds
        if now - self._looked < LOOK_SECONDS or self._seconds <= 0:
            return None
        share = Figures(runners, self._waiting / self._seconds, self._idle / self._seconds, self._space)
        self._looked, self._seconds, self._waiting, self._idle = now, 0.0, 0.0, 0.0
        decision = decide(share, self._bounds)
        direction = decision.runners - runners
        self._agreed = self._agreed + 1 if direction == self._last else 1
        self._last = direction
        if not direction or self._agreed < AGREED or now < self._quiet:
            return None
        return self._change(decision)

    def _change(self, decision: Decision) -> Decision:
        self._quiet, self._agreed = self._clock() + QUIET_SECONDS, 0
        return decision
