"""Local and Compiled are one experiment: the same bits from the same environment written in JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal import A2C, DQN, PPO, REINFORCE, SAC, TD3, Compiled, Local, Rainbow
from shoal.fingerprint import fingerprint
from shoal.recipe import Experiment, Recipe

ALGORITHMS = {
    "ppo": PPO(rollout_length=16, epochs=2, minibatches=2, hidden=(16,)),
    "ppo-memory": PPO(rollout_length=16, epochs=2, minibatches=2, hidden=(16,), memory=8),
    "ppo-kl": PPO(rollout_length=16, epochs=3, minibatches=2, hidden=(16,), target_kl=1e-4, anneal_steps=300),
    "a2c": A2C(hidden=(16,)),
    "reinforce": REINFORCE(rollout_length=32, hidden=(16,)),
    "reinforce-bare": REINFORCE(rollout_length=32, hidden=(16,), baseline=False),
}

QUICK: dict[str, Any] = {
    "rollout_length": 4,
    "batch_size": 8,
    "capacity": 120,
    "learning_starts": 20,
    "hidden": (16,),
    "train_every": 1,
}


def run(
    on: Any, algorithm: Any, env: str, *, normalized: bool = False, seed: int = 0, iterations: int = 4
) -> Any:
    recipe = Recipe(algorithm=algorithm, env={"env": env}, normalize=normalized, scale=normalized)
    started = on.start(Experiment.of(recipe, seed))
    return started, [started.iterate() for _ in range(iterations)]


CARTPOLE, GRIDWORLD = "jax:CartPole-v1", "jax:GridWorld"
# Each on one of the two, in one group or two; the long tests have the rest.
CASES = {
    "ppo": (CARTPOLE, 1),
    "ppo-memory": (CARTPOLE, 2),
    "ppo-kl": (GRIDWORLD, 2),
    "a2c": (GRIDWORLD, 1),
    "reinforce": (GRIDWORLD, 2),
    "reinforce-bare": (CARTPOLE, 1),
}
OTHERS = {name: (GRIDWORLD if env == CARTPOLE else CARTPOLE, groups) for name, (env, groups) in CASES.items()}


# What another case is more than, or differs from in the loss alone; and whose memory another case has.
LESS = {"ppo-kl", "reinforce", "reinforce-bare", "dqn", "dqn-memory", "dqn-prioritized", "td3"}


def quick(name: str, *where: Any) -> Any:
    return pytest.param(name, *where, marks=pytest.mark.slow if name in LESS else ())


@pytest.mark.parametrize(
    ("name", "env", "groups"),
    [
        *(quick(name, *where) for name, where in CASES.items()),
        *(pytest.param(name, *where, marks=pytest.mark.slow) for name, where in OTHERS.items()),
    ],
)
def test_same_bits(name: str, env: str, groups: int) -> None:
    normalized = name in ("ppo", "ppo-memory") and env == CARTPOLE
    how = {"envs": 4, "groups": groups}
    local, here = run(Local(**how), ALGORITHMS[name], env, normalized=normalized)
    compiled, there = run(Compiled(**how), ALGORITHMS[name], env, normalized=normalized)
    assert fingerprint(local.learner.state) == fingerprint(compiled.learner.state)
    for a, b in zip(here, there, strict=True):
        assert a.metrics.keys() == b.metrics.keys()
        for metric in a.metrics:
            np.testing.assert_array_equal(a.metrics[metric], b.metrics[metric])
        for (_, reward, first), (_, reward2, first2) in zip(a.fragments, b.fragments, strict=True):
            np.testing.assert_array_equal(reward, reward2)
            np.testing.assert_array_equal(first, first2)


REPLAYED: dict[str, tuple[Any, str]] = {
    "dqn": (DQN(**QUICK), "jax:CartPole-v1"),
    "dqn-prioritized": (DQN(**QUICK, prioritized=True, n_step=3, double=True), "jax:CartPole-v1"),
    "dqn-memory": (DQN(**QUICK, memory=8, burn_in=4, sequence_length=8), "jax:CartPole-v1"),
    "rainbow": (Rainbow(**QUICK, v_max=100.0, atoms=11, importance_steps=300), "jax:GridWorld"),
    "sac": (SAC(**{**QUICK, "train_every": 3, "gradient_steps": 4}), "gymnax:Pendulum-v1"),
    "td3": (TD3(**QUICK), "gymnax:Pendulum-v1"),
}


@pytest.mark.parametrize("name", [quick(name) for name in REPLAYED])
def test_same_bits_through_a_replay(name: str) -> None:
    """Also where the ring wraps (120 rows hold 7 fragments of 16), with several groups, and normalised."""
    algorithm, env = REPLAYED[name]
    how = {"normalized": name in ("dqn-prioritized", "dqn-memory", "td3"), "iterations": 10}
    local, here = run(Local(envs=4, groups=2), algorithm, env, **how)
    compiled, there = run(Compiled(envs=4, groups=2), algorithm, env, **how)
    assert fingerprint(local.learner.state) == fingerprint(compiled.learner.state)
    assert sum(a.metrics["replay/gradient_steps"] for a in here) >= 100
    for a, b in zip(here, there, strict=True):
        assert a.metrics.keys() == b.metrics.keys()
        for metric in a.metrics:
            np.testing.assert_array_equal(a.metrics[metric], b.metrics[metric])


@pytest.mark.slow  # in two groups it is tested above
def test_same_bits_in_three_groups() -> None:
    local, _ = run(Local(envs=6, groups=3), ALGORITHMS["ppo"], CARTPOLE)
    compiled, _ = run(Compiled(envs=6, groups=3), ALGORITHMS["ppo"], CARTPOLE)
    assert fingerprint(local.learner.state) == fingerprint(compiled.learner.state)


def test_seeds_and_groups_differ_and_runs_repeat() -> None:
    """Groups are part of the experiment."""
    prints = [
        fingerprint(run(Local(envs=4, groups=g), ALGORITHMS["a2c"], "CartPole-v1", seed=s)[0].learner.state)
        for s, g in ((0, 1), (0, 1), (1, 1), (0, 2))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
