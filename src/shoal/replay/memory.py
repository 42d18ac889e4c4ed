"""The ring of rows: a Memory of arrays, and how fragments go into it.

Every observation is stored once: a fragment's rows 0 ... T - 1 go to `head` and after it, and its newest
observation, which has no action yet, to the row behind them, the new head. The next fragment begins with that
same observation and so overwrites it. C is a multiple of T, so that a fragment is one slab, never cut.

Row t of an environment can be drawn (as a transition) where t has an action, t + 1 was not produced by a
reset (`first[t + 1]`: then action t did nothing), and, with stacked frames, all frames of t are still there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.errors import ShoalError
from shoal.replay import sumtree
from shoal.replay.arrays import integers, module, put_rows, take
from shoal.replay.layout import Layout
from shoal.types import Array, Observation, Trajectory


class Priorities(NamedTuple):
    """How likely each unit is to be drawn.

    tree: float32 [2 * P], a sum tree over the units (see sumtree.py); a unit that cannot be drawn has 0.
    top: float32 [], the highest priority given so far, 1 at first. live: int32 [], units that can be drawn.
    """

    tree: Array
    top: Array
    live: Array


class Memory(NamedTuple):
    """A replay's arrays: time-major [C, B, ...], all NumPy or all JAX.

    obs: with frames > 1, `policy` holds the newest frame of each stack only. action: raw. carry: the policy's
    memory where each fragment began [C / T, B, ...], for sequences; else (). head: int32 [], the row of the
    newest observation. filled: int32 [], the rows before it that are stored. priorities: Priorities or ().
    """

    obs: Observation
    first: Array
    action: Any
    reward: Array
    terminated: Array
    carry: Any
    head: Array
    filled: Array
    priorities: Any


def empty(layout: Layout, fragment: Trajectory, xp: Any) -> Memory:
    """A replay that holds nothing. xp: numpy or jax.numpy, where its arrays are to live.

    fragment: a Trajectory of anything with shape and dtype, [T (+ 1), B, ...].
    ShoalError where the policy's extras have no "raw_action".
    """
    if "raw_action" not in fragment.extras:
        raise ShoalError('a replay stores extras["raw_action"], which this policy\'s `act` does not give')

    def ring(leaf: Any, rows: int = layout.rows, axes: int = 2) -> Array:
        return xp.zeros((rows, layout.envs, *leaf.shape[axes:]), leaf.dtype)

    obs = jax.tree.map(ring, fragment.obs)
    if layout.frames > 1:
        obs = obs._replace(policy=ring(fragment.obs.policy, axes=3))
    carry = ()
    if layout.sequence:
        carry = jax.tree.map(lambda x: ring(x, layout.rows // layout.fragment, 1), fragment.carry)
    priorities = ()
    if layout.prioritized:
        priorities = Priorities(sumtree.zeros(layout.units, xp), xp.float32(1.0), xp.int32(0))
    return Memory(
        obs=obs,
        first=ring(fragment.first),
        action=jax.tree.map(ring, fragment.extras["raw_action"]),
        reward=ring(fragment.reward),
        terminated=ring(fragment.terminated),
        carry=carry,
        head=xp.int32(0),
        filled=xp.int32(0),
        priorities=priorities,
    )


def wrap(layout: Layout, row: Any) -> Any:
    """A row number of the ring: row modulo C, for -C <= row < 2 C."""
    row = row - layout.rows * (row >= layout.rows)
    return row + layout.rows * (row < 0)


def at(layout: Layout, array: Array, row: Array, env: Array) -> Array:
    """array[row, env]: row, env integers of any shape S (broadcast) -> [*S, ...]."""
    flat = array.reshape(-1, *array.shape[2:])
    return take(flat, row * layout.envs + env)


def distance(layout: Layout, memory: Memory, row: Array) -> Array:
    """How many rows before the newest observation: 0 ... C - 1."""
    return wrap(layout, memory.head - row)


def usable(layout: Layout, memory: Memory, row: Array, env: Array) -> Array:
    """bool, whether what begins at these rows (multiples of the stride) can be drawn."""
    behind = distance(layout, memory, row)
    good = (behind >= layout.span) & (behind <= memory.filled)
    if not layout.sequence:
        good = good & ~at(layout, memory.first, wrap(layout, row + 1), env)
    if layout.frames > 1:
        whole = behind + (layout.frames - 1) <= memory.filled
        for back in range(layout.frames - 1):
            begins = at(layout, memory.first, wrap(layout, row - back), env)
            whole = whole | (begins & (behind + back <= memory.filled))
        good = good & whole
    return good


def candidates(layout: Layout, memory: Memory) -> Array:
    """How many units per environment could be drawn by their place in the ring alone."""
    n = memory.filled // layout.stride - layout.span // layout.stride + 1
    return n * (n > 0)


def ready(layout: Layout, memory: Memory) -> Array:
    """bool [], whether there is anything to draw. Cheap."""
    return candidates(layout, memory) > 0


def stored(layout: Layout, memory: Memory) -> Array:
    """int32 [], the rows (or sequences) that can be drawn. Looks at every row, unless prioritised."""
    if layout.prioritized:
        return memory.priorities.live
    xp = module(memory.first)
    row = xp.arange(0, layout.rows, layout.stride, dtype=integers(xp))[:, None]
    env = xp.arange(layout.envs, dtype=integers(xp))
    return usable(layout, memory, row, env).sum(dtype=xp.int32)


def insert(layout: Layout, memory: Memory, trajectory: Trajectory) -> Memory:
    """The memory with a fragment more: Trajectory [T, B] in the place of the oldest rows.

    NumPy arrays are written in place. With stacked frames and NumPy arrays: ShoalError where the stacks are
    not what `EnvSpec.frames` promises, before anything is written.
    """
    xp = module(memory.first)
    rows, head = layout.fragment, memory.head
    after = wrap(layout, head + rows)
    obs = trajectory.obs
    if layout.frames > 1:
        if xp is np:
            check_frames(layout, memory, trajectory)
        obs = obs._replace(policy=obs.policy[:, :, -1])

    def slab(array: Array, leaf: Array) -> Array:
        return put_rows(array, head, leaf)

    def slab_and_newest(array: Array, leaf: Array) -> Array:
        return put_rows(put_rows(array, head, leaf[:rows]), after, leaf[rows:])

    def carried(array: Array, leaf: Array) -> Array:
        return put_rows(array, head // rows, leaf[None])

    filled = memory.filled + rows
    most = layout.rows - 1
    memory = memory._replace(
        obs=jax.tree.map(slab_and_newest, memory.obs, obs),
        first=slab_and_newest(memory.first, trajectory.first),
        action=jax.tree.map(slab, memory.action, trajectory.extras["raw_action"]),
        reward=slab(memory.reward, trajectory.reward),
        terminated=slab(memory.terminated, trajectory.terminated),
        carry=jax.tree.map(carried, memory.carry, trajectory.carry if layout.sequence else ()),
        head=xp.int32(after),
        filled=xp.int32(filled - (filled - most) * (filled > most)),
    )
    return prioritise(layout, memory) if layout.prioritized else memory


def prioritise(layout: Layout, memory: Memory) -> Memory:
    """What the last insertion does to priorities: new units get the highest so far, lost ones 0."""
    xp, priorities = module(memory.first), memory.priorities
    steps = layout.fragment // layout.stride
    back = layout.span // layout.stride + steps  # the first unit looked at, in units before the head
    number = xp.arange(layout.touched, dtype=integers(xp))
    behind = (back - number) * layout.stride
    row = wrap(layout, memory.head - behind)[:, None]
    env = xp.arange(layout.envs, dtype=integers(xp))
    index = row // layout.stride * layout.envs + env
    new = ((behind >= layout.span) & (behind < layout.span + layout.fragment))[:, None]
    leaves = sumtree.leaves(priorities.tree, index)
    given = xp.where(new, priorities.top, leaves)
    given = xp.where(usable(layout, memory, row, env), given, xp.float32(0))
    gone = (leaves > 0).sum(dtype=xp.int32)
    tree = sumtree.put_leaves(priorities.tree, index, given)
    total, length = layout.units, layout.touched * layout.envs
    if xp is np:
        start = int(index[0, 0])
        tree = sumtree.repair(tree, start, min(length, total - start))
        if start + length > total:
            tree = sumtree.repair(tree, 0, start + length - total)
    else:  # both ends of the ring, of sizes that do not depend on where it is; repairing more does no harm
        start = xp.minimum(index[0, 0], total - length)
        tree = sumtree.repair(sumtree.repair(tree, start, length), 0, length)
    live = xp.int32(priorities.live - gone + (given > 0).sum(dtype=xp.int32))
    return memory._replace(priorities=Priorities(tree, priorities.top, live))


def stack_rows(layout: Layout, memory: Memory, row: Array, env: Array) -> Array:
    """The rows of the k frames of each stack, oldest first: S -> [*S, k]. Where the episode began less than k
    rows ago, its first frame stands for those before it."""
    xp = module(memory.first)
    found = [row]
    for _ in range(layout.frames - 1):
        begins = at(layout, memory.first, found[-1], env)
        found.append(xp.where(begins, found[-1], wrap(layout, found[-1] - 1)))
    return xp.stack(found[::-1], axis=-1)


def observations(layout: Layout, memory: Memory, row: Array, env: Array) -> Observation:
    """The observations at these rows, stacks rebuilt: S -> leaves [*S, ...]."""
    look = lambda array: at(layout, array, row, env)  # noqa: E731
    if layout.frames == 1:
        return jax.tree.map(look, memory.obs)
    row_of_each = stack_rows(layout, memory, row, env)
    policy = at(layout, memory.obs.policy, row_of_each, env[..., None])
    return Observation(policy, *jax.tree.map(look, (memory.obs.critic, memory.obs.mask)))


def check_frames(layout: Layout, memory: Memory, trajectory: Trajectory) -> None:
    """ShoalError unless each stack is the one before it with a frame more, or begins an episode."""
    stacks, first = np.asarray(trajectory.obs.policy), np.asarray(trajectory.first)
    if stacks.ndim < 3 or stacks.shape[2] != layout.frames:
        raise ShoalError(
            f"the environment says that it stacks {layout.frames} frames on the first axis of its "
            f"observation, whose shape is {stacks.shape[2:]}"
        )
    axes = tuple(range(2, stacks.ndim))
    follows = (stacks[1:, :, :-1] == stacks[:-1, :, 1:]).all(axis=axes)
    begins = (stacks[first][:, 1:] == stacks[first][:, :-1]).all()
    row, env = np.asarray(memory.head), np.arange(layout.envs)
    row, whole = np.broadcast_to(row, env.shape).astype(np.intp), True
    if memory.filled >= layout.frames - 1:
        goes_on = (observations(layout, memory, row, env).policy == stacks[0]).all(axis=axes[:-1] or None)
        goes_on = goes_on.reshape(layout.envs, -1).all(axis=1)
        whole = bool((goes_on | first[0]).all())
    if not ((follows | first[1:]).all() and begins and whole):
        raise ShoalError(
            f"the environment says that it stacks {layout.frames} frames, but its observations are not the "
            "ones before with a frame more at the end (an episode begins with copies of its first frame)"
        )
