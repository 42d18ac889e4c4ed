"""A synchronous run that raised goes on where it was when it is asked again."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from shoal import PPO, Cluster, Local, ShoalError, Trainer

SMALL = PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,))


class Breakable(gym.Wrapper):
    """CartPole, whose next step raises while `broken` is more than 0."""

    broken = 0

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))

    def step(self, action: Any) -> Any:
        if Breakable.broken:
            Breakable.broken -= 1
            raise RuntimeError("a wire is loose")
        return super().step(action)


def prints(on: Any, breaks: dict[int, int]) -> list[str]:
    """Fingerprints of six iterations. breaks: before an iteration -> how often a step raises."""
    found: list[str] = []
    with Trainer(SMALL, Breakable, seed=0, on=on) as trainer:
        for iteration in range(6):
            Breakable.broken = breaks.get(iteration, 0)
            while Breakable.broken:
                with pytest.raises(ShoalError, match="a wire is loose"):
                    trainer.train()
            result = trainer.train()
            assert result["env_steps"] <= (iteration + 1) * 4 * 8  # nothing is learned from twice
            found.append(trainer.fingerprint())
    return found


def test_a_run_that_raised_goes_on() -> None:
    on = Cluster(runners=2, envs=4, groups=4, inline=True, strikes=1)
    assert prints(on, {0: 1, 3: 2}) == prints(Local(envs=4, groups=4), {})
