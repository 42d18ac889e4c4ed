"""IMPALA and APPO runs: what is learned from, dropped and kept, step by step in this process; and that they
learn on Ray while runners are killed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

import numpy as np
import pytest
from killer import Killer

from shoal import Cluster, Trainer
from shoal.algorithms.appo import APPO
from shoal.algorithms.impala import IMPALA
from shoal.checkpoint import flatten
from shoal.envs.errors import EnvError
from shoal.execution.cluster import asynchronous
from shoal.execution.cluster.asynchronous import AsynchronousRun
from shoal.execution.cluster.flow import Flow
from shoal.execution.cluster.inline import InlineFleet
from shoal.execution.cluster.orders import Delivery, Ticket
from shoal.execution.host import Host
from shoal.recipe import Experiment, Recipe

SMALL: dict[str, Any] = {"rollout_length": 8, "hidden": (8,)}
GROUPS = 4


def started(staleness: int = 4, **on: Any) -> AsynchronousRun:
    algorithm = IMPALA(staleness=staleness, **SMALL)
    cluster = Cluster(**{"inline": True, "runners": GROUPS, "groups": GROUPS, "envs": 2 * GROUPS, **on})
    run = cluster.start(Experiment.of(Recipe(algorithm=algorithm, env={"env": "CartPole-v1"}), 0))
    assert isinstance(run, AsynchronousRun)
    return run


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Random:
    """Runners that answer when they like, the first of them seldom."""
    random = Random(0)

    def wait(self: InlineFleet, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        return [t for i, t in enumerate(tickets) if random.random() < (0.5 if i else 0.05)]

    monkeypatch.setattr(InlineFleet, "wait", wait)
    return random


@dataclass
class Trace:
    """What a run learned from, in order, and what it was done with, by group."""

    delivered: list[Delivery] = field(default_factory=list)
    learned: list[Delivery] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)  # of each that was learned from, by its own rows
    settled: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Any]]]:
    """The trajectories of each update, as the learner got them."""
    batches: list[list[Any]] = []
    join = asynchronous.join
    monkeypatch.setattr(asynchronous, "join", lambda parts: batches.append(parts) or join(parts))
    yield batches


def traced(run: AsynchronousRun, joined: list[list[Any]]) -> Trace:
    trace, by_data = Trace(), {}
    deliveries, settle, take = run._pool.deliveries, run._flow.settle, run._learning.take

    def seen(timeout: float) -> list[Delivery]:
        found = deliveries(timeout)
        trace.delivered += found
        by_data.update({id(d.trajectory): d for d in found})
        return found

    def settled(reports: Any) -> None:
        reports = list(reports)
        for report in reports:
            trace.settled[report.group].append(report.fragment)
        settle(reports)

    def taken(state: Any, store: Any, data: Any, keys: Any, version: int) -> Any:
        parts = joined.pop()
        trace.learned += [by_data[id(part)] for part in parts]
        trace.stale += [version - int(part.version.min()) for part in parts]
        return take(state, store, data, keys, version)

    run._pool.deliveries, run._flow.settle = seen, settled  # type: ignore[method-assign]
    run._learning = replace(run._learning, take=taken)
    return trace


def check_account(run: AsynchronousRun) -> None:
    account = run.account
    assert account.delivered == account.learned + account.dropped + len(run._queue)
    assert account.delivered == run._pool.counts.delivered


def numbers(deliveries: Sequence[Delivery]) -> list[tuple[int, int]]:
    return [(d.report.group, d.report.fragment) for d in deliveries]


def check_seams(deliveries: Sequence[Delivery]) -> None:
    """Every group's fragments follow one another: none is missing, none there twice."""
    last: dict[int, Delivery] = {}
    for d in deliveries:
        before = last.get(d.report.group)
        if before is not None:
            assert d.report.fragment == before.report.fragment + 1
            np.testing.assert_array_equal(
                d.trajectory.obs.policy[0], before.trajectory.obs.policy[-1], strict=True
            )
        last[d.report.group] = d


@pytest.mark.parametrize(("staleness", "per_update"), [(1, 1), (1, 4), (2, 3), (4, 2)])
def test_the_account_balances_and_nothing_too_stale_is_learned_from(
    staleness: int, per_update: int, late: Random, joined: list[list[Any]]
) -> None:
    run = started(staleness, per_update=per_update)
    trace = traced(run, joined)
    told: list[float] = []
    for _ in range(25):
        metrics = run.iterate().metrics
        check_account(run)
        told.append(float(metrics["staleness/max"]))
        for name, amount in vars(run.account).items():
            assert metrics[f"fragments/{name}"] == amount
        assert metrics["fragments/queued"] == len(run._queue)
        owed = sum(run._pool.owed(g) for g in range(GROUPS))
        assert len(run._queue) + owed <= per_update * (staleness + 1)
    assert max(told) == max(trace.stale) <= staleness
    assert len(trace.learned) == run.account.learned == per_update * run._version
    assert len(set(numbers(trace.learned))) == len(trace.learned)
    check_seams(trace.delivered)
    settled = {g: list(range(len(fragments))) for g, fragments in trace.settled.items()}
    assert trace.settled == settled  # in their order, learned from or dropped
    assert run.account.dropped == sum(map(len, settled.values())) - len(trace.learned)
    assert run.account.dropped > 0  # the runner that answers seldom is overtaken
    run.close()


def test_a_group_that_comes_late_is_not_ordered_from_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runners one is slower than the other: what waits at it behind another order comes too late."""
    looks, slow, send, order = count(), [], InlineFleet.send, Flow.order

    def sent(self: InlineFleet, runner: int, *args: Any) -> Ticket:
        ticket = send(self, runner, *args)
        if runner:
            slow.append(ticket.report)
        return ticket

    def wait(self: InlineFleet, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        look = next(looks)  # one runner answers every other time, the other every fifth
        return [t for t in tickets if look % (5 if t.report in slow else 2) == 0]

    def dropped() -> float:
        run = started(staleness=4, per_update=1, groups=2, runners=2, envs=4)
        while run.account.delivered < 500:
            run.iterate()
        share = run.account.dropped / run.account.delivered
        run.close()
        return share

    monkeypatch.setattr(InlineFleet, "send", sent)
    monkeypatch.setattr(InlineFleet, "wait", wait)
    with_regard = dropped()
    monkeypatch.setattr(Flow, "order", lambda self, room, owed, singly: order(self, room, owed))
    assert 5 * with_regard < dropped()


def test_back_pressure_bounds_what_is_ordered() -> None:
    """A learner that takes nothing: runners stop, at what can be learned from within the bound."""
    run = started(staleness=2, per_update=2)
    run.iterate()
    version = run._version
    for _ in range(30):
        run._gather()
    assert len(run._queue) == 2 * (2 + 1) and run._version == version
    assert not any(run._pool.owed(g) for g in range(GROUPS))
    run.iterate()
    assert run.account.dropped == 0
    check_account(run)
    run.close()


def test_a_saved_run_goes_on_after_what_it_was_done_with(late: Random, joined: list[list[Any]]) -> None:
    run = started(staleness=1, per_update=3)
    trace = traced(run, joined)
    while not (run._queue and run.account.dropped and any(map(run._pool.owed, range(GROUPS)))):
        run.iterate()  # until there is something of every kind to be lost
    saved = {f"run/{path}": np.array(array) for path, array in flatten(run.save()).items()}
    version, state = run._version, run.learner.state
    run.close()
    for runners in (1, 3):
        other = started(staleness=1, per_update=3, runners=runners)
        other.learner.state = state
        other.load(saved, "run")
        again = traced(other, joined)
        for _ in range(6):
            other.iterate()
            check_account(other)
        assert other._version > version and max(again.stale) <= 1
        assert not set(numbers(trace.learned)) & set(numbers(again.learned))
        done = [d for d in trace.delivered if d.report.fragment in trace.settled[d.report.group]]
        assert len(done) == sum(map(len, trace.settled.values()))
        check_seams([*done, *again.delivered])
        assert {d.report.group for d in again.delivered} == set(range(GROUPS))
        other.close()


@pytest.mark.parametrize("runners", [1, 4])
def test_a_group_that_always_raises_is_given_up_and_the_others_go_on(
    runners: int, monkeypatch: pytest.MonkeyPatch, joined: list[list[Any]]
) -> None:
    collect = Host.collect

    def ill(self: Host, number: int, fragment: int, version: int, params: Any) -> Any:
        if number == 2 and fragment >= 3:
            raise EnvError(f"CartPole-v1, group {number}: it is ill")
        return collect(self, number, fragment, version, params)

    monkeypatch.setattr(Host, "collect", ill)
    run = started(runners=runners)
    trace = traced(run, joined)
    events: list[str] = []
    for _ in range(8):
        events += run.iterate().events
        check_account(run)
    assert run._pool.given_up() == {2}
    assert [e for e in events if "given up" in e] == [
        "group 2 failed 3 times in a row; the first error: CartPole-v1, group 2: it is ill; it is given up"
    ]
    assert trace.settled[2] == [0, 1, 2]
    assert min(len(trace.settled[g]) for g in (0, 1, 3)) >= 6
    before = run.account.learned
    saved = {f"run/{path}": np.array(array) for path, array in flatten(run.save()).items()}
    for _ in range(3):
        run.iterate()
    assert run.account.learned >= before + 3 * GROUPS
    run.close()
    monkeypatch.setattr(Host, "collect", collect)  # it was the machine: resumed elsewhere, all go on
    other = started(runners=runners)
    other.load(saved, "run")
    again = traced(other, joined)
    for _ in range(3):
        other.iterate()
    assert again.settled[2][0] == 3 and not other._pool.given_up()
    other.close()


# On Ray


def test_runners_do_not_wait_for_a_slow_learner_but_stay_within_the_bound() -> None:
    with Trainer(
        IMPALA(staleness=1, **SMALL), "CartPole-v1", on=Cluster(runners=2, envs=8, groups=4, cpus=0.5)
    ) as trainer:
        run = trainer._run
        assert isinstance(run, AsynchronousRun)
        take = run._learning.take

        def slow(*arguments: Any) -> Any:
            time.sleep(0.2)
            return take(*arguments)

        run._learning = replace(run._learning, take=slow)
        rows = [trainer.train() for _ in range(10)]
        check_account(run)
    assert max(row["staleness/max"] for row in rows) == 1  # made while the learner was at work
    # Fragments take milliseconds: the learner finds them made, and runners stand at the bound.
    assert np.mean([row["timing/waiting"] for row in rows[3:]]) < 0.5
    assert np.mean([row["timing/runners_idle"] for row in rows[3:]]) > 0.5


CARTPOLE = {
    "impala": (
        IMPALA(
            rollout_length=32, gae_lambda=0.95, learning_rate=2e-3, anneal_steps=400_000, max_grad_norm=0.5
        ),
        400_000,
    ),
    "appo": (
        APPO(
            rollout_length=32,
            minibatches=8,
            epochs=4,
            target_every=32,
            discount=0.98,
            gae_lambda=0.9,
            learning_rate=2e-3,
            anneal_steps=300_000,
        ),
        300_000,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CARTPOLE)
def test_cartpole_is_solved_under_a_killer(name: str, seed: int) -> None:
    """Every second a runner is killed, never the last one; at least three, however slowly others come."""
    algorithm, steps = CARTPOLE[name]
    on = Cluster(runners=2, groups=4, envs=32, cpus=0.5)
    worst, begun = 0.0, time.monotonic()
    with Trainer(algorithm, "CartPole-v1", seed=seed, on=on, scale_rewards=name == "impala") as trainer:
        run = trainer._run
        assert isinstance(run, AsynchronousRun)
        fleet: Any = run._pool._fleet
        with Killer(fleet.identities, 1.0, seed) as killer:
            done = lambda: trainer.reached(475.0) and len(killer.killed) >= 3  # noqa: E731
            while not done() and trainer._progress.env_steps < steps:
                worst = max(worst, trainer.train()["staleness/max"])
                check_account(run)
        told, seconds = trainer.summary(), time.monotonic() - begun
        print(f"{name}, seed {seed}: {told['env_steps']} steps, {seconds:.0f} s, {len(killer.killed)} kills,")
        print(f"return {told['episode_return_mean']:.0f}, staleness {worst:.0f}, {run.account}")
        assert trainer.reached(475.0)
        assert worst <= algorithm.staleness
        assert len(killer.killed) >= 3
