"""Into how many parts learning is split, and which axis of which parameter: plain data, without JAX.

    Mesh(data=2, model=2)      four devices
    --mesh data=2,model=2      the same on the command line

What lies where in arrays is `sharding.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.errors import ShoalError, did_you_mean

DATA, MODEL = "data", "model"
Axes = tuple[str | None, ...]
Rule = tuple[str, Axes]

# Searched for in a leaf's path, in order; the first one counts. A layer that is split by columns (its units)
# and the next by rows (its inputs), in turn, need one sum over devices for the two (Shoeybi et al. 2019,
# "Megatron-LM", section 3).
RULES: tuple[Rule, ...] = (
    (r"layers_\d*[02468]/kernel$", (None, MODEL)),
    (r"layers_\d*[02468]/bias$", (MODEL,)),
    (r"layers_\d*[13579]/kernel$", (MODEL, None)),
    (r"conv_\d*[02468]/kernel$", (None, None, None, MODEL)),
    (r"conv_\d*[02468]/bias$", (MODEL,)),
    (r"conv_\d*[13579]/kernel$", (None, None, MODEL, None)),
    (r"(dense|\w+_hidden)/kernel(_std)?$", (None, MODEL)),  # of a CNN; of dueling and noisy heads
    (r"(dense|\w+_hidden)/bias(_std)?$", (MODEL,)),
    (r"memory/(input|hidden)/kernel$", (MODEL, None)),  # a GRU's gates lie beside each other in its columns
    (r"(head|head/value|head/advantage)/kernel(_std)?$", (MODEL, None)),
)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How learning is split over data * model devices.

    data: into how many parts the rows of each minibatch are split. model: into how many parts parameters and
    the optimizer's state are split. rules: (regular expression, axes) pairs, looked at before those that
    Shoal has for its own networks: the first expression that is found in a leaf's path
    ("params/policy/torso/layers_0/kernel", "opt/mu/...", "extra/dqn_target/...") says for each of its axes
    whether it lies over "model", over "data" or is kept whole (None); () keeps the leaf whole. What no rule
    finds, and an axis that does not divide, is whole on every device.
    """

    data: int = 1
    model: int = 1
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for name in (DATA, MODEL):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ShoalError(f"a mesh's {name} must be a whole number of at least 1, got {count!r}")
        if not isinstance(self.rules, tuple | list):
            raise ShoalError(f"a mesh's rules must be a tuple of pairs, got {self.rules!r}")
        for rule in self.rules:
            _check_form(rule)

    @property
    def size(self) -> int:
        """Devices."""
        return self.data * self.model

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """Over which axis of the mesh each axis of a leaf lies; () for one that is whole everywhere."""
        for pattern, axes in (*self.rules, *RULES):
            if re.search(pattern, path):
                return self._that_divide(axes, shape)
        return ()

    def parts(self, axes: Axes) -> int:
        """Into how many parts these axes split a leaf."""
        parts = 1
        for axis in axes:
            parts *= 1 if axis is None else getattr(self, axis)
        return parts

    def _that_divide(self, axes: Axes, shape: tuple[int, ...]) -> Axes:
        if len(axes) != len(shape):
            return ()
        sizes = [self.parts((axis,)) for axis in axes]
        kept = tuple(
            axis if size > 1 and n % size == 0 else None
            for axis, size, n in zip(axes, sizes, shape, strict=True)
        )
        return kept if any(kept) else ()

    def __str__(self) -> str:
        return f"data={self.data},model={self.model}"


def _check_form(rule: Any) -> None:
    if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)):
        raise ShoalError(f'a mesh\'s rule is a pair such as ("kernel$", (None, "model")), and not {rule!r}')
    pattern, axes = rule
    try:
        re.compile(pattern)
    except re.error as error:
        raise ShoalError(f"the mesh's rule {pattern!r} is no regular expression: {error}") from None
    if not isinstance(axes, tuple):
        raise ShoalError(f"the mesh's rule {pattern!r} needs its axes as a tuple, got {axes!r}")
    for axis in axes:
        if axis not in (None, DATA, MODEL):
            raise ShoalError(
                f"the mesh's rule {pattern!r} names the axis {axis!r}: "
                f"{did_you_mean(str(axis), (DATA, MODEL))}"
            )
        if axis is not None and axes.count(axis) > 1:
            raise ShoalError(f"the mesh's rule {pattern!r} names {axis!r} twice: it can split one axis")


def parsed(text: str, flag: str) -> Mesh:
    """ "data=2,model=2" -> Mesh. Raises ShoalError, one line that begins with the flag."""
    sizes: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        name, _, number = part.partition("=")
        if name not in (DATA, MODEL):
            hint = did_you_mean(name, (DATA, MODEL))
            raise ShoalError(f"{flag}: expected data=N,model=M, got {text!r}: unknown axis {name!r}; {hint}")
        if not re.fullmatch(r"[1-9]\d*", number):
            raise ShoalError(f"{flag}: {name} needs a whole number of at least 1, got {number!r}")
        if name in sizes:
            raise ShoalError(f"{flag}: {name} is given twice")
        sizes[name] = int(number)
    return Mesh(data=sizes.get(DATA, 1), model=sizes.get(MODEL, 1))


def to_json(mesh: Mesh) -> dict[str, Any]:
    """{"data", "model"} and the rules that were given, if any."""
    rules = {"rules": [[pattern, list(axes)] for pattern, axes in mesh.rules]} if mesh.rules else {}
    return {DATA: mesh.data, MODEL: mesh.model, **rules}


def from_json(data: Mapping[str, Any]) -> Mesh:
    rules = tuple((pattern, tuple(axes)) for pattern, axes in data.get("rules", ()))
    return Mesh(data=data[DATA], model=data[MODEL], rules=rules)
