"""Which runner hosts which group: pure functions of what the runners have and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from shoal.execution.cluster.roster import NOWHERE

WORTHWHILE = 0.8  # moves must bring the slowest runner's round below this share of what it is


class Seat(NamedTuple):
    """runner: where a group is, or will be when its move is done; None: nowhere. suspect: shall be alone."""

    runner: int | None
    suspect: bool = False


class Load(NamedTuple):
    """groups: that a runner hosts, or will. seconds: a fragment's there, of late; None: not known yet."""

    groups: tuple[int, ...]
    seconds: float | None


def seats(groups: Mapping[int, Seat], hosts: Mapping[int, float | None]) -> dict[int, int]:
    """group -> where it shall be, for those that are not there; NOWHERE: to wait until a place is free.

    hosts: the runners that may host groups, with a fragment's seconds (see `Load`). A suspect gets a runner
    for itself. As long as there are two runners, suspects leave one to the others and wait for their turn.
    """
    if not hosts:
        return {}
    reserved: dict[int, int] = {}  # runner -> its suspect
    for n, seat in groups.items():
        if seat.suspect and seat.runner is not None and seat.runner in hosts and seat.runner not in reserved:
            reserved[seat.runner] = n
    for n, seat in groups.items():
        if not seat.suspect or n in reserved.values() or len(reserved) >= max(1, len(hosts) - 1):
            continue
        count = {runner: 0 for runner in hosts if runner not in reserved}
        for other in groups.values():
            if other.runner in count:
                count[other.runner] += 1
        if count:
            reserved[min(count, key=lambda runner: (count[runner], runner))] = n
    free = {runner: seconds for runner, seconds in hosts.items() if runner not in reserved}
    loads = loads_of({n: seat for n, seat in groups.items() if not seat.suspect}, free)
    wanted = {n: runner for runner, n in reserved.items()}
    for n, seat in groups.items():
        if n in wanted or (not seat.suspect and seat.runner in free):
            continue
        if seat.suspect or not free:
            wanted[n] = NOWHERE
            continue
        wanted[n] = host = place(loads)
        loads[host] = loads[host]._replace(groups=(*loads[host].groups, n))
    return {n: runner for n, runner in wanted.items() if runner != groups[n].runner}


def loads_of(groups: Mapping[int, Seat], hosts: Mapping[int, float | None]) -> dict[int, Load]:
    return {
        runner: Load(tuple(n for n, seat in groups.items() if seat.runner == runner), seconds)
        for runner, seconds in hosts.items()
    }


def place(loads: Mapping[int, Load]) -> int:
    """The runner that would be done first with one group more."""
    seconds = _seconds(loads)
    return min(loads, key=lambda r: ((len(loads[r].groups) + 1) * seconds[r], r))


def better_homes(loads: Mapping[int, Load]) -> dict[int, tuple[int, str]]:
    """group -> (the runner to move to, why), where all moves together shorten the slowest runner's round
    enough. One move alone seldom does where runners have many groups each."""
    groups = {runner: list(load.groups) for runner, load in loads.items()}
    seconds = _seconds(loads)
    moves: dict[int, int] = {}
    before = _longest(groups, seconds)
    while len(groups) > 1:
        rounds = {runner: len(groups[runner]) * seconds[runner] for runner in groups}
        slow = max(rounds, key=lambda r: (rounds[r], r))
        fast = min(rounds, key=lambda r: (rounds[r] + seconds[r], r))
        if slow == fast or rounds[fast] + seconds[fast] >= rounds[slow]:
            break
        group = groups[slow].pop()
        groups[fast].append(group)
        moves[group] = fast
    after = _longest(groups, seconds)
    if after > WORTHWHILE * before:
        return {}
    why = f"the longest round takes {before:.3g} s, {after:.3g} s after all moves"
    return {g: (runner, why) for g, runner in moves.items() if g not in loads[runner].groups}


def _longest(groups: Mapping[int, list[int]], seconds: Mapping[int, float]) -> float:
    return max((len(hosted) * seconds[runner] for runner, hosted in groups.items()), default=0.0)


def _seconds(loads: Mapping[int, Load]) -> dict[int, float]:
    """Each runner's seconds for a fragment; one not measured yet is taken to be like the others."""
    known = [load.seconds for load in loads.values() if load.seconds]
    usual = sum(known) / len(known) if known else 1.0
    return {runner: load.seconds or usual for runner, load in loads.items()}
