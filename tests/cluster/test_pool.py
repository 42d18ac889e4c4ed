"""The supervisor in virtual time: whatever happens, each fragment comes once, as without faults."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from simulated import Crash, Hang, SimulatedFleet, asynchronous, synchronous

from shoal.errors import ShoalError
from shoal.execution.cluster.orders import CollectFailed
from shoal.execution.cluster.pool import EVENTS, Limits, Pool

QUICK = settings(deadline=None, derandomize=True, max_examples=25, phases=[Phase.generate])
LIMITS = Limits(strikes=3)
NO_STRIKES = Limits(strikes=10**9)

FAULTS = st.lists(
    st.tuples(
        st.floats(0, 25),
        st.sampled_from(
            ["crash", "crash", "stop", "pause", "raise", "lose", "node", "resize", "slow", "away"]
        ),
        st.integers(0, 7),
    ),
    max_size=25,
)


AT_ONCE = st.sampled_from([None, 1, 2])


def make(
    fleet: SimulatedFleet,
    groups: int,
    runners: int,
    limits: Limits = LIMITS,
    faults: list | tuple = (),
    at_once: int | None = None,
) -> Pool:
    pool = Pool(fleet, dict.fromkeys(range(groups)), runners, limits, fleet.clock, at_once=at_once)
    for seconds, kind, pick in faults:
        fleet.at(seconds, lambda kind=kind, pick=pick: strike(fleet, pool, groups, kind, pick))
    return pool


def strike(fleet: SimulatedFleet, pool: Pool, groups: int, kind: str, pick: int) -> None:
    """One fault, whatever its target is at: starting, idle, at work, or done and not yet asked."""
    alive = fleet.alive()
    if kind == "raise":
        fleet.raises.add(pick % groups)
    elif kind == "resize":
        fleet.between.append(lambda: pool.resize(pick + 1, "as drawn"))
    elif kind == "away":
        fleet.between.append(lambda: fleet.be_away(40.0 * pick))
    elif not alive:
        return
    elif kind == "node":
        for number in alive[pick % len(alive) :]:
            fleet.crash(number)
            fleet.lose_results(number)
    elif kind == "lose":
        fleet.lose_results(alive[pick % len(alive)])
    elif kind == "slow":
        fleet.processes[alive[pick % len(alive)]].pace = 3.0
    else:
        number = alive[pick % len(alive)]
        {"crash": fleet.crash, "stop": fleet.stop, "pause": fleet.stop}[kind](number)
        if kind == "pause":
            fleet.at(fleet.now + pick, lambda: fleet.go_on(number))


@QUICK
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 4), FAULTS, AT_ONCE)
def test_a_synchronous_run_gets_what_it_would_get_without_faults(seed, groups, runners, faults, at_once):
    fleet = SimulatedFleet(seed)
    pool = make(fleet, groups, runners, NO_STRIKES, faults, at_once)
    synchronous(pool, groups, 12, fleet)
    assert pool.counts.delivered == 12 * groups
    assert pool.counts.late == 0


@QUICK
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 4), FAULTS)
def test_an_asynchronous_run_gets_what_it_would_get_without_faults(seed, groups, runners, faults):
    fleet = SimulatedFleet(seed)
    pool = make(fleet, groups, runners, NO_STRIKES, faults)
    assert set(asynchronous(pool, groups, 15, fleet).values()) == {15}


@QUICK
@given(st.integers(0, 99), st.lists(st.integers(1, 6), min_size=1, max_size=5), FAULTS, AT_ONCE)
def test_after_resizes_groups_end_at_the_wanted_runners(seed, sizes, faults, at_once):
    fleet = SimulatedFleet(seed)
    pool = make(fleet, 6, 2, NO_STRIKES, [f for f in faults if f[1] != "resize"], at_once)
    for n, size in enumerate(sizes):
        fleet.at(2.0 * n, lambda size=size: fleet.between.append(lambda: pool.resize(size, "as drawn")))
    asynchronous(pool, 6, 15, fleet)
    fleet.raises.clear()
    for number in fleet.alive():
        fleet.go_on(number)
    while pool.figures()["runners"] != sizes[-1] or len(fleet.processes) != sizes[-1]:
        assert fleet.now < 500
        fleet.now += 1.0
        pool.deliveries(0.0)
    homes = {group.home for group in pool._groups.values()}
    assert homes <= set(fleet.processes)
    assert all(group.target is None for group in pool._groups.values())
    if not faults:
        assert len(homes) == min(6, sizes[-1])


def test_runners_are_started_at_once_or_after_the_first():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 4, 4, at_once=1)
    assert list(fleet.processes) == [0]
    fleet.crash(0)  # before it is ready: another has to be the first
    synchronous(pool, 4, 6, fleet)
    assert sorted(fleet.processes) == [1, 2, 3, 4]
    assert (pool.figures()["runners"], pool.counts.restarts) == (4, 1)


@pytest.mark.parametrize("runners", [1, 2, 4])
@pytest.mark.parametrize("ill", [Crash, Hang, RuntimeError])
def test_a_group_that_always_fails_is_named_and_the_others_go_on(ill: type[Exception], runners: int):
    def poison(group: int, fragment: int) -> None:
        if group == 2 and fragment >= 3:
            raise ill(f"group {group} is ill, fragment {fragment}")

    fleet = SimulatedFleet(1, poison=poison)
    pool = make(fleet, 4, runners, Limits(strikes=3, give_up=True))
    got = asynchronous(pool, 4, 12, fleet)
    assert got == {0: 12, 1: 12, 2: 3, 3: 12}
    assert pool.given_up() == {2}
    events = "\n".join(pool.take_events())
    assert "group 2 failed 3 times in a row; the first error: " in events
    assert [g for g in (0, 1, 3) if f"group {g} failed" in events] == []
    if ill is RuntimeError:
        assert "the first error: group 2 is ill, fragment 3" in events


@pytest.mark.parametrize("runners", [1, 3])
def test_a_run_that_needs_all_groups_ends_with_the_first_error(runners: int):
    seen = count()

    def poison(group: int, fragment: int) -> None:
        if group == 1 and fragment == 2:
            raise RuntimeError(f"error {next(seen)}")

    fleet = SimulatedFleet(1, poison=poison)
    with pytest.raises(ShoalError, match="group 1 failed 3 times in a row; the first error: error 0"):
        synchronous(make(fleet, 3, runners), 3, 5, fleet)


def test_two_ill_groups_on_few_runners_are_both_found():
    def poison(group: int, fragment: int) -> None:
        if group in (0, 3) and fragment == 1:
            raise Crash

    for runners in (1, 2, 3):
        fleet = SimulatedFleet(2, poison=poison)
        pool = make(fleet, 5, runners, Limits(strikes=3, give_up=True))
        asynchronous(pool, 5, 8, fleet)
        assert pool.given_up() == {0, 3}


@QUICK
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5), st.floats(2.5, 6.0))
def test_a_killer_makes_no_group_guilty(seed, runners, groups, period):
    """Every runner in turn, for ever: what has delivered since is innocent."""
    fleet = SimulatedFleet(seed)
    pool = make(fleet, groups, runners)
    turn = count()

    def kill() -> None:
        alive = fleet.alive()
        if alive and pool.counts.delivered > kill.delivered + groups:
            kill.delivered = pool.counts.delivered
            fleet.crash(alive[next(turn) % len(alive)])
        fleet.at(fleet.now + period, kill)

    kill.delivered = 0
    fleet.at(period, kill)
    asynchronous(pool, groups, 40, fleet)
    assert not any("failed 2 of" in event for event in pool.take_events())


def test_idle_runners_that_died_unseen_are_nobodys_fault():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 1, 6, Limits(strikes=2))
    synchronous(pool, 1, 3, fleet)
    for number in fleet.alive():
        fleet.crash(number)
    asynchronous_from(pool, 1, 3, 6, fleet)
    assert pool.counts.restarts == 6


def test_a_result_that_its_node_lost_is_nobodys_fault():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 1, 1, Limits(strikes=1))
    losing = fleet.fetch

    def fetch(trajectory):
        if pool.counts.delivered == 3 and not pool.counts.restarts:
            fleet.lose_results(0)
        return losing(trajectory)

    fleet.fetch = fetch  # type: ignore[method-assign]
    synchronous(pool, 1, 6, fleet)
    assert pool.counts.restarts == 1


def test_a_stopped_runner_is_found_by_its_deadline():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 4, 2)
    synchronous(pool, 4, 10, fleet)
    fleet.at(fleet.now + 0.3, lambda: fleet.stop(fleet.alive()[0]))
    before = fleet.now
    asynchronous_from(pool, 4, 10, 13, fleet)
    assert pool.counts.hung == 1
    assert fleet.now - before < 3.0 + 10 * 1.5 + 10


def asynchronous_from(pool: Pool, groups: int, begin: int, end: int, fleet: SimulatedFleet) -> None:
    for i in range(begin, end):
        for g in range(groups):
            pool.order(g, i)
        got = 0
        while got < groups:
            got += len(pool.deliveries(5.0))


def test_a_driver_that_was_busy_elsewhere_takes_nobody_for_hung():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 4, 2)
    synchronous(pool, 4, 5, fleet)
    for g in range(4):
        pool.order(g, 5)
    pool.deliveries(0.0)
    fleet.be_away(1000.0)
    fleet.processes[fleet.alive()[0]].free_at = fleet.now + 1.0  # this machine was asleep as well
    got = 0
    while got < 4:
        got += len(pool.deliveries(5.0))
    assert pool.counts.hung == 0


def test_one_long_fragment_costs_time_and_no_strike():
    """A reset that takes 60 times as long as any fragment before: a longer deadline follows each hang."""
    fleet = SimulatedFleet(0, spread=0.1)
    pool = make(fleet, 2, 2, Limits(strikes=1))
    plain = fleet._seconds

    def seconds(process, job):
        order = job.order
        slow = not isinstance(order, int) and order is not None and (order.group, order.fragment) == (0, 6)
        return 60.0 if slow else plain(process, job)

    fleet._seconds = seconds  # type: ignore[method-assign]
    synchronous(pool, 2, 9, fleet)
    assert pool.counts.hung >= 1
    assert not any("failed" in event for event in pool.take_events())


def test_a_restarted_group_begins_from_its_new_state():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 2, 1)
    synchronous(pool, 2, 4, fleet)
    for g in range(2):
        pool.restart(g, "elsewhere")
        pool.order(g, 4)
    found = []
    while len(found) < 2:
        found += pool.deliveries(5.0)
    assert {d.trajectory[0] for d in found} == {"elsewhere"}


def test_with_nothing_owed_nobody_waits():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 2, 1)
    assert pool.deliveries(50.0) == []
    assert fleet.now == 0.0


def test_what_arrived_beside_an_error_is_not_lost():
    fleet = SimulatedFleet(0, spread=0.0)
    pool = make(fleet, 2, 2, Limits(strikes=1))
    synchronous(pool, 2, 3, fleet)
    fleet.raises.add(1)
    for g in range(2):
        pool.order(g, 3)
    with pytest.raises(ShoalError, match="stumbled"):
        while True:
            assert not pool.deliveries(5.0)
    assert [d.report.group for d in pool.deliveries(0.0)] == [0]


def always(error: Exception) -> Callable[[int], Exception]:
    return lambda number: error


def test_an_environment_that_nobody_can_build_ends_the_run_at_once():
    fleet = SimulatedFleet(0)
    fleet.start_error = always(CollectFailed("there is no such environment", user=True))
    with pytest.raises(ShoalError, match="no env runner can be started: there is no such environment"):
        synchronous(make(fleet, 2, 2), 2, 1, fleet)
    assert fleet.now < 3.0


def test_runners_that_cannot_be_started_are_tried_again_but_not_for_ever():
    fleet = SimulatedFleet(0)
    fleet.start_error = always(CollectFailed("out of memory", user=False))
    with pytest.raises(ShoalError, match="no env runner can be started: out of memory"):
        synchronous(make(fleet, 2, 3), 2, 1, fleet)
    assert len(fleet.everyone) < 10


def test_a_replacement_that_fails_for_a_while_joins_later():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 4, 2)
    synchronous(pool, 4, 3, fleet)
    fleet.start_error = lambda number: CollectFailed("no room", user=False) if fleet.now < 100 else None
    fleet.crash(fleet.alive()[0])
    asynchronous_from(pool, 4, 3, 200, fleet)
    assert pool.figures()["runners"] == 2
    assert len(fleet.everyone) < 12


def test_a_runner_that_never_gets_ready_is_given_up():
    fleet = SimulatedFleet(0)
    fleet.start_seconds = lambda: 10.0**6 if len(fleet.everyone) == 1 else 1.0
    pool = make(fleet, 2, 1)
    synchronous(pool, 2, 2, fleet)
    assert 120 < fleet.now < 130


def test_events_do_not_grow_without_bound():
    fleet = SimulatedFleet(0)
    pool = make(fleet, 2, 2)
    for n in range(3 * EVENTS):
        pool.resize(1 + n % 2, "as drawn")
    assert len(pool.take_events()) == EVENTS
    assert pool.take_events() == []


def test_figures_say_who_waits():
    """One runner of two is slower: the other one is idle for a third of the time, and the driver waits."""
    fleet = SimulatedFleet(0, spread=0.0)
    fleet.pace = lambda number: 1.5 if number else 1.0
    pool = make(fleet, 2, 2)
    synchronous(pool, 2, 4, fleet)
    pool.figures()
    asynchronous_from(pool, 2, 4, 8, fleet)
    figures = pool.figures()
    assert figures["runners_idle"] == pytest.approx(1 / 6, abs=0.02)
    assert figures["waiting"] > 0.95
    fleet.be_away(50.0)
    figures = pool.figures()
    assert figures["runners_idle"] == 1.0
    assert figures["waiting"] == 0.0


@pytest.mark.parametrize("groups", [2, 4, 5, 7, 16])
def test_homes_do_not_flap_under_noise(groups: int):
    fleet = SimulatedFleet(3, spread=0.3)
    pool = make(fleet, groups, 2)
    asynchronous(pool, groups, 400 // groups, fleet)
    before = pool.counts.moves
    asynchronous_from(pool, groups, 400 // groups, 2400 // groups, fleet)
    assert pool.counts.moves - before == 0


def test_groups_leave_a_slow_runner_and_stay_away():
    fleet = SimulatedFleet(3, spread=0.3)
    fleet.pace = lambda number: 3.0 if number == 0 else 1.0
    pool = make(fleet, 8, 2)
    asynchronous(pool, 8, 60, fleet)
    homes = [group.home for group in pool._groups.values()]
    assert homes.count(0) == 2
    assert pool.counts.moves <= 4
    assert any("moves to runner 1: the longest round" in event for event in pool.take_events())
