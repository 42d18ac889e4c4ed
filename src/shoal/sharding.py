"""The one place that knows that a batch or a model may be split over devices.

A `Mesh` has two axes: `data`, over which the rows of a minibatch are split, and `model`, over which
parameters and the optimizer's state are split by rules. What an update computes stays the same: XLA's
partitioner divides the program and puts in the sums over devices, so that a mean is the mean over all rows
and a norm the norm over all parameters, to rounding. `sgd.learner` says where a minibatch begins
(`split`, `whole`) and where its gradient is added up (`added_up`); no algorithm knows of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from shoal.errors import ShoalError
from shoal.mesh import DATA, MODEL, Axes, Mesh
from shoal.types import Array, Draws, Gradient, Key, State, Trajectory


def on_devices(mesh: Mesh, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The mesh of the first of these devices. Raises ShoalError where they are too few."""
    if len(devices) < mesh.size:
        kind = devices[0].platform
        hint = f"choose a smaller mesh, or one process for each with Cluster(learners={mesh!r})"
        if kind == "cpu":  # a CPU shows itself as so many devices as JAX is told before it starts
            hint = (
                "JAX makes them of the CPU only as it starts: make the Trainer before anything uses JAX, or "
                f"call jax.config.update('jax_num_cpu_devices', {mesh.size}) first"
            )
        raise ShoalError(
            f"the mesh {mesh} needs {mesh.size} devices and there are {len(devices)} ({kind}): {hint}"
        )
    grid = np.array(devices[: mesh.size]).reshape(mesh.data, mesh.model)
    return jax.sharding.Mesh(grid, (DATA, MODEL))


# -- where a leaf lies -----------------------------------------------------------------------------------


class Placed(NamedTuple):
    """A leaf of a State: over which axis of the mesh each of its axes lies, and its bytes: of the whole, and
    on each device."""

    path: str
    shape: tuple[int, ...]
    axes: Axes
    bytes: int
    per_device: int


def placed(mesh: Mesh, state: Any) -> list[Placed]:
    """Every leaf of a State (anything with shape and dtype), in its order."""

    def leaf(path: str, x: Any) -> Placed:
        shape, axes = tuple(x.shape), mesh.axes(path, tuple(x.shape))
        count = math.prod(shape) * x.dtype.itemsize
        return Placed(path, shape, axes, count, count // mesh.parts(axes))

    return [leaf(_name(keys), x) for keys, x in jax.tree_util.tree_flatten_with_path(state)[0]]


def specs_of(mesh: Mesh, state: Any) -> Any:
    """Each leaf's PartitionSpec, by its path: state is a State, or anything that has its paths."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, x: PartitionSpec(*mesh.axes(_name(keys), tuple(x.shape))), state
    )


def bytes_per_device(mesh: Mesh, state: Any) -> int:
    """What each device holds of a State (leaves with shape and dtype)."""
    return sum(leaf.per_device for leaf in placed(mesh, state))


def holdings(leaves: Sequence[Placed]) -> dict[str, tuple[int, int]]:
    """What learning holds, by name: (bytes of the whole, on each device). leaves: of a whole State.

    A gradient is as large as the parameters and split as they are; experience and activations come on top.
    """
    names = {"params": "parameters", "opt": "optimizer"}
    held: dict[str, tuple[int, int]] = dict.fromkeys(
        ("parameters", "optimizer", "targets and statistics"), (0, 0)
    )
    for leaf in leaves:
        name = names.get(leaf.path.partition("/")[0], "targets and statistics")
        whole, part = held[name]
        held[name] = (whole + leaf.bytes, part + leaf.per_device)
    return held | {"gradients": held["parameters"]}


def check_rules(mesh: Mesh, state: Any) -> None:
    """Raises ShoalError, one line, for a rule that no leaf of this State (shapes) follows, that names another
    number of axes than its leaves have, or that divides none of them; and where model= splits nothing."""
    leaves = placed(mesh, state)
    for number, (pattern, axes) in enumerate(mesh.rules):
        found = [leaf for leaf in leaves if re.search(pattern, leaf.path)]
        if not found:
            raise ShoalError(
                f"the mesh's rule {pattern!r} finds nothing in this model, whose largest leaf is "
                f"{max(leaves, key=lambda leaf: leaf.bytes).path!r}"
            )
        earlier = [before for before, _ in mesh.rules[:number]]
        mine = [leaf for leaf in found if not any(re.search(before, leaf.path) for before in earlier)]
        if not mine:
            raise ShoalError(
                f"the mesh's rule {pattern!r} comes too late: earlier rules find all of its leaves"
            )
        wrong = [leaf for leaf in mine if axes and len(axes) != len(leaf.shape)]
        if wrong:
            raise ShoalError(
                f"the mesh's rule {pattern!r} names {len(axes)} axes, and {wrong[0].path!r} has "
                f"{len(wrong[0].shape)}"
            )
        if mesh.parts(axes) > 1 and not any(leaf.axes for leaf in mine):
            raise ShoalError(
                f"the mesh's rule {pattern!r} divides nothing: {mine[0].path!r} has the shape "
                f"{mine[0].shape}, and the mesh is {mesh}"
            )
    if mesh.model > 1 and not any(MODEL in leaf.axes for leaf in leaves if leaf.path.startswith("params/")):
        largest = max(
            (leaf for leaf in leaves if leaf.path.startswith("params/")), key=lambda leaf: leaf.bytes
        )
        raise ShoalError(
            f"model={mesh.model} splits no parameter of this model: its largest, {largest.path!r} of shape "
            f"{largest.shape}, follows no rule or does not divide; give rules, or another width"
        )


def _name(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def experience_specs(experience: Any) -> Any:
    """Environments (of a Trajectory) and minibatch rows (of Draws) lie over "data"."""
    second = lambda tree: jax.tree.map(lambda _: PartitionSpec(None, DATA), tree)  # noqa: E731
    if isinstance(experience, Draws):
        return experience._replace(minibatches=second(experience.minibatches), count=PartitionSpec())
    if not isinstance(experience, Trajectory):
        raise TypeError(f"experience is a Trajectory or Draws, not {type(experience).__name__}")
    carry = jax.tree.map(lambda _: PartitionSpec(DATA), experience.carry)
    return second(experience._replace(carry=()))._replace(carry=carry)


def named(devices: jax.sharding.Mesh, specs: Any) -> Any:
    """PartitionSpecs as shardings on these devices."""
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(devices, spec), specs, is_leaf=is_spec)


# -- inside an update ------------------------------------------------------------------------------------

_devices: ContextVar[jax.sharding.Mesh | None] = ContextVar("devices", default=None)


@contextmanager
def over(devices: jax.sharding.Mesh) -> Iterator[None]:
    """What is traced in the block is split over these devices."""
    token = _devices.set(devices)
    try:
        yield
    finally:
        _devices.reset(token)


def split(tree: Any, axis: int) -> Any:
    """Minibatch rows, which are this axis of each leaf, over "data". Without a mesh the same arrays."""
    return _constrained(tree, PartitionSpec(*(None,) * axis, DATA))


def whole(tree: Any) -> Any:
    """On every device, so that any of its rows can be taken without an exchange."""
    return _constrained(tree, PartitionSpec())


LARGE = 1 << 20  # bytes of a leaf that is sent by itself: to lay it beside others would take longer
_in_part: ContextVar[bool] = ContextVar("in_part", default=False)


def added_up(grads: Callable[[State, Any, Key], Gradient], state: State, rows: Any, key: Key) -> Gradient:
    """`grads` of all rows of a minibatch, which lie over "data".

    Where the model is whole, each device computes the gradient of its own rows, and what are sums over rows
    is added up in one exchange. XLA's partitioner would add up each leaf by itself: on CPUs an exchange for
    every leaf, which with small networks is nearly all that an update takes.
    """
    devices = _devices.get()
    if devices is None or devices.shape[DATA] == 1 or devices.shape[MODEL] > 1:
        return grads(state, rows, key)

    def of_part(state: State, rows: Any, key: Key) -> Gradient:
        token = _in_part.set(True)
        try:
            part = grads(state, rows, key)
        finally:
            _in_part.reset(token)
        total, weight, metrics = _over_data((part.sum, part.weight, part.metrics))
        return Gradient(total, weight, metrics, part.priorities)

    everywhere: Any = PartitionSpec()
    divided: Any = PartitionSpec(DATA)
    return jax.shard_map(
        of_part,
        mesh=devices,
        in_specs=(everywhere, divided, everywhere),
        out_specs=Gradient(everywhere, everywhere, everywhere, divided),
        check_vma=False,  # else a gradient would be added up leaf by leaf where it is taken
    )(state, rows, key)


def over_rows(*sums: Array) -> Sequence[Array]:
    """What are sums over the rows that are here, as sums over all rows of a minibatch: float32 [] each."""
    return tuple(jax.lax.psum(jnp.stack(sums), DATA)) if _in_part.get() else sums


def _over_data(tree: Any) -> Any:
    """Added up over "data": small leaves in one exchange, beside each other."""
    leaves, structure = jax.tree.flatten(tree)
    large = [i for i, x in enumerate(leaves) if x.size * x.dtype.itemsize >= LARGE]
    small, apart = ravel_pytree([x for i, x in enumerate(leaves) if i not in large])
    whole = jax.lax.psum([small, *(leaves[i] for i in large)], DATA)
    rest = iter(apart(whole[0]))
    found = dict(zip(large, whole[1:], strict=True))
    return structure.unflatten([found[i] if i in found else next(rest) for i in range(len(leaves))])


def _constrained(tree: Any, spec: PartitionSpec) -> Any:
    devices = _devices.get()
    if devices is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(devices, spec))
