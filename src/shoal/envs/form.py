"""What `reset` and `step` of a Gymnasium environment must give; where they give something else, in what."""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal.errors import ShoalError


def check_reset(result: Any, name: str) -> None:
    """Raise where `reset` gave no observation and info."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise ShoalError(f"{name}: reset must give (observation, info dict), not {form(result)}")


def check_step(result: Any, name: str, step: str = "this step") -> None:
    """Raise where `step` gave other than five things, or a reward or flags that are none."""
    if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], dict)):
        raise ShoalError(
            f"{name}: step must give (observation, reward, terminated, truncated, info dict), "
            f"not {form(result)}"
        )
    _, reward, terminated, truncated, _ = result
    if np.ndim(reward) or np.asarray(reward).dtype.kind not in "fiub":
        raise ShoalError(f"{name}: the reward of {step} must be one number, not {form(reward)}")
    if not np.isfinite(reward):
        raise ShoalError(f"{name}: the reward of {step} is {reward}")
    for word, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            raise ShoalError(f"{name}: {word} of {step} must be a bool, not {form(flag)}")


def check_observation(space: Any, value: Any, what: str, *, exactly: bool = True) -> None:
    """Raise where `value` is no member of the Gymnasium space, and say in what.

    Not exactly: numbers may have another dtype than the space says, where its own can hold them, and those of
    a Box may lie out of its bounds.
    """
    parts = getattr(space, "spaces", None)
    if parts is not None:
        named = parts.items() if hasattr(parts, "items") else enumerate(parts)
        form_of = dict if hasattr(parts, "items") else (tuple if exactly else tuple | list)
        if not isinstance(value, form_of) or (exactly and len(value) != len(parts)):
            raise ShoalError(f"{what} is {form(value)}, but its space is {space}")
        for key, part in named:
            if (key not in value) if isinstance(value, dict) else key >= len(value):
                raise ShoalError(f"{what} has no entry {key!r}, but its space has")
            check_observation(part, value[key], f"{what}[{key!r}]", exactly=exactly)
        return
    array = np.asarray(value)
    if array.shape != tuple(space.shape):
        raise ShoalError(f"{what} has shape {array.shape}, its space says {tuple(space.shape)}")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise ShoalError(f"{what} holds {array[~np.isfinite(array)].flat[0]}")
    if not hasattr(space, "low"):  # not a box
        if array.dtype.kind not in "iub" or not space.contains(value):
            raise ShoalError(f"{what} leaves its space: {array.tolist()} is not in {space}")
        return
    floating = np.dtype(space.dtype).kind == "f"
    if array.dtype != space.dtype and (exactly or array.dtype.kind not in ("biuf" if floating else "biu")):
        raise ShoalError(f"{what} has dtype {array.dtype}, its space says {space.dtype}")
    if exactly:
        outside = (array < space.low) | (array > space.high)
    else:
        outside = np.zeros(array.shape, bool) if floating else array.astype(space.dtype) != array
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        where = f" at index {list(index)}" if index else ""
        raise ShoalError(
            f"{what} leaves its space: {array[index]}{where} is not in "
            f"[{space.low[index]}, {space.high[index]}]"
        )


def form(thing: Any) -> str:
    """What a thing is, in words."""
    if isinstance(thing, tuple):
        return f"({', '.join(type(x).__name__ for x in thing)})"
    if isinstance(thing, np.ndarray):
        return f"an array of shape {thing.shape}"
    return f"{thing!r} ({type(thing).__name__})"
