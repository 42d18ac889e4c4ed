"""Cart-pole in JAX: the task of Barto, Sutton and Anderson (1983), as Gymnasium's CartPole-v1 has it.

Barto, Sutton, Anderson: "Neuronlike adaptive elements that can solve difficult learning control problems",
IEEE Transactions on Systems, Man and Cybernetics 13(5), 1983. Explicit Euler steps of
0.02 s, a force of 10 N, reward 1 for every step; the episode ends where the cart leaves 2.4 m or the pole 12
degrees, and is cut after 500 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from shoal import spaces
from shoal.keys import Key, uniform
from shoal.types import EnvSpec, Observation

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TOTAL, MOMENT = CART + POLE, POLE * HALF_LENGTH
MAX_X, MAX_ANGLE = 2.4, 12 * 2 * math.pi / 360


class CartPoleState(NamedTuple):
    """physics: float32 [4] (position m, velocity m/s, angle rad, angular velocity rad/s). t: int32 []."""

    physics: Any
    t: Any


@dataclass(frozen=True)
class CartPole:
    """A JaxEnv. max_steps: the time limit in steps; None: none."""

    max_steps: int | None = 500

    @property
    def spec(self) -> EnvSpec:
        """Observation: float32 [4]; action: 0 pushes left, 1 right."""
        high = (2 * MAX_X, math.inf, 2 * MAX_ANGLE, math.inf)
        return EnvSpec(
            id="jax:CartPole-v1",
            observation=spaces.Box((4,), tuple(-h for h in high), high),
            action=spaces.Discrete(2),
            max_episode_steps=self.max_steps,
        )

    def reset(self, key: Key) -> tuple[CartPoleState, Observation]:
        """Every number uniform in (-0.05, 0.05)."""
        physics = uniform(jnp.asarray(key), 4) * 0.1 - 0.05
        return CartPoleState(physics, jnp.int32(0)), Observation(physics)

    def step(
        self, state: CartPoleState, action: Any, key: Key
    ) -> tuple[CartPoleState, Observation, Any, Any, Any]:
        """One Euler step; `key` is not needed."""
        x, x_dot, angle, angle_dot = (state.physics[k] for k in range(4))
        force = jnp.where(action == 1, jnp.float32(FORCE), jnp.float32(-FORCE))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = (force + MOMENT * angle_dot**2 * sin) / TOTAL
        angle_acc = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cos**2 / TOTAL))
        x_acc = push - MOMENT * angle_acc * cos / TOTAL
        physics = jnp.stack(
            [
                x + SECONDS * x_dot,
                x_dot + SECONDS * x_acc,
                angle + SECONDS * angle_dot,
                angle_dot + SECONDS * angle_acc,
            ]
        )
        terminated = (jnp.abs(physics[0]) > MAX_X) | (jnp.abs(physics[2]) > MAX_ANGLE)
        t = state.t + 1
        truncated = jnp.bool_(False) if self.max_steps is None else t >= self.max_steps
        return CartPoleState(physics, t), Observation(physics), jnp.float32(1.0), terminated, truncated
