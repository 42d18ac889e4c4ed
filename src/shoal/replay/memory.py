"""The ring of rows: a Memory of arrays, and how fragments go into it.

Every observation is stored once: a fragment's rows 0 ... T - 1 go to `head` and after it, and its newest
observation, which has no action yet, to the row behind them, the new head. The next fragment begins with that
same observation and so overwrites it. C is a multiple of T, so that a fragment is one slab, never cut.

Row t of an environment can be drawn (as a transition) where t has an action, t + 1 was not produced by a
reset (`first[t + 1]`: then action t did nothing), and, with stacked frames, all frames of t are still there.
The *place* of row t of environment b is the number t * B + b.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    In NumPy the tree and live are written in place.
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
        nothing = xp.zeros((), xp.int32)
        priorities = Priorities(sumtree.zeros(layout.units, xp), xp.float32(1.0), nothing)
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


def around(layout: Layout, place: Array) -> Array:
    """A place after or before the ends of the ring, at most one turn away, as the place that it is."""
    size = layout.rows * layout.envs
    place = place - size * (place >= size)
    return place + size * (place < 0)


def after(layout: Layout, place: Array) -> Array:
    """The place of the next row of the same environment."""
    size = layout.rows * layout.envs
    place = place + layout.envs
    return place - size * (place >= size)


def at(array: Array, place: Array) -> Array:
    """What is stored at these places: [C, B, ...], integers of any shape S -> [*S, ...]."""
    return take(array.reshape(-1, *array.shape[2:]), place)


def behind(layout: Layout, memory: Memory, place: Array) -> Array:
    """B times the number of rows until the newest observation, and 0 ... B - 1 more."""
    newest = (memory.head + 1) * layout.envs - 1
    back = newest - place
    return back + (layout.rows * layout.envs) * (back < 0)


def usable(layout: Layout, memory: Memory, place: Array) -> Array:
    """bool, whether the units that begin at these places can be drawn."""
    back = behind(layout, memory, place)
    known = (memory.filled + 1) * layout.envs  # less than this far behind, rows are stored
    good = (back >= layout.span * layout.envs) & (back < known)
    if not layout.sequence:
        good = good & ~at(memory.first, after(layout, place))
    if layout.frames > 1:
        whole = back + (layout.frames - 1) * layout.envs < known
        for _ in range(layout.frames - 1):
            whole = whole | (at(memory.first, place) & (back < known))
            place, back = around(layout, place - layout.envs), back + layout.envs
        good = good & whole
    return good


def units(layout: Layout, memory: Memory) -> Array:
    """How many units the filled rows hold, whether or not something can be learned from them: a multiple of
    B, and the newest end before the unit `newest_unit`."""
    each = memory.filled // layout.stride - layout.span // layout.stride + 1
    return each * (each > 0) * layout.envs


def newest_unit(layout: Layout, memory: Memory) -> Array:
    """The first unit that is still too new."""
    return (memory.head // layout.stride - layout.span // layout.stride + 1) * layout.envs


def unit_around(layout: Layout, unit: Array) -> Array:
    """A unit's number modulo their number, at most one turn away."""
    unit = unit - layout.units * (unit >= layout.units)
    return unit + layout.units * (unit < 0)


def place_of(layout: Layout, unit: Array) -> Array:
    """Where units begin."""
    if not layout.sequence:
        return unit
    return unit + unit // layout.envs * ((layout.stride - 1) * layout.envs)


def ready(layout: Layout, memory: Memory) -> Array:
    """bool [], whether there is anything to draw. Cheap."""
    return units(layout, memory) > 0


def stored(layout: Layout, memory: Memory) -> Array:
    """int32 [], the rows (or sequences) that can be drawn. Looks at every row, unless prioritised."""
    if layout.prioritized:
        return memory.priorities.live
    xp = module(memory.first)
    place = place_of(layout, xp.arange(layout.units, dtype=integers(xp)))
    return usable(layout, memory, place).sum(dtype=xp.int32)


def insert(layout: Layout, memory: Memory, trajectory: Trajectory, priorities: Array | None = None) -> Memory:
    """The memory with a fragment more: Trajectory [T, B] in the place of the oldest rows.

    priorities: float32 [T, B], of these rows (as `reprioritize` takes them), in the place of the highest so
    far, which still stands for those that are not a number. ValueError where the replay is not prioritised,
    or holds sequences, which begin before the fragment that makes them whole.

    NumPy arrays are written in place. With stacked frames and NumPy arrays: ShoalError where the stacks are
    not what `EnvSpec.frames` promises, before anything is written.
    """
    if priorities is not None and (layout.sequence or not layout.prioritized):
        raise ValueError("priorities of single rows are for a prioritised replay of transitions")
    xp = module(memory.first)
    rows, head = layout.fragment, memory.head
    then = head + rows
    then = then - layout.rows * (then >= layout.rows)
    obs = trajectory.obs
    if layout.frames > 1:
        if xp is np:
            check_frames(layout, memory, trajectory)
        obs = obs._replace(policy=obs.policy[:, :, -1])

    def slab(array: Array, leaf: Array) -> Array:
        return put_rows(array, head, leaf)

    def slab_and_newest(array: Array, leaf: Array) -> Array:
        return put_rows(put_rows(array, head, leaf[:rows]), then, leaf[rows:])

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
        head=xp.int32(then),
        filled=xp.int32(filled - (filled - most) * (filled > most)),
    )
    return prioritise(layout, memory, priorities) if layout.prioritized else memory


def prioritise(layout: Layout, memory: Memory, wanted: Array | None) -> Memory:
    """What the last insertion does to priorities: new units get those wanted, or the highest so far, lost
    ones 0."""
    xp, priorities = module(memory.first), memory.priorities
    top = priorities.top
    count, new = layout.touched * layout.envs, layout.fragment // layout.stride * layout.envs
    number = xp.arange(count, dtype=integers(xp))
    start = unit_around(layout, newest_unit(layout, memory) - new - layout.envs)
    unit = unit_around(layout, start + number)
    leaves = sumtree.leaves(priorities.tree, unit)
    fresh = (number >= layout.envs) & (number < layout.envs + new)
    begin = top
    if wanted is not None:
        begin = xp.asarray(wanted, xp.float32).reshape(-1)
        begin = xp.where(begin == begin, sumtree.within(begin), top)
        begin = xp.pad(begin, (layout.envs, count - layout.envs - new))
    given = xp.where(fresh, begin, leaves)
    given = given * usable(layout, memory, place_of(layout, unit))
    if wanted is not None:
        top = xp.maximum(top, xp.max(xp.where(fresh, given, xp.float32(0))))
    tree = sumtree.put_leaves(priorities.tree, unit, given)
    more = (given > 0).sum(dtype=xp.int32) - (leaves > 0).sum(dtype=xp.int32)
    # Both ends of the ring, of sizes that do not depend on where it is; repairing more does no harm.
    if xp is jnp or start + count > layout.units:
        tree = sumtree.repair(tree, 0, count)
    tree = sumtree.repair(tree, xp.minimum(start, layout.units - count), count)
    live = priorities.live + more
    if xp is np:  # in place, as the tree is, which says of a repeated insertion that nothing is new
        priorities.live[...] = live
        live = priorities.live
    return memory._replace(priorities=Priorities(tree, top, live))


def stacked_places(layout: Layout, memory: Memory, place: Array) -> Array:
    """The places of the k frames of each stack, oldest first: S -> [*S, k]. Where the episode began less than
    k rows ago, its first frame stands for those before it."""
    xp = module(memory.first)
    found = [place]
    for _ in range(layout.frames - 1):
        begins = at(memory.first, found[-1])
        found.append(around(layout, found[-1] - layout.envs * ~begins))
    return xp.stack(found[::-1], axis=-1)


def observations(layout: Layout, memory: Memory, place: Array) -> Observation:
    """The observations at these places, stacks rebuilt: S -> leaves [*S, ...]."""
    look = lambda array: at(array, place)  # noqa: E731
    if layout.frames == 1:
        return jax.tree.map(look, memory.obs)
    policy = at(memory.obs.policy, stacked_places(layout, memory, place))
    return Observation(policy, *jax.tree.map(look, (memory.obs.critic, memory.obs.mask)))


def check_frames(layout: Layout, memory: Memory, trajectory: Trajectory) -> None:
    """ShoalError unless each stack is the one before it with a frame more, or begins an episode."""
    stacks, first = np.asarray(trajectory.obs.policy), np.asarray(trajectory.first)
    if stacks.ndim < 3 or stacks.shape[2] != layout.frames:
        raise ShoalError(
            f"the environment says that it stacks {layout.frames} frames on the first axis of its "
            f"observation, whose shape is {stacks.shape[2:]}"
        )
    same = lambda a, b: (a == b).reshape(*a.shape[:2], -1).all(axis=2)  # noqa: E731
    good = (same(stacks[1:, :, :-1], stacks[:-1, :, 1:]) | first[1:]).all()
    begins = stacks[first]
    good &= (begins[:, 1:] == begins[:, :-1]).all()
    if memory.filled >= layout.frames:  # the newest stack that is stored is the first of the fragment
        place = memory.head * layout.envs + np.arange(layout.envs)
        newest = observations(layout, memory, place).policy
        good &= (same(newest[None], stacks[:1]) | first[:1]).all()
    if not good:
        raise ShoalError(
            f"the environment says that it stacks {layout.frames} frames, but its observations are not the "
            "ones before with a frame more at the end (an episode begins with copies of its first frame)"
        )
