"""The fleet without Ray: every runner is an object in this process, and orders are followed when their
answers are taken, one after another. What happens on a cluster can be stepped through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shoal.envs.errors import EnvError
from shoal.errors import ShoalError
from shoal.execution.cluster.orders import CollectFailed, Order, Report, Ticket


class InlineFleet:
    """make: gives a runner's Collector, or what does as it does. parts, attached: as of a `fleet.Crew`."""

    def __init__(
        self,
        make: Callable[[], Any],
        parts: int = 1,
        attached: Callable[[Order], tuple[Any, ...]] = lambda order: (),
    ) -> None:
        self._make, self._parts, self._attached = make, parts, attached
        self._runners: dict[int, Any] = {}

    def start(self, runner: int) -> Ticket:
        self._runners[runner] = self._make()
        return Ticket(lambda: None)

    def publish(self, params: Any) -> Any:
        return params

    def send(self, runner: int, order: Order, params: Any) -> Ticket:
        made: list[Any] = []
        attached = self._attached(order)

        def collect() -> Report:
            report, *parts = self._runners[runner].collect(order, params, *attached)
            made.extend(parts)
            return report

        return Ticket(collect, made)

    def ping(self, runner: int) -> Ticket:
        return Ticket(lambda: None)

    def drop(self, runner: int, group: int) -> None:
        self._runners[runner].drop(group)

    def wait(self, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        return list(tickets)

    def take(self, ticket: Ticket) -> Any:
        try:
            return ticket.report()
        except ShoalError as error:
            raise CollectFailed(str(error), user=not isinstance(error, EnvError)) from error
        except Exception as error:
            raise CollectFailed(f"{type(error).__name__}: {error}", user=False) from error

    def fetch(self, trajectory: Any) -> Any:
        whole, *others = trajectory
        return others if self._parts > 1 and whole is None else whole

    def kill(self, runner: int) -> None:
        collector = self._runners.pop(runner, None)
        if collector is not None:
            collector.close()

    def close(self) -> None:
        for runner in list(self._runners):
            self.kill(runner)
