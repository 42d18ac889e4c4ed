"""Small Gymnasium environments, each with one peculiarity."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

FLOAT = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class Toy(gymnasium.Env):
    """Shows [steps, noise]; ends after `length` steps. What it is sent is kept in `sent`."""

    def __init__(self, action=None, observation=None, length=3):
        self.action_space = action or spaces.Discrete(2)
        self.observation_space = observation or FLOAT
        self.length, self.t, self.sent = length, 0, []

    def show(self):
        return np.array([self.t, self.np_random.random()])

    def info(self):
        return {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.show(), self.info()

    def step(self, action):
        self.sent.append(action)
        self.t += 1
        return self.show(), float(self.t), self.t >= self.length, False, self.info()


class Writes(Toy):
    """Writes into the action that it is given."""

    def __init__(self):
        super().__init__(spaces.Box(-1, 1, (2,), np.float32))

    def step(self, action):
        out = super().step(action.copy())
        action[:] = 9.0
        return out


class MaskInObservation(Toy):
    """The mask forbids action t % 3."""

    def __init__(self, single=True):
        names = {"observation": FLOAT, "action_mask": spaces.Box(0, 1, (3,), np.int8)}
        extra = {} if single else {"extra": spaces.Discrete(5)}
        super().__init__(spaces.Discrete(3), spaces.Dict({**names, **extra}))

    def show(self):
        mask = np.ones(3, np.int8)
        mask[self.t % 3] = 0
        shown = {"observation": super().show(), "action_mask": mask}
        return {**shown, "extra": np.int64(4)} if "extra" in self.observation_space.spaces else shown


class MaskInInfo(Toy):
    """A mask in `info` until step `until`; with 2 only an episode's last row has none."""

    def __init__(self, action, mask, until=2):
        super().__init__(action)
        self.mask, self.until = mask, until

    def info(self):
        return {"action_mask": self.mask} if self.t <= self.until else {}


class Outer:
    class Inner(Toy):
        """Has a name with a dot in it."""


class Roles(Toy):
    """Shows the critic what the policy does not see."""

    def __init__(self):
        super().__init__(
            observation=spaces.Dict({"policy": FLOAT, "critic": spaces.Box(0, 9, (1,), np.float32)})
        )

    def show(self):
        return {"policy": super().show(), "critic": np.array([self.t], np.float32)}


class Numbers(Toy):
    """Puts numbers and other things into `info`."""

    def info(self):
        sometimes = {"late": 1.0} if self.t == 2 else {}
        return {
            "step": self.t,
            "flag": np.bool_(self.t > 1),
            "_no": 3.0,
            "text": "x",
            "array": FLOAT.low,
            **sometimes,
        }


class Breaks(Toy):
    """Raises or shows nonsense in step 2 of the second episode."""

    def __init__(self, how, length=3):
        super().__init__(length=length)
        self.how, self.episode = how, -1

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        if self.how == "reset" and self.episode == 1:
            raise OSError("no simulator")
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.episode == 1 and self.t == 2:
            if self.how == "step":
                raise ZeroDivisionError("division by zero")
            if self.how == "reward":
                reward = float("nan")
            if self.how == "huge":
                reward = 1e300
            if self.how in ("nan", "inf"):
                observation = np.array([0.0, float(self.how)])
        return observation, reward, terminated, truncated, info


class Shows(Toy):
    """Gives what it is told to from its second step on, or in `reset`."""

    def __init__(self, observation, shown, within="step", reward=1.0):
        super().__init__(observation=observation)
        self.shown, self.within, self.reward = shown, within, reward

    def show(self):
        if self.within == "reset" or self.t == 2:
            return self.shown
        space = self.observation_space
        return np.full(space.shape, getattr(space, "start", 0), space.dtype)[()]

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.reward, *rest


class Gives(Toy):
    """Gives a result of another form in `reset`, or in its second step."""

    def __init__(self, result, within="step"):
        super().__init__()
        self.result, self.within = result, within

    def reset(self, *, seed=None, options=None):
        right = super().reset(seed=seed)
        return self.result if self.within == "reset" else right

    def step(self, action):
        right = super().step(action)
        return self.result if self.t == 2 else right


class Unseeded(Toy):
    """Knows nothing of seeds."""

    def reset(self):  # pyright: ignore
        return self.show(), {}


class Spaceless(gymnasium.Env):
    """Has forgotten its spaces."""


class NoReward(Toy):
    """Gives NaN for a reward, always the same way."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


def closed_device():
    raise OSError("cannot open the device,\n  see above,")


an_instance = Toy()


class Restless(Toy):
    """Does not repeat itself: it draws from a generator of its own."""

    def show(self):
        return np.array([self.t, np.random.default_rng().random()])


class Remembers(Toy):
    """An episode depends on how many the instance has lived through."""

    def __init__(self):
        super().__init__(length=30)
        self.lives = 0

    def reset(self, *, seed=None, options=None):
        self.lives += 1
        return super().reset(seed=seed)

    def show(self):
        return np.array([self.t, self.lives])


class Doubled(gymnasium.RewardWrapper):
    """Twice the reward."""

    def reward(self, reward):
        return 2 * reward


def long_toy(length=100):
    """An environment by a function, with a limit of 50 steps around it."""
    return gymnasium.wrappers.TimeLimit(Toy(length=length), 50)
