"""Which runner hosts which group: pure functions of what the runners have and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

WORTHWHILE = 0.8  # a move must bring the slowest runner's round below this share of what it is


class Load(NamedTuple):
    """groups: that a runner hosts, or will. seconds: a fragment's there, of late; None: not known yet."""

    groups: tuple[int, ...]
    seconds: float | None


def place(loads: Mapping[int, Load]) -> int:
    """The runner that would be done first with one group more."""
    seconds = _seconds(loads)
    return min(loads, key=lambda r: ((len(loads[r].groups) + 1) * seconds[r], r))


def better_homes(loads: Mapping[int, Load]) -> dict[int, tuple[int, str]]:
    """group -> (the runner to move to, why), as long as a move shortens the slowest runner's round enough."""
    groups = {runner: list(load.groups) for runner, load in loads.items()}
    seconds = _seconds(loads)
    moves: dict[int, tuple[int, str]] = {}
    while len(groups) > 1:
        rounds = {runner: len(groups[runner]) * seconds[runner] for runner in groups}
        slow = max(rounds, key=lambda r: (rounds[r], r))
        fast = min(rounds, key=lambda r: (rounds[r] + seconds[r], r))
        after = max(rounds[fast] + seconds[fast], rounds[slow] - seconds[slow])
        if slow == fast or not groups[slow] or after > WORTHWHILE * rounds[slow]:
            break
        group = groups[slow].pop()
        groups[fast].append(group)
        moves[group] = (fast, f"a round takes {rounds[slow]:.3g} s on runner {slow}, {after:.3g} s after it")
    return moves


def _seconds(loads: Mapping[int, Load]) -> dict[int, float]:
    """Each runner's seconds for a fragment; one not measured yet is taken to be like the others."""
    known = [load.seconds for load in loads.values() if load.seconds]
    usual = sum(known) / len(known) if known else 1.0
    return {runner: load.seconds or usual for runner, load in loads.items()}
