"""The squashed Gaussian: tanh of a Gaussian, for policies in a bounded Box (Haarnoja et al. 2018, app. C).

A raw action is what is sampled and learned from, in [-1, 1]^d; `to_env` scales it to the box. All take any
leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from shoal.distributions import distribution_for
from shoal.errors import ShoalError
from shoal.spaces import Box, Discrete, Space
from shoal.types import Action, Array

LOG_STD = (-20.0, 2.0)  # where the log standard deviation before tanh is clipped, as in Haarnoja's own code
_EDGE = 1.0 - 2.0**-23  # the outermost raw action whose atanh is finite, less one float32 step


@dataclass(frozen=True, kw_only=True)
class BoundedActions:
    """A bounded Box as raw actions in [-1, 1]^size. to_env: raw [..., size] -> action [..., *shape]."""

    size: int
    to_env: Callable[[Array], Action]


def bounded(space: Space, name: str) -> BoundedActions:
    """The raw actions of a bounded Box. ShoalError, which names the algorithm, for any other space."""
    if not isinstance(space, Box):
        others = "PPO and DQN do" if isinstance(space, Discrete) else "PPO does"
        raise ShoalError(f"{name} acts in a Box of real numbers, not in a {type(space).__name__}; {others}")
    low, high = space.bounds()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ShoalError(f"{name} needs an action Box with finite bounds, not {space}; PPO does not")
    return BoundedActions(size=math.prod(space.shape), to_env=distribution_for(space).to_env)


def mode(logits: Array) -> jax.Array:
    """tanh of the mean: logits [..., 2 d] (means, then log standard deviations) -> raw [..., d]."""
    return jnp.tanh(_split(logits)[0])


def reparameterized(logits: Array, noise: Array) -> tuple[jax.Array, jax.Array]:
    """(raw action [..., d], its log-density [...]) from standard normal noise [..., d].

    Gradients flow through the action. The density is found from the noise, not from the action, so it is
    exact also where tanh has rounded to 1.
    """
    mean, log_std = _split(logits)
    before = mean + jnp.exp(log_std) * noise
    normal = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2.0 * math.pi)
    return jnp.tanh(before), jnp.sum(normal - _log_slope(before), axis=-1)


def log_prob(logits: Array, raw: Array) -> jax.Array:
    """The log-density of raw actions [..., d]: float32 [...]; those at the edge, +-1, are moved inside."""
    mean, log_std = _split(logits)
    before = jnp.arctanh(jnp.clip(raw, -_EDGE, _EDGE))
    z = (before - mean) * jnp.exp(-log_std)
    normal = -0.5 * jnp.square(z) - log_std - 0.5 * math.log(2.0 * math.pi)
    return jnp.sum(normal - _log_slope(before), axis=-1)


def _split(logits: Array) -> tuple[jax.Array, jax.Array]:
    mean, log_std = jnp.split(jnp.asarray(logits), 2, axis=-1)
    return mean, jnp.clip(log_std, *LOG_STD)


def _log_slope(x: jax.Array) -> jax.Array:
    """log(1 - tanh(x)^2), exact where tanh(x) is nearly 1: 2 (log 2 - x - softplus(-2 x))."""
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))
