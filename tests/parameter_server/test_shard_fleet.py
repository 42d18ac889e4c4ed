"""Shards on Ray are ended with their processes. Ray itself is played here."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from shoal.execution.cluster import session
from shoal.execution.cluster.shard_fleet import RayShards


class Actor:
    """Says who it is at once, and is never ready."""

    def __init__(self, number: int) -> None:
        self.identity = Method(("node", 100 + number, 7))
        self.begin = self.hold = Method(None)


class Method:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def remote(self, *arguments: Any) -> Any:
        return (self._answer,)


class Ray:
    def __init__(self) -> None:
        self.actors, self.killed = 0, 0

    def remote(self) -> Actor:
        self.actors += 1
        return Actor(self.actors)

    def get(self, answer: Any, timeout: float | None = None) -> Any:
        if answer[0] is None:
            raise GetTimeoutError
        return answer[0]

    def kill(self, actor: Actor) -> None:
        self.killed += 1


def test_a_shard_that_stops_while_it_starts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its process's number, which it has told before it was ready; and `close` waits until that is done,
    for Ray may be left, and this process gone, right after."""
    ended: list[int] = []
    slow = threading.Event()

    def kill_process(node: str, number: int, started: int) -> None:
        slow.wait(0.2)
        ended.append(number)

    monkeypatch.setattr(session, "kill_process", kill_process)
    played: Any = Ray()
    fleet = RayShards("module:name", lambda number: (), 1)
    fleet._ray, fleet._actor = played, played
    for shard in range(3):
        fleet.start(shard)
    assert fleet.identities() == {}  # none is ready, and to be counted on
    fleet.kill(0)
    fleet.close()
    assert sorted(ended) == [101, 102, 103] and played.killed == 3
