"""Drawing minibatches, and giving back the priorities that learning found.

words of the key -> units (uniform, or in proportion to priorities) -> their rows, gathered at once.

Minibatch j of a draw depends on the key and on j, not on how many are drawn.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.keys import bits
from shoal.replay import sumtree
from shoal.replay.arrays import integers, module, multiply_high
from shoal.replay.layout import Layout
from shoal.replay.memory import Memory, Priorities, at, candidates, distance, observations, usable, wrap
from shoal.types import Array, Key, Sequences, Trajectory, Transitions


def draw(
    layout: Layout, memory: Memory, key: Key, minibatches: int, batch_size: int
) -> Transitions | Sequences:
    """K minibatches of N, with replacement: leaves [K, N, ...].

    Uniform: of two places drawn for each, the first that holds what can be learned from is taken; where
    neither does, weight is 0. Prioritised: weight = total / (number of units * priority), which is
    1 / (n * P(i)) of Schaul et al. 2016 before its exponent; 0 where nothing can be drawn.
    """
    xp = module(memory.first)
    key = np.asarray(key) if xp is np else jnp.asarray(key)
    words = bits(key, 2 * minibatches * batch_size).reshape(2, minibatches, batch_size)
    if layout.prioritized:
        row, env, weight = _by_priority(layout, memory, words)
    else:
        row, env, weight = _uniform(layout, memory, words)
    if layout.sequence:
        return _sequences(layout, memory, row, env, weight)
    return _transitions(layout, memory, row, env, weight)


def _uniform(layout: Layout, memory: Memory, words: Array) -> tuple[Array, Array, Array]:
    """(row, env, weight), each [K, N]."""
    xp = module(memory.first)
    number = multiply_high(words, candidates(layout, memory) * layout.envs)
    back, env = number // layout.envs, number % layout.envs
    row = wrap(layout, memory.head - layout.span - back * layout.stride)
    good = usable(layout, memory, row, env)
    other = good[1] & ~good[0]
    row, env = xp.where(other, row[1], row[0]), xp.where(other, env[1], env[0])
    return row, env, (good[0] | good[1]).astype(xp.float32)


def _by_priority(layout: Layout, memory: Memory, words: Array) -> tuple[Array, Array, Array]:
    """(row, env, weight), each [K, N]."""
    xp, priorities = module(memory.first), memory.priorities
    unit = sumtree.sample(priorities.tree, words[0], words[1])
    leaf = sumtree.leaves(priorities.tree, unit)
    live = xp.asarray(priorities.live).astype(xp.float32)
    share = live * xp.where(leaf > 0, leaf, xp.float32(1))
    weight = xp.where(leaf > 0, sumtree.total(priorities.tree) / xp.where(share > 0, share, 1), 0)
    return unit // layout.envs * layout.stride, unit % layout.envs, weight.astype(xp.float32)


def _index(layout: Layout, row: Array, env: Array) -> Array:
    return (row // layout.stride * layout.envs + env).astype(np.int32)


def _transitions(layout: Layout, memory: Memory, row: Array, env: Array, weight: Array) -> Transitions:
    xp = module(memory.first)
    alive, here = weight > 0, row
    behind = distance(layout, memory, row)
    steps, ended, reward = xp.zeros(row.shape, integers(xp)), xp.zeros(row.shape, bool), []
    for i in range(layout.n_step):
        then = wrap(layout, here + 1)
        if i:
            real = (behind > i) & ~at(layout, memory.first, then, env)
            alive = alive & ~ended & real
        ended = ended | (alive & at(layout, memory.terminated, here, env))
        reward.append(xp.where(alive, at(layout, memory.reward, here, env), xp.float32(0)))
        steps, here = steps + alive, then
    act = lambda array: at(layout, array, row, env)  # noqa: E731
    return Transitions(
        obs=observations(layout, memory, row, env),
        action=jax.tree.map(act, memory.action),
        reward=xp.stack(reward, axis=-1),
        steps=steps.astype(np.int32),
        terminated=ended,
        next_obs=observations(layout, memory, wrap(layout, row + steps), env),
        weight=weight,
        index=_index(layout, row, env),
    )


def _sequences(layout: Layout, memory: Memory, row: Array, env: Array, weight: Array) -> Sequences:
    xp = module(memory.first)
    length = layout.sequence
    rows = wrap(layout, row[..., None] + xp.arange(length + 1, dtype=integers(xp)))
    envs = xp.broadcast_to(env[..., None], rows.shape)
    body = lambda array: at(layout, array, rows[..., :length], envs[..., :length])  # noqa: E731
    begun = lambda array: at(layout, array, row // layout.fragment, env)  # noqa: E731
    action = jax.tree.map(body, memory.action)
    trajectory = Trajectory(
        obs=observations(layout, memory, rows, envs),
        first=at(layout, memory.first, rows, envs),
        action=action,
        reward=body(memory.reward),
        terminated=body(memory.terminated),
        version=xp.zeros((*row.shape, length), xp.int32),
        extras={"raw_action": action},
        carry=jax.tree.map(begun, memory.carry),
    )
    return Sequences(trajectory, weight, _index(layout, row, env))


def reprioritize(layout: Layout, memory: Memory, index: Array, priorities: Array, count: Any) -> Memory:
    """The memory with new priorities for what was drawn: index, priorities [K, N], of the first `count`
    minibatches. Where a unit occurs several times, the highest counts.

    A priority below 2^-40 counts as that, one above 2^40 as that. One that is not a number leaves the unit as
    it was; so does any that is given to a unit that cannot be drawn.
    """
    xp, old = module(memory.first), memory.priorities
    index = xp.asarray(index).astype(integers(xp))
    given = xp.asarray(priorities).astype(xp.float32)
    if xp is np:
        index, given = index[: int(count)], given[: int(count)]
    used = xp.arange(given.shape[0])[:, None] < count
    chosen = used & (given == given) & (sumtree.leaves(old.tree, index) > 0)
    given = xp.clip(given, xp.float32(sumtree.LEAST), xp.float32(sumtree.MOST))
    tree = sumtree.update(old.tree, index.reshape(-1), given.reshape(-1), chosen.reshape(-1))
    top = xp.maximum(old.top, xp.max(xp.where(chosen, given, xp.float32(0)), initial=0))
    return memory._replace(priorities=Priorities(tree, top, old.live))
