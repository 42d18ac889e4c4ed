"""What orders are for, and what goes with them: the driver's side of a worker's `Task`."""

from __future__ import annotations

from typing import Any

from shoal.execution.cluster.letters import sealed
from shoal.execution.cluster.orders import Order
from shoal.execution.parameter_server.servers import Servers
from shoal.execution.parameter_server.worker import Given, Task


class Tasks:
    """By group and number of the order. An order without a task is one for a fragment."""

    def __init__(self) -> None:
        self._servers: Servers | None = None
        self._tasks: dict[tuple[int, int], Task] = {}
        self._sent: dict[tuple[int, int], int] = {}
        self.applied = 0  # gradients that shards have made steps with

    def serve(self, servers: Servers) -> None:
        """Whose parameters go with orders."""
        self._servers = servers

    def put(self, group: int, number: int, task: Task) -> None:
        self._tasks[group, number] = task

    def take(self, group: int, number: int) -> tuple[Task, int]:
        """A task that is done, and how many gradients had been applied when it was last sent."""
        return self._tasks.pop((group, number)), self._sent.pop((group, number), self.applied)

    def forget(self, group: int) -> list[Task]:
        """The tasks of a group that is given up, which will not be done."""
        lost = [key for key in self._tasks if key[0] == group]
        return [self.take(*key)[0] for key in lost]

    def attached(self, order: Order) -> tuple[Any, ...]:
        """What goes with an order: the task, and handles of the newest parameters of all shards."""
        task = self._tasks.get((order.group, order.fragment))
        if task is None:
            return ()
        assert self._servers is not None
        self._sent[order.group, order.fragment] = self.applied
        return sealed(task) if isinstance(task, Given) else task, *self._servers.slices
