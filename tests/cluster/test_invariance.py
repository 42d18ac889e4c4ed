"""The same parameters, bit for bit: on no runner, one, two and four, and whatever happens to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
from killer import Killer
from slow import Slow

from shoal import DQN, PPO, SAC, Cluster, Local, Trainer
from shoal.execution.cluster import session

pytestmark = pytest.mark.as_in_use

# ruff: noqa: C408  (keyword arguments read better as dict(...))
SMALL: dict[str, Any] = {"hidden": (16,)}
PPO_SMALL: dict[str, Any] = {"rollout_length": 16, "epochs": 1, "minibatches": 2, **SMALL}
REPLAYED: dict[str, Any] = {"rollout_length": 16, "batch_size": 8, "learning_starts": 100, **SMALL}
BOTH = {"normalize_observations": True, "scale_rewards": True}
SLOW: dict[str, Any] = {"wrappers": [Slow]}

CASES: dict[str, dict[str, Any]] = {
    "ppo": dict(algorithm=PPO(**PPO_SMALL), env="CartPole-v1", **SLOW),
    "dqn": dict(algorithm=DQN(**REPLAYED, capacity=600), env="CartPole-v1", **SLOW),
    "sac": dict(algorithm=SAC(**REPLAYED, capacity=600), env="Pendulum-v1", **SLOW),
    "ppo-jax": dict(algorithm=PPO(**PPO_SMALL), env="jax:CartPole-v1"),
    "ppo-memory": dict(algorithm=PPO(**PPO_SMALL, memory=8), env="CartPole-v1", **BOTH, **SLOW),
}
SHAPE = {"envs": 8, "groups": 4}
RUNNERS = (1, 2, 4)
# Every case, and every number of runners; all of their product is for a longer day.
QUICK = {("ppo", 4), ("dqn", 1), ("sac", 2), ("ppo-jax", 4), ("ppo-memory", 2)}
PRODUCT = [
    pytest.param(name, runners, marks=() if (name, runners) in QUICK else pytest.mark.slow)
    for name, runners in product(CASES, RUNNERS)
]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for the module."""
    with session.join(cpus=4):
        yield


def start(name: str, on: Any) -> Trainer:
    return Trainer(**{"seed": 3, "on": on, **CASES[name]})


@cache
def local(name: str, iterations: int) -> list[str]:
    """The fingerprint after each iteration, in this process."""
    with start(name, Local(**SHAPE)) as trainer:
        return prints(trainer, iterations)


def prints(trainer: Trainer, iterations: int) -> list[str]:
    found = []
    for _ in range(iterations):
        trainer.train()
        found.append(trainer.fingerprint())
    return found


def cluster(runners: int, **more: Any) -> Cluster:
    return Cluster(runners=runners, cpus=0.5, **SHAPE, **more)


def pool_of(trainer: Trainer) -> Any:
    return trainer._run._pool  # type: ignore[attr-defined]


def killer_of(trainer: Trainer, period: float = 1.0) -> Killer:
    return Killer(pool_of(trainer)._fleet.identities, period)


@pytest.mark.parametrize(("name", "runners"), PRODUCT)
def test_equal_on_any_number_of_runners(name: str, runners: int) -> None:
    with start(name, cluster(runners)) as trainer:
        assert prints(trainer, 4) == local(name, 4)
        assert pool_of(trainer).counts.restarts == 0


def under_a_killer(name: str, kills: int) -> None:
    """Train until so many runners were killed and replaced; then compare with Local."""
    with start(name, cluster(3)) as trainer, killer_of(trainer) as killer:
        got: list[str] = []
        while len(killer.killed) < kills or pool_of(trainer).counts.restarts < kills - 1:
            got += prints(trainer, 1)
            assert len(got) < 4000
    assert got == local(name, len(got))


def test_equal_under_a_killer() -> None:
    under_a_killer("ppo-memory", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equal_under_a_killer_for_all(name: str) -> None:
    under_a_killer(name, 10)


def test_equal_with_a_stopped_runner() -> None:
    with start("ppo", cluster(2, patience=3.0)) as trainer:
        killer = killer_of(trainer)
        got = prints(trainer, 1)
        while len(killer.living()) < 2:  # until both have started
            got += prints(trainer, 1)
            assert len(got) < 4000
        assert killer.stop_one() is not None
        got += prints(trainer, 6)
        assert pool_of(trainer).counts.hung == 1
    assert got == local("ppo", len(got))
