"""Runs whose parameter shards, workers or learners are killed at random moments learn what they should."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random
from threading import Event, Thread
from typing import Any

import pytest

from shoal import A3C, PPO, Cluster, Mesh, ParameterServer, Trainer

pytestmark = [pytest.mark.slow, pytest.mark.as_in_use]


class Killer:
    """Kills one of these processes again and again: so many iterations after the last time (a random number,
    from `every[0]` to `every[1]`), and then at a random moment within one. To be told of each iteration."""

    def __init__(self, pids: Callable[[], list[int]], every: tuple[int, int], seed: int) -> None:
        self.dead: list[int] = []
        self._pids, self._every, self._random = pids, every, Random(seed)
        self._left, self._due, self._over = 1, Event(), Event()
        self._thread = Thread(target=self._kill, daemon=True)
        self._thread.start()

    def __call__(self, _: Any) -> None:
        self._left -= 1
        if self._left <= 0 and not self._due.is_set():
            self._left = self._random.randint(*self._every)
            self._due.set()

    def _kill(self) -> None:
        while self._due.wait() and not self._over.is_set():
            self._over.wait(self._random.uniform(0.0, 0.3))
            # It has gone, none is there just now, or they change while they are read.
            with suppress(ProcessLookupError, IndexError, RuntimeError):
                pid = self._random.choice(sorted(set(self._pids()) - set(self.dead)))
                os.kill(pid, signal.SIGKILL)
                self.dead.append(pid)
            self._due.clear()

    def close(self) -> None:
        self._over.set()
        self._due.set()
        self._thread.join()


def of(*fleets: Any) -> list[int]:
    return [pid for fleet in fleets for _, pid, _ in fleet.identities().values()]


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_parameter_server_learns_whoever_is_killed(mode: Any) -> None:
    settings = {"rollout_length": 32, "gae_lambda": 0.95, "learning_rate": 2e-3, "anneal_steps": 400_000}
    a3c = A3C(**settings, shared=False, max_grad_norm=0.5)
    on = ParameterServer(workers=2, groups=4, envs=32, shards=2, cpus=0.5, mode=mode, strikes=5)
    with Trainer(a3c, "CartPole-v1", on=on, scale_rewards=True) as trainer:
        learner: Any = trainer._run.learner
        killer = Killer(partial(of, learner._servers._fleet, learner._pool._fleet), (8, 16), seed=1)
        trainer.fit(400_000, target_return=475.0, on_result=killer)
        killer.close()
        assert trainer.reached(475.0)
        assert len(killer.dead) >= 5 and learner._servers.recovery.count >= 1


def test_a_group_of_learners_learns_whoever_is_killed() -> None:
    """To the bit what it learns undisturbed."""
    settings = {"rollout_length": 64, "minibatches": 8, "epochs": 4, "learning_rate": 2e-3}
    ppo = PPO(**settings, discount=0.98, gae_lambda=0.9)
    on = Cluster(runners=1, groups=2, envs=32, learners=Mesh(data=2), learner_cpus=0.25)
    prints = []
    for disturbed in (False, True):
        with Trainer(ppo, "CartPole-v1", on=on) as trainer:
            learner: Any = trainer._run.learner
            killer = Killer(partial(of, learner._crew), (6, 12), seed=2) if disturbed else None
            trainer.fit(200_000, target_return=475.0, on_result=killer)
            assert trainer.reached(475.0)
            if killer is not None:
                killer.close()
                assert len(killer.dead) >= 2 and learner.losses.count >= 2
            prints.append(trainer.fingerprint())
    assert prints[0] == prints[1]
