"""A fleet in virtual time, to which everything happens that can happen to runners.

A fragment is a pure function of the group's state and the fragment's number, so that what is delivered tells
what it was made of. Runners are real Collectors on a host of such groups.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from shoal.execution.cluster.orders import CollectFailed, Delivery, Order, RunnerLost, Ticket
from shoal.execution.cluster.pool import Pool
from shoal.execution.cluster.runner import Collector
from shoal.execution.host import Collected

NOTICE = 0.05  # until a death is known
START = 1.7
REBUILD = 0.2


def step(state: str, group: int, fragment: int) -> str:
    return hashlib.sha256(f"{state}/{group}/{fragment}".encode()).hexdigest()[:12]


def chain(group: int, fragments: int, state: str = "new") -> list[str]:
    """The states after each of the first fragments, without any fault."""
    states = []
    for fragment in range(fragments):
        state = step(state, group, fragment)
        states.append(state)
    return states


class FakeHost:
    """Groups whose state is a string; `trajectory` names the state that a fragment began from."""

    def __init__(self, faults: Callable[[int, int], None]) -> None:
        self._states: dict[int, str] = {}
        self._faults = faults

    def open(self, number: int, saved: Any = None) -> None:
        self._states.setdefault(number, "new")
        if saved is not None:
            self._states[number] = saved

    def collect(self, number: int, fragment: int, version: int, params: Any) -> Any:
        before = self._states[number]
        self._states[number] = "broken"
        self._faults(number, fragment)
        self._states[number] = step(before, number, fragment)
        return Collected((before, version), {}, {})  # type: ignore[arg-type]

    def save(self, number: int) -> Any:
        return self._states[number]

    def drop(self, number: int) -> None:
        self._states.pop(number, None)

    def close(self) -> None:
        pass


class Crash(Exception):
    """Collecting takes the process down."""


class Hang(Exception):
    """Collecting never ends."""


@dataclass(eq=False)
class Job:
    """An order, or a group to drop (order is an int), or the start, then a ping (None)."""

    order: Order | int | None
    runner: int
    ticket: Ticket | None = None
    outcome: Any = None  # (report, trajectory), an exception, or True
    ready_at: float | None = None


@dataclass(eq=False)
class Process:
    number: int
    collector: Collector
    pace: float
    jobs: deque[Job] = field(default_factory=deque)
    free_at: float = 0.0  # when the job that it is at is done
    ready: bool = False
    stopped: bool = False
    dead_at: float | None = None


class SimulatedFleet:
    """seed: of durations. spread: how much they vary. poison: given (group, fragment), raises its fault."""

    def __init__(self, seed: int = 0, spread: float = 0.5, poison: Callable[..., None] | None = None) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.spread = spread
        self.poison = poison or (lambda group, fragment: None)
        self.processes: dict[int, Process] = {}
        self.everyone: dict[int, Process] = {}
        self.jobs: dict[int, Job] = {}  # by id of their ticket
        self.agenda: list[tuple[float, Callable[[], None]]] = []  # what happens when
        self.leases: dict[int, list[tuple[int, int]]] = {}
        self.start_seconds: Callable[[], float] = lambda: START
        self.start_error: Callable[[int], Exception | None] = lambda number: None
        self.pace: Callable[[int], float] = lambda number: 1.0
        self.raises: set[int] = set()  # groups whose next fragment raises
        self.between: list[Callable[[], None]] = []  # what the driver does before it asks again
        self.waits = 0

    def clock(self) -> float:
        return self.now

    # -- what the pool calls -----------------------------------------------------------------------------

    def start(self, runner: int) -> Ticket:
        assert runner not in self.everyone
        host: Any = FakeHost(self._faults)
        process = Process(runner, Collector(host), self.pace(runner))
        self.processes[runner] = self.everyone[runner] = process
        return self._enqueue(process, Job(None, runner))

    def publish(self, params: Any) -> Any:
        return params

    def send(self, runner: int, order: Order, params: Any) -> Ticket:
        assert runner in self.processes, f"runner {runner} was killed by the pool itself"
        history = self.leases.setdefault(order.group, [])
        assert not history or order.lease >= history[-1][0], "a lease went back"
        assert all(where == runner for lease, where in history if lease == order.lease), (
            "a lease of two runners"
        )
        history.append((order.lease, runner))
        return self._enqueue(self.processes[runner], Job(order, runner))

    def ping(self, runner: int) -> Ticket:
        return self._enqueue(self.processes[runner], Job(None, runner))

    def drop(self, runner: int, group: int) -> None:
        if runner in self.processes:
            self._enqueue(self.processes[runner], Job(group, runner))

    def kill(self, runner: int) -> None:
        process = self.processes.pop(runner, None)
        if process is not None and process.dead_at is None:
            process.dead_at = self.now

    def wait(self, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        self.waits += 1
        assert self.waits < 200_000, "it does not get on"
        assert all(self.jobs[id(t)].runner in self.processes for t in tickets), "it waits for a killed runner"
        end = self.now + timeout
        while True:
            self._run()
            ready = [t for t in tickets if (at := self.jobs[id(t)].ready_at) is not None and at <= self.now]
            if ready or self.now >= end:
                return ready
            times = [at for t in tickets if (at := self.jobs[id(t)].ready_at) is not None]
            times += [p.free_at for p in self.processes.values() if p.jobs and self._works(p)]
            times += [at for at, _ in self.agenda]
            self.now = min([at for at in times if at > self.now] + [end])

    def take(self, ticket: Ticket) -> Any:
        outcome = self.jobs[id(ticket)].outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome[0] if isinstance(outcome, tuple) else outcome

    def fetch(self, trajectory: Any) -> Any:
        outcome = self.jobs[trajectory["job"]].outcome
        if isinstance(outcome, Exception):
            raise outcome
        if outcome[1] is None:
            raise RunnerLost("its result is lost")
        return outcome[1]

    def close(self) -> None:
        for runner in list(self.processes):
            self.kill(runner)

    # -- what happens ------------------------------------------------------------------------------------

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        self.agenda.append((seconds, what))

    def alive(self) -> list[int]:
        return [n for n, p in self.processes.items() if p.dead_at is None]

    def crash(self, number: int) -> None:
        """The process dies, whatever it is at."""
        process = self.everyone[number]
        if process.dead_at is None:
            process.dead_at = self.now
            for job in process.jobs:
                self._answer(job, RunnerLost("the actor died"), NOTICE)
            process.jobs.clear()

    def stop(self, number: int) -> None:
        self.everyone[number].stopped = True

    def go_on(self, number: int) -> None:
        process = self.everyone[number]
        process.stopped, process.free_at = False, max(process.free_at, self.now)

    def lose_results(self, number: int) -> None:
        """What the runner has made and nobody has fetched is gone with its node."""
        for job in self.jobs.values():
            if job.runner == number and isinstance(job.outcome, tuple):
                job.outcome = (job.outcome[0], None)

    def driver(self) -> None:
        """What the driver does beside."""
        while self.between:
            self.between.pop(0)()

    def be_away(self, seconds: float) -> None:
        self.now += seconds

    def _enqueue(self, process: Process, job: Job) -> Ticket:
        marker: dict[str, int] = {}
        job.ticket = Ticket(job, marker)
        marker["job"] = id(job.ticket)
        self.jobs[id(job.ticket)] = job
        if process.dead_at is not None:  # it died, and the pool does not know
            self._answer(job, RunnerLost("the actor died"), NOTICE)
        else:
            process.jobs.append(job)
            if len(process.jobs) == 1:
                process.free_at = self.now + self._seconds(process, job)
        return job.ticket

    def _seconds(self, process: Process, job: Job) -> float:
        if job.order is None:
            return 0.001 if process.ready else self.start_seconds()
        if isinstance(job.order, int):
            return 0.0
        rebuild = REBUILD if process.collector._lease.get(job.order.group) != job.order.lease else 0.0
        return rebuild + process.pace * self.random.uniform(1 - self.spread, 1 + self.spread)

    def _works(self, process: Process) -> bool:
        return process.dead_at is None and not process.stopped

    def _run(self) -> None:
        """Let everything happen that is due."""
        while True:
            due = [entry for entry in self.agenda if entry[0] <= self.now]
            done = [p for p in self.processes.values() if self._works(p) and p.jobs and p.free_at <= self.now]
            if due:
                self.agenda.remove(due[0])
                due[0][1]()
            elif done:
                self._finish(min(done, key=lambda p: (p.free_at, p.number)))
            else:
                return

    def _finish(self, process: Process) -> None:
        job, begun = process.jobs[0], process.free_at
        if job.order is None:
            error = None if process.ready else self.start_error(process.number)
            process.ready = True
            self._answer(job, error or True)
        elif isinstance(job.order, int):
            process.collector.drop(job.order)
        else:
            try:
                report, trajectory = process.collector.collect(job.order, None)
                self._answer(job, (report._replace(spent={"env": process.pace}), trajectory))
            except Crash:
                self.crash(process.number)
                return
            except Hang:
                process.stopped = True
                return
            except RuntimeError as error:
                self._answer(job, CollectFailed(str(error), user=False))
        process.jobs.popleft()
        if process.jobs:
            process.free_at = begun + self._seconds(process, process.jobs[0])

    def _answer(self, job: Job, outcome: Any, after: float = 0.0) -> None:
        job.outcome, job.ready_at = outcome, self.now + after

    def _faults(self, group: int, fragment: int) -> None:
        if group in self.raises:
            self.raises.discard(group)
            raise RuntimeError(f"group {group} stumbled")
        self.poison(group, fragment)


def synchronous(pool: Pool, groups: int, iterations: int, fleet: SimulatedFleet) -> None:
    """Order and await one fragment of every group at a time, and check all that arrives."""
    states = {g: chain(g, iterations) for g in range(groups)}
    for i in range(iterations):
        pool.publish(i, None)
        for g in range(groups):
            pool.order(g, i)
        arrived: dict[int, Delivery] = {}
        while len(arrived) < groups:
            assert fleet.waits < 3000 * (i + 1), "it does not get on"
            fleet.driver()
            for d in pool.deliveries(5.0):
                assert d.report.group not in arrived, "delivered twice"
                _check(d, i, states[d.report.group])
                arrived[d.report.group] = d
    assert not any(pool.owed(g) for g in range(groups))


def asynchronous(pool: Pool, groups: int, fragments: int, fleet: SimulatedFleet) -> dict[int, int]:
    """Have every group two fragments ahead, until all that live have delivered; how many each has."""
    states = {g: chain(g, fragments + 2) for g in range(groups)}
    ordered, got = dict.fromkeys(range(groups), 0), dict.fromkeys(range(groups), 0)
    pool.publish(0, None)
    while any(got[g] < fragments for g in range(groups) if g not in pool.given_up()):
        assert fleet.waits < 5000 * fragments, "it does not get on"
        for g in set(range(groups)) - pool.given_up():
            while pool.owed(g) < 2 and ordered[g] < fragments:
                pool.order(g, ordered[g])
                ordered[g] += 1
        fleet.driver()
        for d in pool.deliveries(5.0):
            _check(d, got[d.report.group], states[d.report.group])
            got[d.report.group] += 1
    return got


def _check(delivery: Delivery, fragment: int, states: list[str]) -> None:
    report = delivery.report
    assert report.fragment == fragment, "out of order, twice, or left out"
    assert delivery.trajectory[0] == (states[fragment - 1] if fragment else "new")
    assert report.after == states[fragment]
