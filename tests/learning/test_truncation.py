"""A time limit is no death: the value of a life that is only ever cut must be that of an endless one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import Env
from gymnasium import spaces as gym_spaces

from shoal import A2C, PPO, REINFORCE, Compiled, Local, Trainer
from shoal.actor import actor_for
from shoal.spaces import Box, Discrete
from shoal.types import EnvSpec, Observation

DISCOUNT = 0.9
LENGTH = 10
ENDLESS = 1 / (1 - DISCOUNT)
UPDATES = 200


@dataclass(frozen=True)
class Reward:
    """Reward 1 at every step, nothing to see; after `length` steps the episode is cut, or ends."""

    length: int = LENGTH
    cut: bool = True

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(id="Reward", observation=Box((1,), 0.0, 1.0), action=Discrete(2))

    def reset(self, key: Any) -> tuple[Any, Observation]:
        return jnp.int32(0), Observation(jnp.ones(1, jnp.float32))

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Observation, Any, Any, Any]:
        over = state + 1 >= self.length
        obs = Observation(jnp.ones(1, jnp.float32))
        return state + 1, obs, jnp.float32(1), over & (not self.cut), over & self.cut


class HostReward(Env):
    """The same in Gymnasium, without an end: `time_limit` cuts it."""

    observation_space = gym_spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym_spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), 1.0, False, False, {}


def algorithms() -> list[Any]:
    return [
        PPO(discount=DISCOUNT, rollout_length=16, learning_rate=1e-2, epochs=4),
        A2C(discount=DISCOUNT, rollout_length=8, learning_rate=1e-2),
        REINFORCE(discount=DISCOUNT, rollout_length=32, learning_rate=1e-2),
    ]


def learned_value(algorithm: Any, env: Any, on: Any, **how: Any) -> float:
    """V of the only observation there is, after training."""
    with Trainer(algorithm, env, seed=0, on=on, **how) as trainer:
        for _ in range(UPDATES):
            trainer.train()
        spec = EnvSpec(id="Reward", observation=Box((1,), 0.0, 1.0), action=Discrete(2))
        network, _ = actor_for(spec, algorithm)
        params = trainer._run.learner.state.params
    one = Observation(jnp.ones((1, 1, 1), jnp.float32))
    _, value = network.unroll(params, network.begin(1), one, jnp.ones((1, 1), bool))
    return float(value[0, 0])


@pytest.mark.parametrize("algorithm", algorithms(), ids=lambda a: type(a).__name__)
def test_the_value_looks_past_a_time_limit(algorithm: Any) -> None:
    value = learned_value(algorithm, Reward(), Compiled(envs=8))
    assert value == pytest.approx(ENDLESS, rel=0.03)


@pytest.mark.parametrize("algorithm", algorithms()[:2], ids=lambda a: type(a).__name__)
def test_the_value_stops_at_an_end(algorithm: Any) -> None:
    """Without this the test above would pass for a learner that ignores ends of all kinds."""
    value = learned_value(algorithm, Reward(length=1, cut=False), Compiled(envs=8))
    assert value == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("algorithm", algorithms()[:2], ids=lambda a: type(a).__name__)
def test_the_value_looks_past_gymnasiums_time_limit(algorithm: Any) -> None:
    value = learned_value(algorithm, HostReward, Local(envs=8), time_limit=LENGTH)
    assert value == pytest.approx(ENDLESS, rel=0.03)
