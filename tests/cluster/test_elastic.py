"""The number of runners follows simulated figures: up where it helps, down where it does not, no swing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from shoal.execution.cluster.elastic import Bounds, Elastic, Figures, decide, room_for

BOUNDS = Bounds(least=1, most=8)


@pytest.mark.parametrize(
    ("figures", "runners"),
    [
        (Figures(2, 0.9, 0.1, 8), 3),  # the learner waits, all runners work
        (Figures(2, 0.9, 0.1, 2), 2),  # and there is no room
        (Figures(8, 0.9, 0.1, 20), 8),  # or there are no groups for more
        (Figures(2, 0.9, 0.5, 8), 2),  # both wait: a plan in turns, or uneven groups
        (Figures(4, 0.1, 0.8, 8), 3),  # runners idle
        (Figures(1, 0.1, 0.8, 8), 1),  # the last one stays
        (Figures(2, 0.1, 0.62, 8), 2),  # one alone would have too much to do
        (Figures(6, 0.9, 0.1, 3), 3),  # a node has left
        (Figures(6, 0.9, 0.1, 0), 1),
    ],
)
def test_one_look(figures: Figures, runners: int) -> None:
    assert decide(figures, BOUNDS).runners == runners


def test_room() -> None:
    assert room_for({"CPU": 8.0}, {"CPU": 1.0}, {"CPU": 2.0}) == 3
    assert room_for({"CPU": 8.0, "far": 1.0}, {}, {"CPU": 1.0, "far": 0.5}) == 2
    assert room_for({"CPU": 0.3}, {}, {"CPU": 0.1}) == 3
    assert room_for({"CPU": 1.0}, {}, {"far": 1.0}) == 0
    assert room_for({"CPU": 1.0}, {}, {"CPU": 0.0}) > 1000


def simulate(demand: float, room: Callable[[float], int], seconds: int, begin: int = 1) -> list[int]:
    """A learner that takes in what `demand` runners make, with noise: how many there were."""
    now, runners, random, seen = 0.0, begin, Random(0), []
    elastic = Elastic(BOUNDS, lambda: room(now), lambda: now)
    for _ in range(seconds):
        now += 1.0
        noise = random.uniform(-0.1, 0.1)
        waiting = min(1.0, max(0.0, 1 - runners / demand + noise))
        idle = min(1.0, max(0.0, 1 - demand / runners + noise))
        decision = elastic.look(runners, 1.0, waiting, idle)
        runners = decision.runners if decision else runners
        seen.append(runners)
    return seen


@pytest.mark.parametrize("demand", [0.5, 1.0, 2.0, 3.3, 6.0, 20.0])
@pytest.mark.parametrize("begin", [1, 4, 8])
def test_it_settles_and_does_not_swing(demand: float, begin: int) -> None:
    seen = simulate(demand, lambda now: 8, 400, begin)
    assert len(set(seen[200:])) == 1
    assert demand / 2 - 1 <= seen[-1] <= demand / 0.4 + 1 or seen[-1] == 8
    changes = [b - a for a, b in pairwise(seen) if a != b]
    assert len({change > 0 for change in changes}) <= 1


def test_it_follows_nodes_that_leave_and_join() -> None:
    seen = simulate(20.0, lambda now: 2 if 200 <= now < 300 else 6, 500)
    assert seen[198] == 6
    assert max(seen[206:300]) == 2
    assert seen[-1] == 6


def test_the_cluster_is_seldom_asked() -> None:
    asked: list[float] = []
    simulate(2.0, lambda now: asked.append(now) or 8, 100)
    assert len(asked) <= 21
