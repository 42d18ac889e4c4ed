"""The fleet on Ray: a runner is an actor; its calls bring what is small, the object store what is large."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import jax
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.envs.errors import EnvError
from shoal.errors import ShoalError
from shoal.execution.cluster.inference import PolicyActors
from shoal.execution.cluster.letters import opened, pieces, sealed
from shoal.execution.cluster.luggage import pack
from shoal.execution.cluster.orders import CollectFailed, Order, RunnerLost, Ticket
from shoal.execution.cluster.pool import AHEAD
from shoal.execution.cluster.runner import EnvRunner
from shoal.execution.cluster.session import kill_process
from shoal.execution.cluster.stepper import Stepper
from shoal.execution.unroll import params_form
from shoal.recipe import Experiment

NO_GROUP = -1
GROUPED = ("PACK", "STRICT_PACK", "STRICT_SPREAD")
PLACE_SECONDS = 20.0
# For the first runner's process, where others take what it asks for: before it began, or perhaps as another
# run did in the same moment (or it is our own runner, whose process starts slowly).
ROOM_SECONDS, LATE_ROOM_SECONDS = 15.0, 45.0
# Parameters that are not large travel within each order: a put, a fetch and a release cost the driver, the
# runner and Ray's processes several milliseconds together, a copy of half a megabyte less than one. Ray
# itself puts an argument above 100 kB there, for every call anew; so they are divided over several.
WITHIN_BYTES, PIECE_BYTES = 512 << 10, 90 << 10
KILL_SECONDS = 2.0  # for a signal to be sent, before Ray is left
FETCH_SECONDS = 10.0  # for a report, which is small, once its trajectory is here


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What Ray is asked for each runner. strategy: "SPREAD" over nodes, or "DEFAULT", which fills them; or
    one of a placement group, which holds the resources of all `runners` from the start: "PACK" (on few
    nodes), "STRICT_PACK" (on one) and "STRICT_SPREAD" (each on another)."""

    runners: int = 1
    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: str = "SPREAD"


@dataclass(frozen=True, kw_only=True)
class Crew:
    """What the runners of a fleet are.

    actor: their class, with `begin`, `collect` and `drop`. arguments: of a runner's `begin`, by its number.
    threads: how many orders it follows at a time. resolve: whether orders come with the parameters, or with
    [a reference] to them. fetch: whether trajectories come to this process; else references to them do.
    parts: so many things a runner gives beside the report; of several, the first is the trajectory, or None
    where the others are what counts: references to these come. attached: what goes with an order.
    beside: those that act for the runners, if they do not act themselves.
    """

    actor: type
    arguments: Callable[[int], tuple[Any, ...]]
    threads: int = 1
    resolve: bool = True
    fetch: bool = True
    parts: int = 1
    attached: Callable[[Order], tuple[Any, ...]] = lambda order: ()
    beside: PolicyActors | None = None


def env_runners(experiment: Experiment, size: int, *, sharded: bool = False, fetch: bool = True) -> Crew:
    """Runners that act themselves. sharded: they divide fragments for replay shards. fetch: see `Crew`."""
    built = pack((experiment.recipe, params_form(experiment.agent)))
    arguments = ray.put(built), experiment.seed, size, sharded
    return Crew(actor=EnvRunner, arguments=lambda runner: arguments, fetch=fetch)


def steppers(experiment: Experiment, size: int, count: int, cpus: float, gpus: float) -> Crew:
    """Runners that step environments, and `count` policy actors that act for them."""
    recipe, agent = experiment.recipe, experiment.agent
    # By value: a reference would end before an actor that is restarted.
    actors = PolicyActors(pack(recipe), size, count, cpus, gpus, kill_process)
    env, fresh = ray.put(pack(dict(recipe.env))), jax.device_get(agent.begin(size))

    def arguments(runner: int) -> tuple[Any, ...]:
        policy = actors.handles[runner % count], actors.token
        return env, agent.plan.rows, fresh, experiment.seed, size, *policy

    return Crew(
        actor=Stepper,
        arguments=arguments,
        threads=AHEAD,  # of what it holds, one asks while another steps
        resolve=False,
        beside=actors,
    )


class RayFleet:
    """A crew on Ray, placed as asked."""

    def __init__(self, crew: Crew, placement: Placement) -> None:
        remote: Any = ray.remote(crew.actor)
        self._crew = crew
        self._place = _group(placement) if placement.strategy in GROUPED else None
        self._actor = remote.options(
            num_cpus=placement.cpus,
            num_gpus=0,
            resources=dict(placement.resources),
            scheduling_strategy=_within(self._place) if self._place else placement.strategy,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=crew.threads,
        )
        self._runners: dict[int, Any] = {}
        self._identity: dict[int, Any] = {}
        self._starting: dict[Any, tuple[int, Any]] = {}  # answer when ready -> runner, answer who it is
        self._killing: list[threading.Thread] = []
        self._each = {"CPU": placement.cpus, **placement.resources}
        self._since, self._room = monotonic(), float("inf")  # seconds
        if self._place is None:
            self._room = ROOM_SECONDS if _taken(self._each) else LATE_ROOM_SECONDS

    def start(self, runner: int) -> Ticket:
        actor = self._runners[runner] = self._actor.remote()
        told = actor.__ray_call__.remote(_who())  # known before it is ready: it may stop on its way
        ready = actor.begin.remote(*self._crew.arguments(runner))
        self._starting[ready] = runner, told
        return Ticket(ready)

    def publish(self, params: Any) -> tuple[Any, ...]:
        """The arguments that bring them to a runner: their only one, or their bytes in pieces."""
        if not self._crew.resolve:
            return ([ray.put(params)],)
        letter = sealed(params)
        if isinstance(letter, bytes) and len(letter) <= WITHIN_BYTES:
            return pieces(letter, PIECE_BYTES)
        return (ray.put(letter),)

    def send(self, runner: int, order: Order, params: tuple[Any, ...]) -> Ticket:
        if self._crew.beside is not None:
            self._crew.beside.learn(order.version, params[0])
        collect = self._runners[runner].collect.options(num_returns=1 + self._crew.parts)
        report, *parts = collect.remote(order, *params, *self._crew.attached(order))
        return Ticket(report, parts[0] if len(parts) == 1 else tuple(parts))

    def ping(self, runner: int) -> Ticket:
        return Ticket(self._runners[runner].drop.remote(NO_GROUP))

    def drop(self, runner: int, group: int) -> None:
        if runner in self._runners:
            self._runners[runner].drop.remote(group)

    def wait(self, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        if self._crew.beside is not None:
            self._crew.beside.tend()
        if not tickets:
            sleep(min(timeout, 0.01))
            return []
        # With its trajectory on this node an answer is there: fetching never waits for a node that is silent.
        # What a runner gives in parts is not for this process.
        by_ref = {t.report if isinstance(t.trajectory, tuple | None) else t.trajectory: t for t in tickets}
        refs = list(by_ref)
        ready, rest = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        if not ready and self._room < float("inf"):
            self._look_for_room()
        return [by_ref[ref] for ref in ready]

    def take(self, ticket: Ticket) -> Any:
        value = opened(_get(ticket.report))
        if ticket.report in self._starting:
            self._identity[self._starting.pop(ticket.report)[0]] = value
        return value

    def fetch(self, trajectory: Any) -> Any:
        if isinstance(trajectory, tuple):
            whole, *others = trajectory
            found = opened(_get(whole))
            return others if found is None else found
        return opened(_get(trajectory)) if self._crew.fetch else trajectory

    def kill(self, runner: int) -> None:
        actor, identity = self._runners.pop(runner, None), self._identity.pop(runner, None)
        if actor is None:
            return
        for ready, (number, told) in list(self._starting.items()):
            if number == runner:
                del self._starting[ready]
                identity = _answered(told)
        ray.kill(actor)
        if identity is not None:  # Ray lets go of a stopped process, but does not end it
            killing = threading.Thread(target=kill_process, args=identity, daemon=True)
            killing.start()
            self._killing = [thread for thread in self._killing if thread.is_alive()] + [killing]

    def identities(self) -> dict[int, Any]:
        """Of every runner that has been ready: its node, process number and start time."""
        return dict(self._identity)

    def close(self) -> None:
        for runner in list(self._runners):
            self.kill(runner)
        for killing in self._killing:  # Ray may be gone thereafter, and a stopped process would stay
            killing.join(KILL_SECONDS)
        if self._crew.beside is not None:
            self._crew.beside.close()
        if self._place is not None:
            remove_placement_group(self._place)

    def _look_for_room(self) -> None:
        """Raises ShoalError where what a runner asks for is taken and so no runner has got a process."""
        told = [told for _, told in self._starting.values()]
        if self._identity or (told and ray.wait(told, timeout=0)[0]):
            self._room = float("inf")  # what is taken may be taken by runners of our own
        elif monotonic() - self._since > self._room and (taken := _taken(self._each)):
            raise ShoalError(
                f"no env runner has found room on this Ray within {self._room:.0f} s: each asks for "
                f"{listed(self._each)}, but {taken}: end what takes them, ask for less for each runner, or "
                "join a larger cluster"
            )


def _who() -> Callable[[Any], Any]:
    """What asks a runner's process who it is, before it begins. Being defined in here, it travels by value:
    by name it would import this module, and JAX with it."""

    def identity(runner: Any) -> Any:
        del runner
        from shoal.execution.cluster.session import process_identity

        return process_identity()

    return identity


def _answered(told: Any) -> Any:
    """An answer if it is there, else None."""
    try:
        return ray.get(told, timeout=0)
    except RayError:  # also that there is none yet
        return None


def _taken(each: Mapping[str, float]) -> str:
    """Which of these resources are not there for one runner, in words; "" if all are."""
    free, totals = ray.available_resources(), ray.cluster_resources()
    short = [name for name, amount in each.items() if free.get(name, 0.0) < amount - 1e-6]
    return ", ".join(f"of {totals.get(n, 0.0):g} {n} only {free.get(n, 0.0):g} are free" for n in short)


def listed(each: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in each.items())


def _group(placement: Placement) -> PlacementGroup:
    """Room for all runners, held as one. Raises ShoalError where the cluster cannot give it."""
    each = {"CPU": placement.cpus, **placement.resources}
    group = placement_group([dict(each) for _ in range(placement.runners)], strategy=placement.strategy)
    if not group.wait(PLACE_SECONDS):
        remove_placement_group(group)
        raise ShoalError(
            f"the cluster had no room within {PLACE_SECONDS:.0f} s for {placement.runners} runners of {each} "
            f"placed by {placement.strategy}: ask for fewer, or for less, or leave the strategy at SPREAD"
        )
    return group


def _within(group: PlacementGroup) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group)


def _get(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=FETCH_SECONDS)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ShoalError):
            raise CollectFailed(str(cause), user=not isinstance(cause, EnvError)) from None
        raise CollectFailed(f"{type(cause).__name__}: {_first_line(cause)}", user=False) from None
    except RayActorError as error:
        raise RunnerLost(_first_line(error)) from None
    except ObjectLostError as error:
        raise RunnerLost(f"its result is lost: {_first_line(error)}") from None
    except RayError as error:
        raise RunnerLost(_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
