"""The fleet on Ray: a runner is an actor, parameters and trajectories travel through the object store."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import sleep
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from shoal.envs.errors import EnvError
from shoal.errors import ShoalError
from shoal.execution.cluster.orders import CollectFailed, Order, RunnerLost, Ticket
from shoal.execution.cluster.runner import EnvRunner
from shoal.execution.cluster.session import kill_process
from shoal.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What Ray is asked for each runner. strategy: "SPREAD" over nodes, or "DEFAULT", which fills them."""

    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: str = "SPREAD"


class RayFleet:
    """recipe, seed, size: what every runner builds; see `EnvRunner.begin`."""

    def __init__(self, recipe: Recipe, seed: int, size: int, placement: Placement) -> None:
        self._arguments = _put(recipe), seed, size
        remote: Any = ray.remote(EnvRunner)
        self._actor = remote.options(
            num_cpus=placement.cpus,
            num_gpus=0,
            resources=dict(placement.resources),
            scheduling_strategy=placement.strategy,
            max_restarts=0,
            max_task_retries=0,
        )
        self._runners: dict[int, Any] = {}
        self._identity: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}

    def start(self, runner: int) -> Ticket:
        actor = self._runners[runner] = self._actor.remote()
        ready = actor.begin.remote(*self._arguments)
        self._starting[ready] = runner
        return Ticket(ready)

    def publish(self, params: Any) -> Any:
        return ray.put(params)

    def send(self, runner: int, order: Order, params: Any) -> Ticket:
        report, trajectory = self._runners[runner].collect.options(num_returns=2).remote(order, params)
        return Ticket(report, trajectory)

    def drop(self, runner: int, group: int) -> None:
        if runner in self._runners:
            self._runners[runner].drop.remote(group)

    def wait(self, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        if not tickets:
            sleep(min(timeout, 0.01))
            return []
        by_ref = {ticket.report: ticket for ticket in tickets}
        refs = list(by_ref)
        ready, rest = ray.wait(refs, num_returns=1, timeout=timeout, fetch_local=False)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return [by_ref[ref] for ref in ready]

    def take(self, ticket: Ticket) -> Any:
        value = _get(ticket.report)
        runner = self._starting.pop(ticket.report, None)
        if runner is not None:
            self._identity[runner] = value
        return value

    def fetch(self, trajectory: Any) -> Any:
        return _get(trajectory)

    def kill(self, runner: int) -> None:
        actor, identity = self._runners.pop(runner, None), self._identity.pop(runner, None)
        if actor is None:
            return
        ray.kill(actor)
        if identity is not None:  # Ray lets go of a stopped process, but does not end it
            threading.Thread(target=kill_process, args=identity, daemon=True).start()

    def identities(self) -> dict[int, Any]:
        """Of every runner that has been ready: its node, process number and start time."""
        return dict(self._identity)

    def close(self) -> None:
        for runner in list(self._runners):
            self.kill(runner)


def _put(recipe: Recipe) -> Any:
    try:
        return ray.put(recipe)
    except (TypeError, AttributeError, ValueError) as error:
        raise ShoalError(
            f"the environment, a wrapper or the algorithm cannot be sent to env runners: {error}; give a "
            "class or function that can be imported, or one that holds nothing but plain data"
        ) from error


def _get(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ShoalError):
            raise CollectFailed(str(cause), user=not isinstance(cause, EnvError)) from None
        raise CollectFailed(f"{type(cause).__name__}: {cause}", user=False) from None
    except RayActorError as error:
        raise RunnerLost(_first_line(error)) from None
    except ObjectLostError as error:
        raise RunnerLost(f"its result is lost: {_first_line(error)}") from None
    except RayError as error:
        raise RunnerLost(_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
