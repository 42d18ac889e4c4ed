"""Observation and action spaces as plain data: comparable, hashable, and JSON both ways.

They mirror Gymnasium's spaces without importing it (`envs/rows.py` converts), so that a
specification can be saved beside a checkpoint and sent between processes without any code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.errors import ShoalError


@dataclass(frozen=True)
class Box:
    """Real arrays. Bounds are one number for all entries, or one per entry in row-major order."""

    shape: tuple[int, ...]
    low: float | tuple[float, ...] = -math.inf
    high: float | tuple[float, ...] = math.inf
    dtype: str = "float32"

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float32 arrays of this space's shape."""

        def full(bound: float | tuple[float, ...]) -> np.ndarray:
            array = np.asarray(bound, np.float32)
            return np.broadcast_to(array if array.ndim == 0 else array.reshape(self.shape), self.shape)

        return full(self.low), full(self.high)


@dataclass(frozen=True)
class Discrete:
    """The integers start, start + 1, ..., start + n - 1."""

    n: int
    start: int = 0


@dataclass(frozen=True)
class MultiDiscrete:
    """A vector of choices, entry i among start[i] ... start[i] + nvec[i] - 1 (start: zeros if empty)."""

    nvec: tuple[int, ...]
    start: tuple[int, ...] = ()


@dataclass(frozen=True)
class MultiBinary:
    """An array of zeros and ones."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tuple:
    """Several spaces in order."""

    spaces: tuple[Space, ...]


@dataclass(frozen=True)
class Dict:
    """Several spaces by name, in sorted order of the names (the order in which JAX flattens dicts)."""

    spaces: tuple[tuple[str, Space], ...]

    @staticmethod
    def of(spaces: Mapping[str, Space]) -> Dict:
        """From a mapping."""
        return Dict(tuple(sorted(spaces.items())))


Space = Box | Discrete | MultiDiscrete | MultiBinary | Tuple | Dict


def to_json(space: Space) -> dict[str, Any]:
    """Plain data for `json.dumps`: {"type": ..., fields}. Infinite bounds become strings."""

    def number(x: float) -> float | str:
        return x if math.isfinite(x) else str(x)

    def bound(x: float | tuple[float, ...]) -> Any:
        return [number(v) for v in x] if isinstance(x, tuple) else number(x)

    match space:
        case Box():
            return {
                "type": "Box",
                "shape": list(space.shape),
                "low": bound(space.low),
                "high": bound(space.high),
                "dtype": space.dtype,
            }
        case Discrete():
            return {"type": "Discrete", "n": space.n, "start": space.start}
        case MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": list(space.nvec), "start": list(space.start)}
        case MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
        case Tuple():
            return {"type": "Tuple", "spaces": [to_json(s) for s in space.spaces]}
        case Dict():
            return {"type": "Dict", "spaces": {name: to_json(s) for name, s in space.spaces}}


def from_json(data: Mapping[str, Any]) -> Space:
    """The inverse of `to_json`. Raises ValueError for an unknown type."""

    def bound(x: Any) -> float | tuple[float, ...]:
        return tuple(float(v) for v in x) if isinstance(x, list) else float(x)

    match data.get("type"):
        case "Box":
            return Box(tuple(data["shape"]), bound(data["low"]), bound(data["high"]), data["dtype"])
        case "Discrete":
            return Discrete(data["n"], data["start"])
        case "MultiDiscrete":
            return MultiDiscrete(tuple(data["nvec"]), tuple(data["start"]))
        case "MultiBinary":
            return MultiBinary(tuple(data["shape"]))
        case "Tuple":
            return Tuple(tuple(from_json(s) for s in data["spaces"]))
        case "Dict":
            return Dict.of({name: from_json(s) for name, s in data["spaces"].items()})
        case other:
            raise ValueError(
                f"unknown space type {other!r}; known are Box, Discrete, MultiDiscrete, "
                "MultiBinary, Tuple and Dict"
            )


def zeros(space: Space, batch: tuple[int, ...] = ()) -> Any:
    """An observation of zeros (each space's start for discrete ones): pytree of [*batch, ...] NumPy arrays.

    dtypes: Box as declared, Discrete and MultiDiscrete int32, MultiBinary int8.
    """
    match space:
        case Box():
            return np.zeros(batch + space.shape, space.dtype)
        case Discrete():
            return np.full(batch, space.start, np.int32)
        case MultiDiscrete():
            start = np.asarray(space.start or (0,) * len(space.nvec), np.int32)
            return np.broadcast_to(start, (*batch, len(space.nvec))).copy()
        case MultiBinary():
            return np.zeros(batch + space.shape, np.int8)
        case Tuple():
            return tuple(zeros(s, batch) for s in space.spaces)
        case Dict():
            return {name: zeros(s, batch) for name, s in space.spaces}


def beyond(space: Space, array: np.ndarray) -> np.ndarray:
    """Which entries [..., *shape] of whole numbers a Discrete, MultiDiscrete or MultiBinary space has not."""
    least = zeros(space)
    return (array < least) | (array >= least + np.reshape(choices(space), least.shape))


def choices(space: Space) -> tuple[int, ...]:
    """How many options each choice of a maskable action space has. Raises ShoalError for other spaces."""
    match space:
        case Discrete():
            return (space.n,)
        case MultiDiscrete():
            return space.nvec
        case MultiBinary():
            return (2,) * math.prod(space.shape)
    raise ShoalError(f"a {type(space).__name__} action space has no mask")
