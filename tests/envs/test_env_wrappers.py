"""Frame stacks and Atari's preprocessing, through Gymnasium's own wrappers."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gs

from shoal.envs import resolve
from shoal.errors import ShoalError


class Camera(gymnasium.Env):
    """Colour pictures of the step's number, as the Arcade Learning Environment shows them."""

    def __init__(self, frameskip=1, render_mode=None):
        self._frameskip = frameskip
        self.observation_space = gs.Box(0, 255, (210, 160, 3), np.uint8)
        self.action_space = gs.Discrete(4)
        self.ale, self.t = self, 0

    def picture(self):
        return np.full((210, 160, 3), self.t % 256, np.uint8)

    def getScreenRGB(self, out):
        out[...] = self.picture()

    def getScreenGrayscale(self, out):
        out[...] = self.t % 256

    def lives(self):
        return 1

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "RIGHT", "LEFT"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.picture(), {}

    def step(self, action):
        self.t += 1
        return self.picture(), 1.0, self.t >= 100, False, {}


def test_frames_are_stacked_with_the_newest_last():
    source = resolve(Camera, wrappers=["shoal.envs.wrappers:frame_stack"], journal="journal")
    assert source.spec.observation.shape == (4, 210, 160, 3) and source.spec.observation.dtype == "uint8"
    group = source.make_group(0, 0, 2)
    assert not group.current().obs.policy.any()
    for _ in range(2):
        shown = group.step(np.zeros(2, int)).obs.policy
    assert shown[0, :, 0, 0, 0].tolist() == [0, 0, 1, 2]
    other = source.make_group(0, 0, 2)
    other.load(group.save())
    assert (other.current().obs.policy == shown).all()


def test_atari_pictures_are_grey_small_and_stacked():
    pytest.importorskip("cv2")
    source = resolve(Camera, wrappers=["shoal.envs.wrappers:atari"], journal="journal")
    assert source.spec.observation.shape == (4, 84, 84) and source.spec.observation.dtype == "uint8"
    step = source.make_group(0, 0, 2).step(np.zeros(2, int))
    assert (step.reward == 4).all()  # four frames


def test_frames_are_not_skipped_twice():
    with pytest.raises(ShoalError, match="'frameskip': 1"):
        resolve(Camera, env_kwargs={"frameskip": 4}, wrappers=["shoal.envs.wrappers:atari"])


def test_opencv_is_named_where_it_is_missing():
    try:
        import cv2  # noqa: F401
    except ImportError:
        with pytest.raises(ShoalError, match=r"shoal\[atari\]"):
            resolve(Camera, wrappers=["shoal.envs.wrappers:atari"])
