"""The one place that knows that a batch or a model may be split over devices.

A `Mesh` has two axes: `data`, over which the rows of a minibatch are split, and `model`, over which
parameters and the optimizer's state are split by rules. What an update computes stays the same: XLA's
partitioner divides the program and puts in the sums over devices, so that a mean is the mean over all rows
and a norm the norm over all parameters, to rounding. `sgd.learner` says where a minibatch begins
(`split`, `whole`); no algorithm knows of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from shoal.errors import ShoalError
from shoal.types import Draws, Trajectory

DATA, MODEL = "data", "model"
Rule = tuple[str, tuple[str | None, ...]]

# Searched for in a leaf's path, in order; the first one counts. Layers of an MLP are split by columns and by
# rows in turn (Shoeybi et al. 2019, "Megatron-LM", section 3): every second product needs no exchange before.
RULES: tuple[Rule, ...] = (
    (r"layers_\d*[02468]/kernel$", (None, MODEL)),
    (r"layers_\d*[02468]/bias$", (MODEL,)),
    (r"layers_\d*[13579]/kernel$", (MODEL, None)),
    (r"conv_\d+/kernel$", (None, None, None, MODEL)),
    (r"conv_\d+/bias$", (MODEL,)),
    (r"(dense|input|hidden|\w+_hidden)/kernel(_std)?$", (None, MODEL)),
    (r"(dense|input|hidden|\w+_hidden)/bias(_std)?$", (MODEL,)),
    (r"head/kernel$", (MODEL, None)),
)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How learning is split over data * model devices.

    data: into how many parts the rows of each minibatch are split. model: into how many parts parameters and
    the optimizer's state are split. rules: (regular expression, axes) pairs: the first expression that is
    found in a leaf's path ("params/policy/torso/layers_0/kernel", "opt/mu/...", "extra/dqn_target/...") says
    which of its axes lie over "model" or "data"; None keeps an axis whole. What no rule finds, or what does
    not divide, is kept whole on every device.
    """

    data: int = 1
    model: int = 1
    rules: tuple[Rule, ...] = RULES

    def __post_init__(self) -> None:
        if self.data < 1 or self.model < 1:
            raise ShoalError(f"a mesh needs data and model of at least 1, got {self.data} and {self.model}")
        for pattern, axes in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ShoalError(f"the mesh's rule {pattern!r} is no regular expression: {error}") from None
            if unknown := [axis for axis in axes if axis not in (None, DATA, MODEL)]:
                raise ShoalError(f"the mesh's rule {pattern!r} names the axis {unknown[0]!r}: data or model")

    @property
    def size(self) -> int:
        """Devices."""
        return self.data * self.model


def on_devices(mesh: Mesh, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The mesh of the first of these devices. Raises ShoalError where they are too few."""
    if len(devices) < mesh.size:
        raise ShoalError(
            f"a mesh of data={mesh.data}, model={mesh.model} needs {mesh.size} devices, and there are "
            f"{len(devices)}: ask for fewer, or use Cluster(learners=Mesh(...)) for a process each"
        )
    grid = np.array(devices[: mesh.size]).reshape(mesh.data, mesh.model)
    return jax.sharding.Mesh(grid, (DATA, MODEL))


# -- where a leaf lies -----------------------------------------------------------------------------------


def spec_of(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Which axes of a leaf of a State are split over which axis of the mesh."""
    for pattern, axes in mesh.rules:
        if re.search(pattern, path):
            return PartitionSpec(*_that_divide(mesh, axes, shape))
    return PartitionSpec()


def _that_divide(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The axes if each divides, else those that do (an axis more or less than the leaf has: none)."""
    if len(axes) != len(shape):
        return ()
    sizes = {None: 1, DATA: mesh.data, MODEL: mesh.model}
    return tuple(a if n % sizes[a] == 0 else None for a, n in zip(axes, shape, strict=True))


def specs_of(mesh: Mesh, state: Any) -> Any:
    """`spec_of` each leaf of a State, or of anything that has its paths."""

    def leaf(path: Any, x: Any) -> PartitionSpec:
        return spec_of(mesh, jax.tree_util.keystr(path, simple=True, separator="/"), tuple(x.shape))

    return jax.tree_util.tree_map_with_path(leaf, state)


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


def bytes_per_device(mesh: Mesh, tree: Any) -> int:
    """What each device holds of a State (leaves with shape and dtype)."""
    sizes = {None: 1, DATA: mesh.data, MODEL: mesh.model}

    def leaf(x: Any, spec: PartitionSpec) -> int:
        return math.prod(x.shape) * x.dtype.itemsize // math.prod(sizes[axis] for axis in spec)

    return sum(jax.tree.leaves(jax.tree.map(leaf, tree, specs_of(mesh, tree))))


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


def _constrained(tree: Any, spec: PartitionSpec) -> Any:
    devices = _devices.get()
    if devices is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(devices, spec))
