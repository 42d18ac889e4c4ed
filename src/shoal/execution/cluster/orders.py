"""What the driver and an env runner say to each other, and what a `Fleet` of runners can do.

    driver --Order, parameters--> runner --Report, Trajectory--> driver

A lease is one stay of a group on a runner. It ends when the group moves; what comes from an ended lease is
nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Order(NamedTuple):
    """Collect one fragment. version: of the parameters that act. saved: the group's state to begin with; None
    where the runner has the group already, or the group is new."""

    group: int
    fragment: int
    lease: int
    version: int
    saved: Any = None


class Report(NamedTuple):
    """A collected fragment without its trajectory.

    after: the group's state before its next fragment. info: means of the environments' own numbers.
    spent: seconds in "env" and "act", in "rebuild" where the group had to be built first, and in "save".
    seen: where the trajectory goes to a replay shard, what the learner must see of it (`parcels.Seen`).
    """

    group: int
    fragment: int
    lease: int
    version: int
    after: Any
    info: dict[str, float]
    spent: dict[str, float]
    seen: Any = None


class Delivery(NamedTuple):
    """A fragment that arrived. trajectory: as the fleet's `fetch` gives it. runner: who collected it."""

    report: Report
    trajectory: Any
    runner: int


class RunnerLost(Exception):
    """The runner is dead, or its node is: nothing more will come from it."""


class CollectFailed(Exception):
    """The runner lives, but collecting raised. user: the message is meant for the user as it is."""

    def __init__(self, message: str, *, user: bool) -> None:
        super().__init__(message)
        self.user = user


@dataclass(frozen=True)
class Ticket:
    """An answer that will come. report and trajectory are the fleet's own handles."""

    report: Any
    trajectory: Any = None


class Fleet(Protocol):
    """Env runners by number, wherever they are. No method but `wait` and `fetch` blocks."""

    def start(self, runner: int) -> Ticket:
        """Begin to start a runner; `take` of the ticket returns when it is ready."""
        ...

    def publish(self, params: Any) -> Any:
        """A handle for parameters (NumPy leaves), to be sent with orders."""
        ...

    def send(self, runner: int, order: Order, params: Any) -> Ticket: ...

    def ping(self, runner: int) -> Ticket:
        """`take` of the ticket returns when the runner has done what it was sent before."""
        ...

    def drop(self, runner: int, group: int) -> None:
        """Let the runner close a group."""
        ...

    def wait(self, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        """Those whose answer is there, as soon as there is one, or after `timeout` seconds."""
        ...

    def take(self, ticket: Ticket) -> Any:
        """The Report. Raises RunnerLost or CollectFailed."""
        ...

    def fetch(self, trajectory: Any) -> Any:
        """The Trajectory, or, where it goes to a replay shard, the `Stored` or a reference to it. Raises
        RunnerLost where it went down with its node."""
        ...

    def kill(self, runner: int) -> None:
        """End a runner at once, also one that is stopped. Harmless where it is dead."""
        ...

    def close(self) -> None: ...
