"""On Ray: workers and shards that are killed change no bit of a synchronous run, and others lose nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shoal import A2C, PPO, ParameterServer, Trainer
from shoal.execution.cluster import session

SMALL = PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,))


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for the module: this hold on it keeps it while Trainers come and go."""
    with session.join(cpus=2):
        yield


def fleets(trainer: Trainer) -> tuple[Any, Any]:
    """Workers' and shards'."""
    learner: Any = trainer._run.learner
    return learner._pool._fleet, learner._servers._fleet


def kill(fleet: Any, pick: int, how: signal.Signals = signal.SIGKILL) -> None:
    alive = sorted(fleet.identities().items())
    if alive:
        _, (_, pid, _) = alive[pick % len(alive)]
        os.kill(pid, how)


@pytest.mark.as_in_use
def test_kills_change_no_bit_of_a_synchronous_run() -> None:
    settings: dict[str, Any] = {"envs": 4, "groups": 2, "shards": 2, "mode": "sync", "cpus": 0.5}
    with Trainer(SMALL, "CartPole-v1", on=ParameterServer(**settings, inline=True)) as trainer:
        for _ in range(8):
            trainer.train()
        expected, episodes = trainer.fingerprint(), trainer.summary()["episodes"]
    events: list[str] = []
    with Trainer(SMALL, "CartPole-v1", on=ParameterServer(**settings)) as trainer:
        for i in range(8):
            workers, shards = fleets(trainer)
            if i == 2:
                kill(workers, 0)
            if i == 4:
                kill(shards, 1)
            result = trainer.train()
            events += trainer.events
        assert trainer.fingerprint() == expected
        assert trainer.summary()["episodes"] == episodes
    assert any("runner 0 lost" in event for event in events)
    assert any("parameter shard 1 lost" in event for event in events)
    assert result["timing/shard_restores"] == 1
    assert 0 < result["timing/shard_recovery"] < 60


@pytest.mark.slow
def test_kills_lose_no_gradient_of_an_asynchronous_run() -> None:
    on = ParameterServer(workers=2, groups=4, envs=8, shards=2, cpus=0.5)
    begun, turn, events = time.monotonic(), 0, list[str]()

    def lost(who: str) -> int:
        return sum(who in event and "lost" in event for event in events)

    with Trainer(A2C(hidden=(16,)), "CartPole-v1", on=on) as trainer:
        run: Any = trainer._run
        while min(lost("parameter shard"), lost("runner")) < 5:
            assert time.monotonic() - begun < 400.0, events
            trainer.train()
            events += trainer.events
            account = run.account
            assert account.ordered == account.applied + account.in_flight + account.lost
            if time.monotonic() - begun > 4.0 * (turn + 1):
                fleet = fleets(trainer)[turn % 2]
                kill(fleet, turn, signal.SIGSTOP if turn % 5 == 4 else signal.SIGKILL)
                turn += 1
        assert int(trainer._run.learner.state.updates.low) == run.account.applied
        assert run.account.lost == 0
