"""The two kinds of rows that DQN learns from: transitions, and with a memory sequences of them (R2D2).

Of each: the arrays of a minibatch (`rows_of_...`), and what the networks say of them (`see_...`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shoal.choices import masked_argmax, of_action
from shoal.keys import fold
from shoal.types import Key, Params, Sequences, Transitions
from shoal.value_distributions import ValueDistribution
from shoal.value_networks import QNetwork
from shoal.value_targets import n_step_ahead, n_step_sums


class Seen(NamedTuple):
    """Outputs [..., Z]: of the action taken, and the target network's of the best one that follows."""

    taken: jax.Array
    after: jax.Array


def rows_of_transitions(drawn: Transitions, *, discount: float) -> dict[str, Any]:
    """The rows [..., N] of minibatches of transitions: rewards summed, and what follows them."""
    reward, onward = n_step_sums(drawn.reward, drawn.steps, drawn.terminated, discount)
    return {
        "obs": drawn.obs,
        "next_obs": drawn.next_obs,
        "action": drawn.action,
        "reward": reward,
        "onward": onward,
        "real": (jnp.asarray(drawn.weight) > 0).astype(jnp.float32),
    }


def see_transitions(
    network: QNetwork,
    values: ValueDistribution,
    params: Params,
    target: Params,
    rows: Any,
    key: Key,
    *,
    double: bool,
) -> Seen:
    """Of transitions [N, ...], by the networks of these parameters. With `double` the first chooses what
    the second values. Each of the (two or) three looks has noise of its own."""
    own, other, third = (network.noise(fold(key, i)) for i in range(3))
    never = jnp.zeros(rows["action"].shape, bool)
    outputs, _ = network.step(params, (), rows["obs"], never, own)
    after, _ = network.step(target, (), rows["next_obs"], never, other)
    chooser = after
    if double:
        chooser, _ = network.step(params, (), rows["next_obs"], never, third)
    best = masked_argmax(values.mean(chooser), rows["next_obs"].mask)
    return Seen(of_action(outputs, rows["action"]), of_action(after, best))


def rows_of_sequences(drawn: Sequences, *, burn_in: int, discount: float, n_step: int) -> dict[str, Any]:
    """The rows [..., N, L, ...] of minibatches of sequences: as of transitions, of all but the first rows,
    and at which row ("ahead", counted from the end of those) each of them goes on."""
    seen = drawn.trajectory
    rest = lambda x: jnp.moveaxis(jnp.asarray(x)[..., burn_in:], -1, 0)  # noqa: E731
    parts = n_step_ahead(rest(seen.reward), rest(seen.terminated), rest(seen.first), discount, n_step)
    reward, onward, ahead = (jnp.moveaxis(x, 0, -1) for x in parts)
    counts = (jnp.asarray(drawn.weight) > 0)[..., None] & ~jnp.asarray(seen.first)[..., burn_in + 1 :]
    return {
        "steps": {"obs": seen.obs, "first": seen.first},
        "carry": seen.carry,
        "action": jnp.asarray(seen.extras["raw_action"])[..., burn_in:],
        "reward": reward,
        "onward": onward,
        "ahead": ahead,
        "real": counts.astype(jnp.float32),
    }


def see_sequences(
    network: QNetwork,
    values: ValueDistribution,
    params: Params,
    target: Params,
    rows: Any,
    key: Key,
    *,
    double: bool,
    burn_in: int,
) -> Seen:
    """Of sequences [N, L, ...]: the first rows only make the stored memory fresh."""
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows["steps"])
    obs, first = steps["obs"], steps["first"]
    own, other = (network.noise(fold(key, i)) for i in range(2))

    def unrolled(params: Params, noise: jax.Array) -> jax.Array:
        carry = rows["carry"]
        if burn_in:
            early = jax.tree.map(lambda x: x[:burn_in], obs)
            _, carry = network.unroll(params, carry, early, first[:burn_in], noise)
        late = jax.tree.map(lambda x: x[burn_in:], obs)
        carry = jax.lax.stop_gradient(carry)
        return network.unroll(params, carry, late, first[burn_in:], noise)[0]

    outputs, after = unrolled(params, own), unrolled(target, other)
    chooser = outputs if double else after
    mask = None if obs.mask is None else obs.mask[burn_in:]
    next_outputs = of_action(after, masked_argmax(values.mean(chooser), mask))
    ahead = jnp.swapaxes(rows["ahead"], 0, 1)[..., None]
    taken = of_action(outputs[:-1], jnp.swapaxes(rows["action"], 0, 1))
    return Seen(*(jnp.swapaxes(x, 0, 1) for x in (taken, jnp.take_along_axis(next_outputs, ahead, 0))))
