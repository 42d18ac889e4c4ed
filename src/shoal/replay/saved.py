"""A replay in a checkpoint: only the rows that are filled, and every fault of what is loaded is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.checkpoint import flatten
from shoal.errors import ShoalError
from shoal.replay import sumtree
from shoal.replay.arrays import module
from shoal.replay.layout import Layout
from shoal.replay.memory import Memory, Priorities

_COUNTS = ("head", "filled", "rows")


def save(layout: Layout, memory: Memory) -> dict[str, Any]:
    """The memory as nested dicts of NumPy arrays, for a checkpoint: views of host memory, so write them
    before the next insertion."""
    tree = _content(layout, jax.tree.map(np.asarray, memory))
    counts = {"head": memory.head, "filled": memory.filled, "rows": layout.rows}
    return {**tree, **{name: np.int32(n) for name, n in counts.items()}}


def load(layout: Layout, memory: Memory, saved: Mapping[str, np.ndarray], prefix: str) -> Memory:
    """What `save` gave, from a checkpoint's slash path -> array: NumPy memory is written in place, JAX memory
    is made anew. ShoalError, one line, for whatever is missing, unexpected or wrong."""
    under = f"{prefix}/" if prefix else ""
    found = {p.removeprefix(under): a for p, a in saved.items() if p.startswith(under)}
    head, filled = _counts(layout, found, under)
    host = xp = module(memory.first)
    if xp is np:
        host = memory
    else:
        host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), memory)
    host = host._replace(head=np.int32(head), filled=np.int32(filled))
    places = flatten(_content(layout, host))
    faults = [f"missing {under}{p}" for p in places if p not in found]
    faults += [f"unexpected {under}{p}" for p in found if p not in places and p not in _COUNTS]
    for path, place in places.items():
        if path in found:
            array = found[path]
            if array.shape != place.shape:
                faults.append(f"{under}{path} has shape {array.shape} instead of {place.shape}")
            if array.dtype != place.dtype:
                faults.append(f"{under}{path} has dtype {array.dtype} instead of {place.dtype}")
    if faults:
        raise ShoalError("the saved replay does not fit: " + "; ".join(faults))
    if layout.prioritized:
        _check_priorities(found, under)
        host = host._replace(priorities=host.priorities._replace(top=found["priorities/top"][()]))
        host.priorities.tree[:] = 0
    for path, place in places.items():
        if place.ndim:
            place[...] = found[path]
    if layout.prioritized:
        host = host._replace(priorities=_rebuilt(layout, host.priorities))
    if xp is np:
        return host
    return jax.tree.map(lambda x: jnp.array(x, copy=True), host)


def _content(layout: Layout, memory: Memory) -> dict[str, Any]:
    """What is saved of a NumPy memory: views of the rows that hold something. The newest observation has no
    action yet. Of the tree only leaves, which the rest follows from."""
    full = memory.filled == layout.rows - 1
    acted = layout.rows if full else int(memory.filled)
    seen = min(acted + 1, layout.rows)

    def cut(array: Any, rows: int) -> Any:
        return jax.tree.map(lambda x: x[:rows], array)

    content: dict[str, Any] = {name: cut(getattr(memory, name), seen) for name in ("obs", "first")}
    content |= {name: cut(getattr(memory, name), acted) for name in ("action", "reward", "terminated")}
    content["carry"] = cut(memory.carry, acted // layout.fragment)
    if layout.prioritized:
        size = memory.priorities.tree.shape[0] // 2
        leaves = memory.priorities.tree[size : size + acted // layout.stride * layout.envs]
        content["priorities"] = {"leaves": leaves, "top": np.float32(memory.priorities.top)}
    return content


def _counts(layout: Layout, found: Mapping[str, np.ndarray], under: str) -> tuple[int, int]:
    """(head, filled), checked."""
    for name in _COUNTS:
        if name not in found:
            raise ShoalError(f"the saved replay does not fit: missing {under}{name}")
        if found[name].shape != () or found[name].dtype != np.int32:
            raise ShoalError(f"the saved replay does not fit: {under}{name} is not one int32")
    head, filled, rows = (int(found[name]) for name in _COUNTS)
    if rows != layout.rows:
        raise ShoalError(f"the saved replay has {rows} rows, this one {layout.rows}: use the same capacity")
    whole = 0 <= head < rows and head % layout.fragment == 0
    if not whole or not (filled == rows - 1 or filled == head < rows):
        raise ShoalError(f"the saved replay is damaged: head {head} and {filled} filled of {rows} rows")
    return head, filled


def _check_priorities(found: Mapping[str, np.ndarray], under: str) -> None:
    leaves, top = found["priorities/leaves"], found["priorities/top"]
    good = (leaves == 0) | ((leaves >= sumtree.LEAST) & (leaves <= sumtree.MOST))
    if not (good.all() and sumtree.LEAST <= top <= sumtree.MOST):
        raise ShoalError(f"the saved replay is damaged: {under}priorities are out of range")


def _rebuilt(layout: Layout, priorities: Priorities) -> Priorities:
    size = priorities.tree.shape[0] // 2
    tree = sumtree.rebuild(priorities.tree, size)
    return Priorities(tree, priorities.top, np.array((tree[size:] > 0).sum(), np.int32))
