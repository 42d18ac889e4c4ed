"""What a Q-network says of an action's return: its mean, a histogram, or quantiles; and how far off it is.

    outputs [..., A, Z] -> mean [..., A] -> the greedy action
    the taken action's outputs [..., Z], the target network's for the next [..., Z], reward, onward -> error

Each kind is a record of pure functions that take any leading axes. `reward` float32 [...] is the (n-step)
reward, `onward` float32 [...] what the next value is multiplied by: discount^steps, or 0 after a termination.
Targets are constants to a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Array

RESCALING = 1e-3  # epsilon of `rescaled`


@dataclass(frozen=True, kw_only=True)
class ValueDistribution:
    """Functions of a Q-network's outputs, Z numbers for each action.

    size: Z. mean: outputs [..., Z] -> expected return [...].
    target: (next outputs [..., Z], reward, onward) -> what the outputs should say, as `error` takes it.
    error: (outputs [..., Z], target) -> (loss [...], how surprising it was [...], at least 0: the basis of
    a replay's priority). expected: target -> its mean [...].
    """

    size: int
    mean: Callable[[Array], jax.Array]
    target: Callable[[Array, Array, Array], jax.Array]
    error: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    expected: Callable[[jax.Array], jax.Array]


def rescaled(x: Array) -> jax.Array:
    """sign(x) (sqrt(|x| + 1) - 1) + epsilon x: makes large returns small (Pohlen et al. 2018, eq. 2)."""
    x = jnp.asarray(x)
    # sqrt(1 + |x|) - 1 in a form that loses nothing where x is small.
    return x / (jnp.sqrt(jnp.abs(x) + 1.0) + 1.0) + RESCALING * x


def unscaled(x: Array) -> jax.Array:
    """The inverse of `rescaled` (Pohlen et al. 2018, proposition A.2)."""
    x, e = jnp.asarray(x), RESCALING
    size = jnp.abs(x)
    # y = sqrt(|inverse| + 1) solves e (y^2 - 1) + (y - 1) = |x|; no step subtracts numbers that are near.
    y = 2.0 * (size + 1.0 + e) / (jnp.sqrt(1.0 + 4.0 * e * (size + 1.0 + e)) + 1.0)
    return x / (1.0 + e * (y + 1.0)) * (y + 1.0)


def _bellman(value: Array, reward: Array, onward: Array, rescale: bool) -> jax.Array:
    """reward + onward * value, of numbers that are rescaled or not."""
    if rescale:
        return rescaled(reward + onward * unscaled(value))
    return jnp.asarray(reward + onward * value)


def huber(error: Array, delta: float | None) -> jax.Array:
    """error^2 / 2 up to delta, beyond it a straight line of slope delta (Huber 1964). None: no such line."""
    error = jnp.asarray(error)
    if delta is None:
        return 0.5 * jnp.square(error)
    size = jnp.abs(error)
    within = jnp.minimum(size, delta)
    return within * (size - 0.5 * within)


def expected_value(huber_delta: float | None = 1.0, *, rescale: bool = False) -> ValueDistribution:
    """The mean alone, as in DQN (Mnih et al. 2015): Z = 1, Huber loss, surprise |error|."""

    def target(after: Array, reward: Array, onward: Array) -> jax.Array:
        return jax.lax.stop_gradient(_bellman(after[..., 0], reward, onward, rescale))

    def error(outputs: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        difference = outputs[..., 0] - target
        return huber(difference, huber_delta), jnp.abs(jax.lax.stop_gradient(difference))

    return ValueDistribution(
        size=1, mean=lambda x: jnp.asarray(x[..., 0]), target=target, error=error, expected=lambda x: x
    )


def categorical(atoms: int, low: float, high: float, *, rescale: bool = False) -> ValueDistribution:
    """C51 (Bellemare et al. 2017): outputs are logits of a histogram on `atoms` values from low to high.

    Loss: the cross-entropy to the projected target; surprise: the KL divergence (Hessel et al. 2018).
    """
    support = np.linspace(low, high, atoms, dtype=np.float32)
    width = np.float32((high - low) / (atoms - 1))

    def mean(outputs: Array) -> jax.Array:
        return expected(jax.nn.softmax(outputs, axis=-1))

    def expected(probabilities: jax.Array) -> jax.Array:
        return jnp.sum(probabilities * support, axis=-1)

    def target(after: Array, reward: Array, onward: Array) -> jax.Array:
        moved = _bellman(support, reward[..., None], onward[..., None], rescale)
        return jax.lax.stop_gradient(projected(jax.nn.softmax(after, axis=-1), moved, support, width))

    def error(outputs: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        cross = -jnp.sum(target * jax.nn.log_softmax(outputs, axis=-1), axis=-1)
        entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
        return cross, jnp.maximum(jax.lax.stop_gradient(cross) - entropy, 0.0)

    return ValueDistribution(size=atoms, mean=mean, target=target, error=error, expected=expected)


def projected(probabilities: Array, values: Array, support: np.ndarray, width: np.float32) -> jax.Array:
    """Probabilities [..., Z] of `values` [..., Z], moved onto an even `support` [Z'], `width` apart.

    Each probability is shared by the two nearest atoms in proportion to its nearness; what lies outside goes
    to the nearest end (Bellemare et al. 2017, eq. 7). float32 [..., Z'] with the same sum.
    """
    inside = jnp.clip(values, support[0], support[-1])
    near = jnp.clip(1.0 - jnp.abs(inside[..., None, :] - support[:, None]) / width, 0.0, 1.0)
    return jnp.sum(near * probabilities[..., None, :], axis=-1)


def quantiles(number: int, kappa: float | None = 1.0, *, rescale: bool = False) -> ValueDistribution:
    """QR-DQN (Dabney et al. 2018): outputs are the return's quantiles at (i + 1/2) / number.

    Quantile Huber loss (eqs. 9 and 10), summed over the outputs and averaged over the target's quantiles;
    kappa None: the plain quantile loss. The surprise is the mean |error| of all pairs.
    """
    levels = ((np.arange(number, dtype=np.float32) + np.float32(0.5)) / np.float32(number))[:, None]

    def mean(outputs: Array) -> jax.Array:
        return jnp.mean(outputs, axis=-1)

    def target(after: Array, reward: Array, onward: Array) -> jax.Array:
        return jax.lax.stop_gradient(_bellman(after, reward[..., None], onward[..., None], rescale))

    def error(outputs: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        difference = target[..., None, :] - outputs[..., :, None]
        size = jnp.abs(difference)
        loss = size if kappa is None else huber(difference, kappa) / kappa
        tilted = jnp.where(difference < 0, 1.0 - levels, levels) * loss
        surprise = jnp.mean(jax.lax.stop_gradient(size), axis=(-2, -1))
        return jnp.sum(jnp.mean(tilted, axis=-1), axis=-1), surprise

    return ValueDistribution(size=number, mean=mean, target=target, error=error, expected=mean)
