"""Tiny environments whose answers are known, as JaxEnvs; `as_gymnasium` gives their Gymnasium faces.

Constant    reward 1 for ever, cut by a time limit: the value of every state is 1 / (1 - discount)
Identity    do what you see, for every kind of action space: the best return is its length
Recall      do what you saw some steps ago: 1 with memory, 1 / choices without
Masked      the last allowed choice is best, forbidden ones are punished: the best return is its length
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.keys import Key, uniform
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, choices
from shoal.types import Array, EnvSpec, Observation

_FOUR, _FIVE = Discrete(4), Discrete(5)


class Clock(NamedTuple):
    """t: int32 [], steps taken in this episode. goal: what the next action is compared with."""

    t: Any
    goal: Any


@dataclass(frozen=True)
class Constant:
    """Reward 1 at every step, whatever the action; the observation is always 1.

    length: the time limit (truncation). ends: the probability that a step terminates the episode.
    """

    length: int = 10
    ends: float = 0.0

    @property
    def spec(self) -> EnvSpec:
        """Observation: float32 [1]; two actions."""
        return EnvSpec(
            id="tiny:Constant",
            observation=Box((1,), 0.0, 1.0),
            action=Discrete(2),
            max_episode_steps=self.length,
        )

    def value(self, discount: float) -> float:
        """V of every state, since nothing shows how late it is: 1 + discount * (1 - ends) * V."""
        return 1 / (1 - discount * (1 - self.ends))

    def reset(self, key: Key) -> tuple[Clock, Observation]:
        """`key` is not needed."""
        return Clock(jnp.int32(0), ()), Observation(jnp.ones(1, jnp.float32))

    def step(self, state: Clock, action: Any, key: Key) -> tuple[Clock, Observation, Any, Any, Any]:
        """One step: (state, observation, reward, terminated, truncated)."""
        t = state.t + 1
        terminated = uniform(jnp.asarray(key), 1)[0] < self.ends
        return (
            Clock(t, ()),
            Observation(jnp.ones(1, jnp.float32)),
            jnp.float32(1),
            terminated,
            t >= self.length,
        )


@dataclass(frozen=True)
class Identity:
    """A contextual bandit for any action space: the observation is the best action, new at each step.

    reward: 1 for the very action, less for others: the share of choices that agree, or 1 less the mean
    squared error, in widths of the box. After `length` steps it terminates: the best return is `length`.
    """

    action: Space = _FOUR
    length: int = 16

    @property
    def spec(self) -> EnvSpec:
        """The observation space is the action space."""
        return EnvSpec(
            id="tiny:Identity",
            observation=self.action,
            action=self.action,
            max_episode_steps=self.length,
        )

    def reset(self, key: Key) -> tuple[Clock, Observation]:
        """The first context."""
        goal = sample(self.action, jnp.asarray(key))
        return Clock(jnp.int32(0), goal), Observation(goal)

    def step(self, state: Clock, action: Any, key: Key) -> tuple[Clock, Observation, Any, Any, Any]:
        """One choice and the next context."""
        reward = agreement(self.action, action, state.goal)
        goal = sample(self.action, jnp.asarray(key))
        t = state.t + 1
        return Clock(t, goal), Observation(goal), reward, t >= self.length, jnp.bool_(False)


@dataclass(frozen=True)
class Recall:
    """A cue is shown at the first step only; the action at the last step must equal it.

    The observation is the cue + 1, then 0. delay: steps between the cue and the answer (0: none). The reward
    is 1 for the right answer, which ends the episode: the best mean return is 1 with memory and
    1 / choices without (for delay > 0).
    """

    delay: int = 3
    choices: int = 2

    @property
    def spec(self) -> EnvSpec:
        """Observation: one of choices + 1; action: one of choices."""
        return EnvSpec(
            id="tiny:Recall",
            observation=Discrete(self.choices + 1),
            action=Discrete(self.choices),
            max_episode_steps=self.delay + 1,
        )

    def reset(self, key: Key) -> tuple[Clock, Observation]:
        """The cue."""
        cue = sample(Discrete(self.choices), jnp.asarray(key))
        return Clock(jnp.int32(0), cue), Observation(cue + 1)

    def step(self, state: Clock, action: Any, key: Key) -> tuple[Clock, Observation, Any, Any, Any]:
        """Nothing to see; the action counts at the last step."""
        last = state.t >= self.delay
        reward = jnp.where(last & (action == state.goal), 1.0, 0.0)
        return Clock(state.t + 1, state.goal), Observation(jnp.int32(0)), reward, last, jnp.bool_(False)


@dataclass(frozen=True)
class Masked:
    """A bandit in which other actions are allowed at every step; the observation says nothing.

    action: Discrete, MultiDiscrete or MultiBinary. Of each choice the highest allowed option is right:
    reward the share of choices that are right, but -10 if one of them was forbidden. After `length` steps it
    terminates: the best return is `length`, and no forbidden action must ever be sent.
    """

    action: Space = _FIVE
    length: int = 16

    @property
    def spec(self) -> EnvSpec:
        """Observation: float32 [1], and a mask."""
        choices(self.action)
        return EnvSpec(
            id="tiny:Masked",
            observation=Box((1,), 0.0, 1.0),
            action=self.action,
            masked=True,
            max_episode_steps=self.length,
        )

    def reset(self, key: Key) -> tuple[Clock, Observation]:
        """The first mask."""
        mask = sample_mask(self.action, jnp.asarray(key))
        return Clock(jnp.int32(0), mask), Observation(jnp.ones(1, jnp.float32), mask=mask)

    def step(self, state: Clock, action: Any, key: Key) -> tuple[Clock, Observation, Any, Any, Any]:
        """One choice and the next mask."""
        right, allowed = [], []
        for choice, mask in zip(_counted(self.action, action), _split(self.action, state.goal), strict=True):
            right.append(choice == mask.shape[-1] - 1 - jnp.argmax(mask[::-1]))
            allowed.append(mask[choice])
        share = jnp.stack(right).astype(jnp.float32).mean()
        reward = jnp.where(jnp.stack(allowed).all(), share, -10.0)
        mask = sample_mask(self.action, jnp.asarray(key))
        t = state.t + 1
        obs = Observation(jnp.ones(1, jnp.float32), mask=mask)
        return Clock(t, mask), obs, reward, t >= self.length, jnp.bool_(False)


def as_gymnasium(env: Any) -> Any:
    """A `gymnasium.Env` that steps this JaxEnv; see `shoal.envs.as_gymnasium`."""
    from shoal.envs.as_gymnasium import AsGymnasium

    return AsGymnasium(env)


def sample(space: Space, key: Key) -> Any:
    """A uniformly random member for each key, keys uint32 [..., 2] -> pytree of [..., *shape].

    NumPy keys give NumPy arrays, the same as JAX's (to rounding, for real boxes). An unbounded side of a
    box counts as 1 from 0, or 2 from the other side.
    """
    return _member(space, uniform(key, _numbers(space)))


def _numbers(space: Space) -> int:
    """How many random numbers a member takes."""
    match space:
        case Tuple():
            return sum(_numbers(s) for s in space.spaces)
        case Dict():
            return sum(_numbers(s) for _, s in space.spaces)
        case Discrete():
            return 1
        case MultiDiscrete():
            return len(space.nvec)
        case _:
            return math.prod(space.shape)


def _member(space: Space, u: Any) -> Any:
    """The member that uniform numbers [..., n] stand for."""
    match space:
        case Tuple() | Dict():
            named = list(space.spaces if isinstance(space, Dict) else enumerate(space.spaces))
            ends = np.cumsum([_numbers(s) for _, s in named]).tolist()
            parts = {
                k: _member(s, u[..., end - _numbers(s) : end])
                for (k, s), end in zip(named, ends, strict=True)
            }
            return parts if isinstance(space, Dict) else tuple(parts.values())
        case Box():
            low, high = finite_bounds(space)
            u = u.reshape(*u.shape[:-1], *space.shape)
            if np.dtype(space.dtype).kind == "f":
                return (low + u * (high - low)).clip(low, high).astype(space.dtype)
            return (low + (u * (high - low + 1)).astype(np.int32)).clip(low, high).astype(space.dtype)
        case Discrete():
            return (u[..., 0] * np.float32(space.n)).astype(np.int32) + np.int32(space.start)
        case MultiDiscrete():
            start = np.asarray(space.start or (0,) * len(space.nvec), np.int32)
            return (u * np.asarray(space.nvec, np.float32)).astype(np.int32) + start
        case MultiBinary():
            return (u < 0.5).astype(np.int8).reshape(*u.shape[:-1], *space.shape)


def finite_bounds(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of a box, float32, with sides beyond 10^6 brought near."""
    low, high = space.bounds()
    far_low, far_high = low < -1e6, high > 1e6
    return (
        np.where(far_low, np.where(far_high, -1, high - 2), low).astype(np.float32),
        np.where(far_high, np.where(far_low, 1, low + 2), high).astype(np.float32),
    )


def agreement(space: Space, action: Any, goal: Any) -> jax.Array:
    """How well an action meets its goal: float32 [], 1 is perfect."""
    match space:
        case Tuple():
            parts = [agreement(s, a, g) for s, a, g in zip(space.spaces, action, goal, strict=True)]
            return jnp.stack(parts).mean()
        case Dict():
            return jnp.stack([agreement(s, action[name], goal[name]) for name, s in space.spaces]).mean()
        case Box():
            low, high = finite_bounds(space)
            return 1.0 - jnp.square((action - goal) / (high - low)).mean()
        case _:
            return (jnp.asarray(action) == goal).astype(jnp.float32).mean()


def sample_mask(space: Space, key: Key) -> Any:
    """A flat mask for each key, bool [..., sum of options]: half or so, one at least of each choice."""
    widths = choices(space)
    u = uniform(key, sum(widths))
    ends = np.cumsum(widths)
    parts = [u[..., end - n : end] for n, end in zip(widths, ends, strict=True)]
    xp = jnp if isinstance(u, jax.Array) else np
    return xp.concatenate([(p < 0.5) | (p == p.min(-1, keepdims=True)) for p in parts], axis=-1)


def allowed(space: Space, mask: Array, key: Key) -> Any:
    """A random allowed action for each key: mask bool [..., sum of options], keys uint32 [..., 2] (NumPy)."""
    widths = choices(space)
    score = np.where(mask, uniform(key, sum(widths)), -1.0)
    ends = np.cumsum(widths)
    picked = [score[..., end - n : end].argmax(-1) for n, end in zip(widths, ends, strict=True)]
    flat = np.stack(picked, -1).astype(np.int32)
    match space:
        case Discrete():
            return flat[..., 0] + np.int32(space.start)
        case MultiDiscrete():
            return flat + np.asarray(space.start or (0,) * len(space.nvec), np.int32)
    return flat.astype(np.int8).reshape(*flat.shape[:-1], *getattr(space, "shape", ()))


def _split(space: Space, mask: Array) -> list[Any]:
    ends = np.cumsum(choices(space))
    return [mask[end - n : end] for n, end in zip(choices(space), ends, strict=True)]


def _counted(space: Space, action: Any) -> list[Any]:
    """Each choice of one action as a number from 0."""
    start = getattr(space, "start", 0)
    flat = jnp.asarray(action, jnp.int32).reshape(-1) - jnp.asarray(start or 0, jnp.int32)
    return [flat[i] for i in range(len(choices(space)))]
