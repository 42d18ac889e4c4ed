"""What the supervisor keeps of groups and runners: plain records, and who is to blame for a lost runner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shoal.execution.cluster.orders import Ticket

NOWHERE = -1  # a group's target that must leave its runner, but has none to go to yet
MEASURED = 16  # a runner's last fragments, of which the mean time counts
TRUSTED = 3  # as many must there be, before it does


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a runner is held to be hung, and a group to be broken.

    patience, slack: a runner that is silent for `slack` seconds and `patience` times the longest fragment of
    late is taken for hung. start: seconds until a runner must be ready; and an upper bound for the first
    fragment of a group on a runner, which builds and compiles. strikes: how often in a row a group may raise,
    or take down a runner that it has for itself. give_up: go on without such a group, as long as there are
    others, in the place of stopping.
    """

    patience: float = 10.0
    slack: float = 3.0
    start: float = 120.0
    strikes: int = 3
    give_up: bool = False


@dataclass
class Group:
    """saved: its state before the next fragment that has not been delivered; None: new. home: the runner that
    hosts it. target: the runner where it moves as soon as nothing of it is under way. waiting: fragments that
    are ordered and not sent. under_way: how many are sent. hangs, suspicion, strikes: how often in a row its
    runner was silent for too long with it; died with it at work and others there; died with it alone, or it
    raised."""

    saved: Any
    home: int | None = None
    target: int | None = None
    lease: int = 0
    waiting: deque[int] = field(default_factory=deque)
    under_way: int = 0
    hangs: int = 0
    suspicion: int = 0
    strikes: int = 0
    first_error: str = ""
    given_up: bool = False

    @property
    def owed(self) -> int:
        return len(self.waiting) + self.under_way

    @property
    def suspect(self) -> bool:
        """It shall be alone on a runner, so that it is known whether it is to blame."""
        return self.suspicion >= 2

    def leave(self) -> None:
        """End the group's stay where it is: what comes from there does not count any more."""
        self.home = self.target = None
        self.lease += 1

    def acquit(self) -> None:
        """It has delivered."""
        self.hangs = self.suspicion = self.strikes = 0


class Sent(NamedTuple):
    """An order at a runner. void: it will be answered, but what comes is of no use."""

    ticket: Ticket
    group: int
    fragment: int
    lease: int
    void: bool = False


@dataclass
class Runner:
    """ticket: of its start; None once it is ready. begun: when it began what it is at now. sent: its orders,
    the one that it works on first. pinged: asked, while idle, whether it lives. opened: the groups that it
    has built. work: seconds of its last fragments. busy: seconds that it has worked since `since`."""

    ticket: Ticket | None
    begun: float
    sent: deque[Sent] = field(default_factory=deque)
    pinged: Ticket | None = None
    opened: set[int] = field(default_factory=set)
    work: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))
    busy: float = 0.0
    since: float = 0.0
    retiring: bool = False

    @property
    def live(self) -> bool:
        return self.ticket is None

    @property
    def seconds(self) -> float | None:
        """A fragment's, here, of late; None: not known yet."""
        return sum(self.work) / len(self.work) if len(self.work) >= TRUSTED else None


@dataclass
class Counts:
    """What has happened so far: fragments delivered, runners started in the place of others, groups moved,
    runners found hung, fragments whose environments raised, answers that were to no order."""

    delivered: int = 0
    restarts: int = 0
    moves: int = 0
    hung: int = 0
    raised: int = 0
    late: int = 0


def wait_again(group: Group, number: int, sent: Iterable[Sent]) -> None:
    """What a runner has of a group shall be sent again, in its order, before all else."""
    back = [order.fragment for order in sent if order.group == number and not order.void]
    group.waiting.extendleft(reversed(back))
    group.under_way -= len(back)


def alone(groups: Mapping[int, Group], number: int, runner: Runner, group: int) -> bool:
    """Whether a group has a runner for itself."""
    hosted = {n for n, g in groups.items() if number in (g.home, g.target)}
    return (hosted | runner.opened | {order.group for order in runner.sent}) <= {group}
