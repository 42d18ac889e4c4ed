"""DQN's later parts on tiny problems that need them: memory from stored sequences, and learned noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal import DQN, Compiled, GridWorld, Rainbow, Trainer
from shoal.testing import Recall

SMALL: dict[str, Any] = {
    "rollout_length": 8,
    "learning_starts": 500,
    "batch_size": 32,
    "target_every": 25,
}
RECALL = DQN(
    **{**SMALL, "rollout_length": 6},
    hidden=(16,),
    learning_rate=5e-3,
    discount=0.9,
    train_every=16,
    epsilon_steps=5_000,
    burn_in=2,
    sequence_length=6,
)


def trained(algorithm: DQN, env: Any, steps: int) -> float:
    """The mean return of the last 100 episodes."""
    with Trainer(algorithm, env, seed=0, on=Compiled(envs=16)) as trainer:
        return trainer.fit(steps)["episode_return_mean"]


@pytest.mark.parametrize("memory", [16, 0])
def test_what_was_seen_is_recalled_with_memory_only(memory: int) -> None:
    """The cue is shown three steps before it is asked for; to guess gives 0.5."""
    gained = trained(replace(RECALL, memory=memory), Recall(delay=3), 10_000)
    assert gained > 0.9 if memory else gained < 0.65


@pytest.mark.slow
def test_rainbow_explores_by_its_noise_and_finds_the_shortest_way() -> None:
    """All of its parts, at the settings that its docstring advises for small tasks. Epsilon is 0."""
    rainbow = Rainbow(
        **{**SMALL, "target_every": 50, "learning_starts": 200},
        hidden=(32,),
        learning_rate=2e-3,
        adam_epsilon=1e-8,
        train_every=8,
        capacity=20_000,
        importance_steps=20_000,
        v_min=-1.0,
        v_max=1.0,
    )
    world = GridWorld(size=4, step_cost=0.02, max_steps=50)
    assert trained(rainbow, world, 8_000) > 1 - 6 * 0.02 - 0.02  # six steps are the least
