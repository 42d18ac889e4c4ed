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
from shoal.replay.memory import (
    Memory,
    Priorities,
    after,
    around,
    at,
    behind,
    newest_unit,
    observations,
    place_of,
    unit_around,
    units,
    usable,
)
from shoal.types import Array, Key, Sequences, Trajectory, Transitions


def draw(
    layout: Layout, memory: Memory, key: Key, minibatches: int, batch_size: int
) -> Transitions | Sequences:
    """K minibatches of N, with replacement: leaves [K, N, ...].

    Uniform: of two places drawn for each, the first that holds what can be learned from is taken; where
    neither does, weight is 0. Prioritised: weight = total / (number of units * priority), which is
    1 / (n * P(i)) of Schaul et al. 2016 before its exponent; 0 where nothing can be drawn.
    """
    host = module(memory.first) is np
    words = (host_words if host else bits)(key, 2 * minibatches * batch_size)
    return draw_by(layout, memory, words.reshape(2, minibatches, batch_size))


def draw_by(layout: Layout, memory: Memory, words: Array) -> Transitions | Sequences:
    """`draw` by these random words: uint32 [2, K, N]."""
    choose = _by_priority if layout.prioritized else _uniform
    unit, weight = choose(layout, memory, words)
    gather = _sequences if layout.sequence else _transitions
    return gather(layout, memory, unit, weight)


def host_words(key: Key, n: int) -> np.ndarray:
    """`keys.bits` for the host, compiled for each n: NumPy takes five times as long for the same words."""
    return np.asarray(_compiled_bits(key, n))


_compiled_bits = jax.jit(lambda key, n: bits(jnp.asarray(key), n), static_argnums=1)


def _uniform(layout: Layout, memory: Memory, words: Array) -> tuple[Array, Array]:
    """(unit, weight), each [K, N]."""
    xp, count = module(memory.first), units(layout, memory)
    oldest = newest_unit(layout, memory) - count
    unit = unit_around(layout, oldest + multiply_high(words, count))
    good = usable(layout, memory, place_of(layout, unit))
    unit = xp.where(good[1] & ~good[0], unit[1], unit[0])
    return unit, (good[0] | good[1]).astype(xp.float32)


def _by_priority(layout: Layout, memory: Memory, words: Array) -> tuple[Array, Array]:
    """(unit, weight), each [K, N]."""
    xp, priorities = module(memory.first), memory.priorities
    unit, priority, total = sumtree.sample(priorities.tree, words[0], words[1])
    share = priority * xp.asarray(priorities.live, xp.float32)
    weight = total / xp.where(share > 0, share, xp.inf)
    return unit, weight.astype(xp.float32)


def _transitions(layout: Layout, memory: Memory, unit: Array, weight: Array) -> Transitions:
    xp, place = module(memory.first), unit
    alive, ended, steps = weight > 0, xp.zeros(unit.shape, bool), xp.zeros(unit.shape, integers(xp))
    here, reward = place, []
    for i in range(layout.n_step):
        then = after(layout, here)
        if i:  # the first is known to be real; at the newest row nothing was done yet
            alive = alive & ~ended & (behind(layout, memory, here) >= layout.envs)
            alive = alive & ~at(memory.first, then)
        ended = ended | (alive & at(memory.terminated, here))
        reward.append(xp.where(alive, at(memory.reward, here), xp.float32(0)))
        steps, here = steps + alive, then
    return Transitions(
        obs=observations(layout, memory, place),
        action=jax.tree.map(lambda array: at(array, place), memory.action),
        reward=xp.stack(reward, axis=-1),
        steps=steps.astype(xp.int32),
        terminated=ended,
        next_obs=observations(layout, memory, around(layout, place + steps * layout.envs)),
        weight=weight,
        index=unit.astype(xp.int32),
    )


def _sequences(layout: Layout, memory: Memory, unit: Array, weight: Array) -> Sequences:
    xp, length = module(memory.first), layout.sequence
    places = place_of(layout, unit)[..., None] + xp.arange(length + 1, dtype=integers(xp)) * layout.envs
    places = around(layout, places)
    body = lambda array: at(array, places[..., :length])  # noqa: E731
    action = jax.tree.map(body, memory.action)
    trajectory = Trajectory(
        obs=observations(layout, memory, places),
        first=at(memory.first, places),
        action=action,
        reward=body(memory.reward),
        terminated=body(memory.terminated),
        version=xp.zeros((*unit.shape, length), xp.int32),
        extras={"raw_action": action},
        carry=jax.tree.map(lambda array: at(array, unit), memory.carry),
    )
    return Sequences(trajectory, weight, unit.astype(xp.int32))


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
    given = sumtree.within(given)
    tree = sumtree.update(old.tree, index.reshape(-1), given.reshape(-1), chosen.reshape(-1))
    top = xp.maximum(old.top, xp.max(xp.where(chosen, given, xp.float32(0)), initial=0))
    return memory._replace(priorities=Priorities(tree, top, old.live))
