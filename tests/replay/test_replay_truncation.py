"""A time limit is no death and an end is one, also by way of a replay: DQN's, SAC's and TD3's values.

tests/learning/test_truncation.py has the same of the algorithms without a replay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from shoal import DQN, SAC, TD3, Compiled, Trainer
from shoal.spaces import Box
from shoal.testing import Constant
from shoal.types import EnvSpec, Observation

DISCOUNT = 0.9
# Of the steps 20 % end an episode, and of the others every sixth is cut: as many again would be lost.
WORLD = Constant(length=4, ends=0.2)
VALUE = WORLD.value(DISCOUNT)


@dataclass(frozen=True)
class Boxed:
    """The same for actions in a box."""

    env: Constant

    @property
    def spec(self) -> EnvSpec:
        return replace(self.env.spec, action=Box((1,), -1.0, 1.0))

    def reset(self, key: Any) -> tuple[Any, Observation]:
        return self.env.reset(key)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Observation, Any, Any, Any]:
        return self.env.step(state, action, key)


SMALL: dict[str, Any] = {
    "discount": DISCOUNT,
    "rollout_length": 4,
    "train_every": 8,
    "learning_starts": 200,
    "batch_size": 256,
    "hidden": (8,),
}
# An end is chance, so the mean of what follows is asked for; Huber's error gives something nearer the median.
MEAN: dict[str, Any] = {"huber_delta": None, "learning_rate": 1e-2, "anneal_steps": 9600, "target_every": 10}
STILL: dict[str, Any] = {"initial_temperature": 1e-6, "temperature_learning_rate": 0.0}  # no entropy in it
CASES: dict[str, tuple[Any, Any]] = {
    "DQN": (DQN(**SMALL, **MEAN), WORLD),
    "DQN-n-step": (DQN(**SMALL, **MEAN, n_step=3), WORLD),
    "SAC": (SAC(**SMALL, **STILL, critic_learning_rate=1e-2, tau=0.1), Boxed(WORLD)),
    "TD3": (TD3(**SMALL, critic_learning_rate=1e-2, tau=0.1), Boxed(WORLD)),
}


def learned_value(algorithm: Any, env: Any) -> float:
    """Q of the only observation there is: the mean over what was drawn in the end."""
    with Trainer(algorithm, env, seed=0, on=Compiled(envs=16)) as trainer:
        return [trainer.train() for _ in range(150)][-1]["value/q"]


@pytest.mark.parametrize(
    "name", ["DQN", *(pytest.param(name, marks=pytest.mark.slow) for name in ("DQN-n-step", "SAC", "TD3"))]
)
def test_the_value_looks_past_time_limits_and_stops_at_ends(name: str) -> None:
    algorithm, env = CASES[name]
    assert learned_value(algorithm, env) == pytest.approx(VALUE, rel=0.08)
