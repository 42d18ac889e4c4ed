"""What learners are given in tests: the orders that a run in one process gives to its own learner."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from shoal import DQN, IMPALA, PPO, SAC
from shoal.execution.learner import Learned, LearnerHere
from shoal.execution.local import LocalRun
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe

ENVS, SEED = 8, 3
# SAC's activation is smooth: with relu, a unit at its kink may be on in one order of summing, and off in
# another, and all that follows differs by more than rounding.
CASES: dict[str, tuple[Any, str]] = {
    "ppo": (PPO(rollout_length=16, epochs=2, minibatches=2, hidden=(16,)), "CartPole-v1"),
    "impala": (IMPALA(rollout_length=16, hidden=(16,)), "CartPole-v1"),
    "dqn": (DQN(rollout_length=4, learning_starts=50, batch_size=32, hidden=(16,)), "CartPole-v1"),
    "sac": (
        SAC(
            rollout_length=1,
            train_every=4,
            learning_starts=50,
            batch_size=32,
            hidden=(16, 16),
            activation="tanh",
        ),
        "Pendulum-v1",
    ),
}
Orders = list[tuple[str, tuple[Any, ...]]]


class Recording:
    """A learner in this process that keeps what it is told."""

    def __init__(self, learner: LearnerHere) -> None:
        self._learner = learner
        self.orders: Orders = []

    def learn(self, *told: Any) -> Learned:
        return self._note("learn", told)

    def observe(self, *told: Any) -> None:
        self._note("observe", told)

    def observe_and_learn(self, *told: Any) -> Learned:
        return self._note("observe_and_learn", told)

    def acting(self) -> Any:
        return self._learner.acting()

    def _note(self, method: str, told: tuple[Any, ...]) -> Any:
        self.orders.append((method, jax.tree.map(np.array, told)))
        return getattr(self._learner, method)(*told)


def experiment(name: str) -> Experiment:
    algorithm, env = CASES[name]
    return Experiment.of(Recipe(algorithm=algorithm, env={"env": env}), SEED)


def recorded(made: Experiment, updates: int) -> Orders:
    """The orders of a run in this process, until there are so many updates."""
    run = LocalRun(made, ENVS, 1)
    run.learner = record = Recording(run.learner)  # type: ignore[assignment]
    try:
        while sum(method != "observe" for method, _ in record.orders) < updates:
            run.iterate()
    finally:
        run.close()
    return record.orders


def learned_here(made: Experiment, orders: Orders) -> tuple[Any, list[Any]]:
    """(state, metrics of each update) of a learner in this process that follows the orders."""
    learner = LearnerHere.new(made.agent, key_for(made.seed, "init"))
    metrics = follow(learner, orders)
    return jax.device_get(learner.state), metrics


def follow(learner: Any, orders: Orders) -> list[Any]:
    told = [getattr(learner, method)(*arguments) for method, arguments in orders]
    return [jax.device_get(dict(one.metrics)) for one in told if one is not None]


def fingerprint(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def distance(one: Any, other: Any) -> float:
    """The largest difference of two trees, of a leaf's largest number."""
    pairs: Sequence[tuple[Any, Any]] = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    gap = lambda a, b: float(np.max(np.abs(a.astype(float) - b)) / max(np.max(np.abs(a)), 1e-12))  # noqa: E731
    return max(gap(np.asarray(a), np.asarray(b)) for a, b in pairs)
