"""When a runner has been silent for too long: deadlines that follow the time that fragments took of late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.execution.cluster.roster import Limits, Runner

ELSEWHERE_SECONDS = 1.0
FIRST_SECONDS = 10.0
REMEMBERED = 50
MORE = 4.0  # times longer, whenever a group's runner was taken for hung


class Watch:
    """A clock for silences. It runs while somebody waits for runners, and at most a second while the driver
    is busy elsewhere (learning, evaluating, saving): who does not look must not complain of silence."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen, self._left = 0.0, clock()

    def now(self) -> float:
        """Seconds watched."""
        return self._seen + min(self._clock() - self._left, ELSEWHERE_SECONDS)

    def waited(self, since: float) -> None:
        """Somebody has waited since `since`, by the clock, until now."""
        before = self._seen + min(since - self._left, ELSEWHERE_SECONDS)
        self._left = self._clock()
        self._seen = before + self._left - since


@dataclass
class Usual:
    """Seconds of fragments of late. first: of groups that their runner had to build, or to compile for."""

    fragments: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    first: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def note(self, seconds: float, *, first: bool) -> None:
        (self.first if first else self.fragments).append(seconds)


def allowed(usual: Usual, limits: Limits, *, first: bool, hangs: int) -> tuple[float, bool]:
    """(seconds of silence that are allowed for a fragment, whether more cannot be asked for).

    hangs: how often in a row the group's runner was taken for hung: each time it gets four times as long,
    because a reset or a rebuilding may take much longer than any before. Only who has had the longest time is
    to blame.
    """
    longest = max(usual.fragments, default=0.0)
    if first:
        longest = max(longest, max(usual.first, default=0.0))
    known = usual.first if first else usual.fragments or usual.first
    full = max(limits.start, limits.slack + limits.patience * longest)
    if not known:
        return full, True
    base = limits.slack + limits.patience * longest + (FIRST_SECONDS if first else 0.0)
    seconds = min(full, base * MORE**hangs)
    return seconds, seconds >= full


def silence(runner: Runner, hangs: int, usual: Usual, limits: Limits, now: float) -> tuple[float, bool]:
    """(seconds until a runner's silence has lasted too long, whether more cannot be asked for); `now` is the
    watch's, and hangs are those of the group that it works on."""
    if not runner.live:
        seconds, all_of_it = limits.start, True
    elif runner.pinged is not None:
        seconds, all_of_it = limits.slack, False
    elif not runner.sent:
        return float("inf"), False
    else:
        first = runner.sent[0].group not in runner.opened
        seconds, all_of_it = allowed(usual, limits, first=first, hangs=hangs)
    return runner.begun + seconds - now, all_of_it
