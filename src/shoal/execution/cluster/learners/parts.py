"""What travels between the driver and the members of a learner group: arrays of NumPy, whole or in parts.

    driver: whole leaves --cut--> one member's parts --placed--> its devices
    member: placed leaves --own_parts--> parts that no other member gives --joined--> whole leaves

A member never has more of a leaf than its device holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Bounds = tuple[tuple[int, int], ...]  # of each axis: from, to
Holds = tuple[Bounds, ...]  # of each leaf, what one device holds


class Part(NamedTuple):
    """A part of leaf `leaf` of a tree, in JAX's order."""

    leaf: int
    bounds: Bounds
    values: np.ndarray


def holds_of(forms: Sequence[Any], shardings: Sequence[jax.sharding.Sharding], device: Any) -> Holds:
    """What of each leaf lies on a device. forms: anything with a shape."""

    def of_leaf(form: Any, sharding: jax.sharding.Sharding) -> Bounds:
        index = sharding.addressable_devices_indices_map(tuple(form.shape))[device]
        assert index is not None
        return _bounds(index, form.shape)

    return tuple(map(of_leaf, forms, shardings))


def own_parts(tree: Any) -> list[Part]:
    """Of placed arrays, what this process has and no other process gives: where a part lies on several
    devices, the first of them gives it."""
    return [
        Part(number, _bounds(shard.index, leaf.shape), np.asarray(shard.data))
        for number, leaf in enumerate(jax.tree.leaves(tree))
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]


def joined(form: Any, parts: Iterable[Part]) -> Any:
    """The whole tree, from all members' parts, in memory of its own. form: its leaves' shapes and dtypes.
    Raises ValueError where the parts are not the whole."""
    forms, structure = jax.tree.flatten(form)
    leaves = [np.empty(f.shape, f.dtype) for f in forms]
    missing = [leaf.size for leaf in leaves]
    for part in parts:
        leaves[part.leaf][_index(part.bounds)] = part.values
        missing[part.leaf] -= part.values.size
    if any(missing):
        raise ValueError(f"of {len(leaves)} leaves {sum(map(bool, missing))} are not whole")
    return jax.tree.unflatten(structure, leaves)


def cut(leaves: Sequence[np.ndarray], holds: Holds) -> list[np.ndarray]:
    """Of whole leaves, what one device holds."""
    return [leaf[_index(bounds)] for leaf, bounds in zip(leaves, holds, strict=True)]


def placed(
    forms: Sequence[Any],
    shardings: Sequence[jax.sharding.Sharding],
    parts: Sequence[np.ndarray],
    device: Any,
) -> list[jax.Array]:
    """Leaves over the devices of all processes, of which this one's device gets these parts. They are copied:
    what came from Ray is not this process's to write to, and a learner gives its state away."""
    return [
        jax.make_array_from_single_device_arrays(
            tuple(form.shape), sharding, [jax.device_put(part, device, may_alias=False)]
        )
        for form, sharding, part in zip(forms, shardings, parts, strict=True)
    ]


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _index(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(*of_axis) for of_axis in bounds)


class Same(NamedTuple):
    """An array of this shape whose elements are all the same: value, shape []."""

    value: np.ndarray
    shape: tuple[int, ...]


def slim(tree: Any) -> Any:
    """Experience as it is sent: what of a fragment the learner need not see is one zero, and stays one."""

    def leaf(x: Any) -> Any:
        array = np.asarray(x)
        alike = array.size > 1 and not any(array.strides)
        return Same(array[(0,) * array.ndim], array.shape) if alike else array

    return jax.tree.map(leaf, tree)


def full(tree: Any) -> Any:
    """What `slim` was given."""
    is_same = lambda x: isinstance(x, Same)  # noqa: E731
    return jax.tree.map(lambda x: np.broadcast_to(*x) if is_same(x) else x, tree, is_leaf=is_same)


def bytes_of(tree: Any) -> int:
    """Of what `slim` gave, or of any arrays."""
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
