"""Bootstrapped targets and importance weights of what a replay draws: pure functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from shoal.types import Array


def n_step_sums(
    reward: Array, steps: Array, terminated: Array, discount: float
) -> tuple[jax.Array, jax.Array]:
    """(reward sum, onward), float32 [...] each: the target is reward sum + onward * value of what follows.

    reward [..., n], steps int [...], terminated bool [...] as `types.Transitions` has them. The sum is
    discounted; onward is discount^steps, and 0 after a termination.
    """
    n = reward.shape[-1]
    powers = np.float32(discount) ** np.arange(n + 1, dtype=np.float32)
    taken = jnp.asarray(steps)[..., None] == np.arange(n + 1)
    onward = jnp.sum(jnp.where(taken, powers, 0.0), axis=-1)
    real = np.arange(n) < jnp.asarray(steps)[..., None]
    return jnp.sum(jnp.where(real, reward * powers[:-1], 0.0), axis=-1), jnp.where(terminated, 0.0, onward)


def importance_weights(weight: Array, beta: Array | float) -> jax.Array:
    """weight^beta, divided by the largest of its minibatch [..., N] (Schaul et al. 2016, section 3.4).

    weight: as `types.Transitions` has it, 0 for rows that teach nothing, which stay at 0.
    """
    scaled = jnp.where(weight > 0, jnp.power(jnp.maximum(weight, 1e-30), beta), 0.0)
    return scaled / jnp.maximum(jnp.max(scaled, axis=-1, keepdims=True), 1e-30)


def n_step_ahead(
    reward: Array, terminated: Array, first: Array, discount: float, n: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The n-step returns of a fragment in parts (Sutton and Barto 2018, eq. 7.1), since the distribution that
    follows may be no number that can be added: three arrays [T, ...].

    The target of row t is reward_sum[t] + onward[t] * value[ahead[t]]: discounted rewards, discount^m
    or 0 after a termination, and t + m, where m is n, or less where the episode or the data ends sooner.
    reward, terminated: [T, ...]; first: [T + 1, ...]. A row that only resets leads to itself.
    """
    rows = reward.shape[0]
    real = ~jnp.asarray(first[1:])
    factor = jnp.where(terminated, 0.0, jnp.float32(discount))
    here = jnp.broadcast_to(jnp.arange(rows + 1).reshape(-1, *(1,) * (reward.ndim - 1)), first.shape)

    nothing = (jnp.zeros(first.shape, jnp.float32), jnp.ones(first.shape, jnp.float32), here)

    def further(_: int, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, onward, ahead = (x[1:] for x in found)
        now = (reward + factor * total, factor * onward, ahead)
        rows = [jnp.where(real, x, stay[:-1]) for x, stay in zip(now, nothing, strict=True)]
        return tuple(jnp.concatenate([x, stay[-1:]]) for x, stay in zip(rows, nothing, strict=True))

    total, onward, ahead = jax.lax.fori_loop(0, min(n, rows), further, nothing)
    return total[:-1], onward[:-1], ahead[:-1]
