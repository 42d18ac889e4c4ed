"""Every kind of observation and action, through the whole of Shoal: train, save, restore, act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from shoal import A2C, PPO, REINFORCE, Local, Trainer

OBSERVATIONS: dict[str, gym.Space] = {
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "discrete": spaces.Discrete(5, start=2),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(4),
    "nested": spaces.Dict(
        {"a": spaces.Discrete(3), "b": spaces.Tuple((spaces.Box(0, 1, (2,)), spaces.MultiBinary(2)))}
    ),
}
ACTIONS: dict[str, gym.Space] = {
    "discrete": spaces.Discrete(3, start=-1),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
    "bounded": spaces.Box(np.asarray([0.0, -50.0], np.float32), np.asarray([1.0, 3.0], np.float32)),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
}


class Anything(gym.Env):
    """Random observations; refuses every action that lies outside its space, or that its mask forbids."""

    def __init__(self, observation: str, action: str, masked: bool = False) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action]
        self.masked = masked

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.mask = None
        if self.masked:
            self.mask = self.np_random.integers(0, 2, self.action_space.n).astype(np.int8)
            self.mask[self.np_random.integers(self.action_space.n)] = 1
        return self.observation_space.sample(), {} if self.mask is None else {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if self.mask is not None:
            assert self.mask[action - self.action_space.start], f"{action!r} is forbidden by {self.mask}"
        obs, info = self._observe()
        return obs, 1.0, bool(self.np_random.random() < 0.1), bool(self.np_random.random() < 0.1), info


CASES = [
    (PPO, "matrix", "bounded", 0),
    # Convolutions that were compiled in a hurry run for a minute.
    pytest.param(PPO, "image", "discrete", 0, marks=pytest.mark.as_in_use),
    (PPO, "nested", "multidiscrete", 4),
    (A2C, "discrete", "multibinary", 0),
    (A2C, "multibinary", "unbounded", 4),
    (REINFORCE, "multidiscrete", "discrete", 0),
]


@pytest.mark.parametrize(("algorithm", "observation", "action", "memory"), CASES)
def test_trains_saves_and_acts(
    algorithm: Any, observation: str, action: str, memory: int, tmp_path: Path
) -> None:
    small = algorithm(rollout_length=8, hidden=(8,), memory=memory)
    kwargs = {"observation": observation, "action": action}
    with Trainer(small, Anything, env_kwargs=kwargs, on=Local(envs=4)) as trainer:
        trainer.train()
        place = trainer.save(tmp_path / "save")
        trainer.train()
        OBSERVATIONS[observation].seed(0)
        obs = OBSERVATIONS[observation].sample()
        for explore in (False, True):
            chosen = trainer.compute_single_action(obs, explore=explore, first=True)
            assert ACTIONS[action].contains(chosen), chosen
    with Trainer.restore(
        place, env=Anything if trainer.config["env"] is None else None, trust_imports=True
    ) as again:
        again.train()
        assert again.fingerprint() == trainer.fingerprint()


def test_a_mask_in_info_is_honoured() -> None:
    """The environment refuses forbidden actions, so it is enough that nothing is raised."""
    kwargs = {"observation": "discrete", "action": "discrete", "masked": True}
    with Trainer(PPO(rollout_length=64, hidden=(8,)), Anything, env_kwargs=kwargs) as trainer:
        for _ in range(3):
            trainer.train()
        trainer.evaluate(5)
        trainer.evaluate(5, explore=True)
        for allowed in range(3):
            mask = np.eye(3, dtype=np.int8)[allowed]
            assert trainer.compute_single_action(3, mask=mask, explore=True) == allowed - 1
