"""What `check_env` asks of a group of environments, and of the types that everything declares."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from shoal.envs import Source
from shoal.errors import ShoalError
from shoal.execution.unroll import zero_observation
from shoal.keys import fold, key_for
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, choices
from shoal.testing.tiny import allowed, sample
from shoal.types import EnvSpec, Group, Observation, Step

_SIZE = 3


def check_group(source: Source, length: int) -> int:
    """Play a group for `length` rows, save it half-way, and continue it in another one.

    Returns the number of real steps.
    """
    spec, group = source.spec, source.make_group(0, 0, _SIZE)
    saved, sent, rows = None, [], []
    steps = 0
    try:
        step = _copy(group.current())
        _check_step(spec, step, None)
        for t in range(length):
            if t == length // 2:
                saved = jax.tree.map(np.array, group.save())
            action = _random_action(spec, step.obs.mask, t)
            after = _copy(group.step(action))
            _check_step(spec, after, step)
            steps += int((~after.first).sum())
            if t >= length // 2:
                sent.append(action)
                rows.append(after)
            step = after
        # A group of pure functions is compiled when it is made: there the same one serves again.
        if source.journal != "state":
            group.close()
            group = source.make_group(0, 0, _SIZE)
        _check_continues(group, saved, sent, rows, spec.id)
    finally:
        group.close()
    return steps


def _check_continues(group: Group, saved: Any, sent: list[Any], rows: list[Step], name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # "could not be rebuilt"
        try:
            group.load(saved)
        except RuntimeWarning as warning:
            raise ShoalError(f"{name}: a saved group can't be continued: {warning}") from warning
    for t, (action, row) in enumerate(zip(sent, rows, strict=True)):
        again = _copy(group.step(action))
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(row), strict=True):
            if not np.array_equal(one, other):
                raise ShoalError(f"{name}: a saved group, loaded again, plays differently {t + 1} rows later")


def _copy(step: Step) -> Step:
    return jax.tree.map(np.array, step)


def _check_step(spec: EnvSpec, step: Step, before: Step | None) -> None:
    """Raise where one row of a group breaks the convention for time, or its arrays the specification."""
    name = spec.id
    check_types(spec, step.obs, f"{name}: the observation of a group", (_SIZE,))
    for word, array, dtype in (
        ("reward", step.reward, np.float32),
        ("terminated", step.terminated, bool),
        ("first", step.first, bool),
    ):
        if array.shape != (_SIZE,) or array.dtype != dtype:
            raise ShoalError(f"{name}: `{word}` of a group must be {np.dtype(dtype)}[{_SIZE}]")
    if before is None and not step.first.all():
        raise ShoalError(f"{name}: a group's first row must be marked `first`")
    if before is not None and not step.first[before.terminated].all():
        raise ShoalError(f"{name}: the row after a termination must be a reset")
    if step.reward[step.first].any() or step.terminated[step.first].any():
        raise ShoalError(
            f"{name}: a row that only resets has reward 0 and is not terminated; "
            "this one stepped and reset at once"
        )
    _check_inside(spec.observation, step.obs.policy, f"{name}: the observation of a group")
    if before is not None and before.obs.mask is not None:
        mask = before.obs.mask[~step.first]  # of the rows that were acted from
        ends = np.cumsum(choices(spec.action))
        for end, n in zip(ends, choices(spec.action), strict=True):
            if not mask[:, end - n : end].any(1).all():
                raise ShoalError(f"{name}: an action mask allows nothing")


def _check_inside(space: Space, value: Any, what: str) -> None:
    """Raise where arrays [B, ...] leave a `shoal.spaces` space, or are not finite."""
    match space:
        case Tuple():
            for s, v in zip(space.spaces, value, strict=True):
                _check_inside(s, v, what)
        case Dict():
            for name, s in space.spaces:
                _check_inside(s, value[name], f"{what}[{name!r}]")
        case _:
            low, high = limits(space)
            if not ((value >= low) & (value <= high) & np.isfinite(value)).all():
                raise ShoalError(f"{what} leaves its space: it holds {value.min()} to {value.max()}")


def limits(space: Space) -> tuple[Any, Any]:
    match space:
        case Box():
            return space.bounds()
        case Discrete():
            return space.start, space.start + space.n - 1
        case MultiDiscrete():
            start = np.asarray(space.start or (0,) * len(space.nvec))
            return start, start + np.asarray(space.nvec) - 1
        case MultiBinary():
            return 0, 1
    raise TypeError(space)


def _random_action(spec: EnvSpec, mask: Any, t: int) -> Any:
    """One action [B, ...] for each row, allowed by the mask if there is one."""
    keys = fold(key_for(0, "check_env", t), np.arange(_SIZE))
    if mask is None:
        return sample(spec.action, keys)
    return allowed(spec.action, mask, keys)


def check_types(spec: EnvSpec, obs: Any, what: str, batch: tuple[int, ...]) -> None:
    """Raise where an Observation's arrays have not the specification's structure, shapes and dtypes."""
    if not isinstance(obs, Observation):
        raise ShoalError(f"{what} must be a shoal.types.Observation, not {type(obs).__name__}")
    wanted = zero_observation(spec, batch)
    if jax.tree.structure(obs) != jax.tree.structure(wanted):
        raise ShoalError(
            f"{what} has the structure {jax.tree.structure(obs)}, the specification says "
            f"{jax.tree.structure(wanted)}"
        )
    for (path, one), other in zip(
        jax.tree_util.tree_flatten_with_path(obs)[0], jax.tree.leaves(wanted), strict=True
    ):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise ShoalError(
                f"{what}: {jax.tree_util.keystr(path)} is {one.dtype}{list(one.shape)}, the specification "
                f"says {other.dtype}{list(other.shape)}"
            )
