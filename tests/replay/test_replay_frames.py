"""Stacked frames from Gymnasium's wrapper to the replay of a run: each is stored once, all are seen."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation, TransformObservation

from shoal import DQN, Local, Trainer
from shoal.envs import frame_stack, resolve
from shoal.execution.local import LocalRun
from shoal.keys import key_for
from shoal.replay import Layout, draw
from shoal.types import Replay

STACK = "shoal.envs.wrappers:frame_stack"
ENVS = 2
TINY = DQN(hidden=(4,), rollout_length=4, capacity=64, batch_size=16, learning_starts=10_000)


class Camera(gymnasium.Env):
    """uint8 [2, 3]: the episode's step, and a number drawn for the episode; five steps each."""

    observation_space = gymnasium.spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.t, self.episode = 0, 0

    def seen(self) -> np.ndarray:
        return np.array([[self.t] * 3, [self.episode] * 3], np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.episode = 0, int(self.np_random.integers(256))
        return self.seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.seen(), 0.0, self.t == 5, False, {}


def brighter(env: Any) -> Any:
    return TransformObservation(env, lambda obs: obs, env.observation_space)


@pytest.mark.parametrize(
    ("wrappers", "frames"),
    [
        ([STACK], 4),
        ([partial(frame_stack, frames=3)], 3),
        ([brighter, STACK], 4),
        ([STACK, brighter], 1),  # who knows what that made of the stack
        ([partial(FrameStackObservation, stack_size=4, padding_type="zero")], 1),
        ([], 1),
    ],
)
def test_what_a_source_says_of_its_stacks(wrappers: list[Any], frames: int) -> None:
    assert resolve(Camera, wrappers=wrappers).spec.frames == frames


def test_a_run_stores_one_frame_for_each_observation() -> None:
    with Trainer(TINY, Camera, seed=0, on=Local(envs=ENVS), wrappers=[STACK]) as trainer:
        for _ in range(12):
            trainer.train()
        run = trainer._run
        assert isinstance(run, LocalRun)
        memory = run._store.memory
    spec = resolve(Camera, wrappers=[STACK]).spec
    layout = Layout.of(cast(Replay, TINY.bind(spec).plan), spec, ENVS)
    assert memory.obs.policy.shape == (layout.rows, ENVS, 2, 3) and memory.obs.policy.dtype == np.uint8
    rows = jax.tree.map(lambda x: x[0], draw(layout, memory, key_for(0, "draw"), 1, 200))
    real = np.flatnonzero(rows.weight > 0)
    assert len(real) > 100
    for stack, after in zip(rows.obs.policy[real], rows.next_obs.policy[real], strict=True):
        t, episode = stack[-1, :, 0].astype(int)
        np.testing.assert_array_equal(stack[:, 0, 0], np.maximum(np.arange(t - 3, t + 1), 0))
        assert (stack[:, 1] == episode).all()
        np.testing.assert_array_equal(after[:-1], stack[1:])
        assert after[-1, 0, 0] == t + 1 and (after[:, 1] == episode).all()
