"""From one environment's observation or mask to row i of arrays; what the space cannot hold is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import numpy as np
from gymnasium import spaces as gym_spaces

from shoal import spaces

Write = Callable[[int, Any], None]


def writer(space: spaces.Space, array: Any) -> Write:
    """Writes observations of one environment into the arrays [B, ...] of this space."""
    if isinstance(space, spaces.Dict):
        parts = [at(name, writer(s, array[name])) for name, s in space.spaces]
        return together(parts)
    if isinstance(space, spaces.Tuple):
        return together([at(k, writer(s, array[k])) for k, s in enumerate(space.spaces)])
    if isinstance(space, spaces.Discrete):
        return _number_writer(space, array)
    taken = whole(space)
    if array.ndim == 1:
        return lambda i, value: array.__setitem__(i, taken(value))
    views = list(array)

    def write(i: int, value: Any) -> None:
        given = np.asarray(taken(value))
        if given.shape != array.shape[1:]:  # NumPy would spread one number over all
            raise ValueError(f"shape {given.shape}, not {array.shape[1:]}")
        views[i][...] = given

    return write


def _number_writer(space: spaces.Discrete, array: np.ndarray) -> Write:
    low, end = space.start, space.start + space.n

    def write(i: int, value: Any) -> None:
        number = index(value)
        if not low <= number < end:
            raise ValueError(f"{number} is not in {space}")
        array[i] = number

    return write


def whole(space: spaces.Space) -> Callable[[Any], Any]:
    """value (one, or a batch of them) -> what an array of this space can take: NumPy would cut fractions off
    and wrap around without a word, which is a ValueError here. Floating boxes take anything."""
    dtype = spaces.zeros(space).dtype
    if dtype.kind == "f":
        return lambda value: value

    def take(value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype != dtype and (array.dtype.kind not in "biu" or (array.astype(dtype) != array).any()):
            raise ValueError(f"{array.dtype} holds what {dtype} cannot")
        if not isinstance(space, spaces.Box) and spaces.beyond(space, array).any():
            raise ValueError(f"{array} is not in {space}")
        return array

    return take


def at(key: Any, write: Write) -> Write:
    """Writes the part that lies at `key` (None: the whole)."""
    return write if key is None else lambda i, value: write(i, value[key])


def together(parts: Sequence[Write]) -> Write:
    """Writes each part."""

    def write(i: int, value: Any) -> None:
        for part in parts:
            part(i, value)

    return write


def mask_writer(action: Any, array: np.ndarray) -> Write:
    """Writes Gymnasium's forms of a mask: int8 or bool [n]; a tuple of them for MultiDiscrete; 0 (must not be
    set), 1 (must be) or 2 (free) for MultiBinary. Another number is a ValueError: a penalty for logits (0:
    allowed, -inf: not) means the contrary of a mask."""
    views = list(array)
    binary = isinstance(action, gym_spaces.MultiBinary)
    shape = array.shape[1:]

    def write(i: int, mask: Any) -> None:
        view = views[i]
        if mask is None:
            view[...] = True
        elif binary:
            free = np.asarray(mask).reshape(-1)
            view[0::2] = free != 1
            view[1::2] = free != 0
            odd = view[0::2] & view[1::2] & (free != 2)
            if odd.any():
                raise ValueError(f"a mask of MultiBinary actions is of 0, 1 and 2, not {free[odd][0]}")
        else:
            flat = (
                np.concatenate([np.reshape(m, -1) for m in mask]) if isinstance(mask, tuple | list) else mask
            )
            given = np.reshape(np.asarray(flat), shape)
            np.not_equal(given, 0, out=view)
            if (view != given).any():
                raise ValueError(f"a mask is of 0 and 1, not {given[view != given][0]}")

    return write
