"""One action distribution for each kind of action space, action masks included.

A distribution is a record of pure functions of `logits`, the numbers that a policy gives: `outputs` from
its head and then `free` learned constants (the log standard deviations of a Gaussian). A *raw* action is
what is sampled and learned from; `to_env` makes of it what the environment gets, always inside its space.
All take any leading axes; `sample` takes one key for each row, so that a row depends on its own key alone.

Masks: a forbidden action has probability exactly 0 and the finite log-probability `FORBIDDEN`, so that
0 * log_prob is 0 and not NaN. A choice whose actions are all forbidden counts as unmasked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.choices import highest, of_action, some_allowed
from shoal.errors import ShoalError
from shoal.keys import fold, gumbel, normal
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from shoal.types import Action, Array, Key

FORBIDDEN = -1e8  # exp of it is 0 in float32, and sums of a few stay exact enough to subtract

Raw = Any  # array, or the same nesting of tuples and dicts as the action space
Mask = Any  # bool [..., A] as `types.Observation` says; nested like the space for Dict and Tuple; or None


@dataclass(frozen=True, kw_only=True)
class ActionDistribution:
    """Functions of logits [..., outputs + free], and how wide these are.

    sample: (keys uint32 [..., 2], logits, mask) -> raw. mode: (logits, mask) -> raw, the likeliest.
    log_prob: (logits, mask, raw) -> float32 [...]. entropy: (logits, mask) -> float32 [...], in nats.
    to_env: raw -> action. raw is int32 [...] for Discrete, int32 [..., k] for MultiDiscrete and
    MultiBinary (counted from 0), float32 [..., d] for Box, nested for Dict and Tuple.

    The density of a Box is that of the raw action, before it is scaled and clipped.
    """

    outputs: int
    free: int
    sample: Callable[[Key, Array, Mask], Raw]
    mode: Callable[[Array, Mask], Raw]
    log_prob: Callable[[Array, Mask, Raw], jax.Array]
    entropy: Callable[[Array, Mask], jax.Array]
    to_env: Callable[[Raw], Action]


def distribution_for(space: Space) -> ActionDistribution:
    """The distribution of an action space. Raises ShoalError for a space that has none."""
    match space:
        case Discrete():
            return _discrete(space)
        case MultiDiscrete():
            start = np.asarray(space.start or (0,) * len(space.nvec), np.int32)
            return _choices(space.nvec, lambda raw: raw + start)
        case MultiBinary():
            return _choices(
                (2,) * math.prod(space.shape),
                lambda raw: raw.astype(jnp.int8).reshape(*raw.shape[:-1], *space.shape),
            )
        case Box():
            return _gaussian(space)
        case Tuple():
            return _joint([(i, distribution_for(s)) for i, s in enumerate(space.spaces)], tuple)
        case Dict():
            names = [name for name, _ in space.spaces]
            return _joint(
                [(name, distribution_for(s)) for name, s in space.spaces],
                lambda parts: dict(zip(names, parts, strict=True)),
            )


def _as_bool(mask: Array, logits: jax.Array) -> jax.Array:
    mask = jnp.asarray(mask)
    if mask.shape != logits.shape:
        raise ShoalError(f"an action mask of shape {mask.shape} does not fit logits of shape {logits.shape}")
    return mask.astype(jnp.bool_)


def _mask_out(logits: jax.Array, allowed: jax.Array | None) -> jax.Array:
    return logits if allowed is None else jnp.where(allowed, logits, FORBIDDEN)


def _log_probabilities(logits: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """[..., A] -> [..., A]; FORBIDDEN, exactly, where not allowed."""
    return _mask_out(jax.nn.log_softmax(_mask_out(logits, allowed), axis=-1), allowed)


def _entropy(log_p: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _discrete(space: Discrete) -> ActionDistribution:
    """A categorical distribution (Gumbel-max sampling: argmax of logits plus Gumbel noise)."""

    def prepared(logits: Array, mask: Mask) -> tuple[jax.Array, jax.Array | None]:
        logits = jnp.asarray(logits)
        return logits, None if mask is None else some_allowed(_as_bool(mask, logits))

    def masked(logits: Array, mask: Mask) -> jax.Array:
        return _mask_out(*prepared(logits, mask))

    def log_p(logits: Array, mask: Mask) -> jax.Array:
        return _log_probabilities(*prepared(logits, mask))

    return ActionDistribution(
        outputs=space.n,
        free=0,
        sample=lambda key, logits, mask: highest(masked(logits, mask) + gumbel(key, space.n)),
        mode=lambda logits, mask: highest(masked(logits, mask)),
        log_prob=lambda logits, mask, raw: of_action(log_p(logits, mask), raw, axis=-1),
        entropy=lambda logits, mask: _entropy(log_p(logits, mask)),
        to_env=lambda raw: raw + np.int32(space.start),
    )


def _choices(nvec: Sequence[int], to_env: Callable[[Any], Action]) -> ActionDistribution:
    """Independent categorical distributions, their logits side by side: [..., sum(nvec)].

    Inside, the choices are rows of one table [..., k, max(nvec)] whose unused places are never allowed.
    """
    count, widest = len(nvec), max(nvec)
    ends = np.cumsum(nvec)
    valid = np.arange(widest) < np.asarray(nvec)[:, None]
    uneven = None if valid.all() else valid

    def table(x: jax.Array) -> jax.Array:
        if uneven is None:
            return x.reshape(*x.shape[:-1], count, widest)
        pad = [(0, 0)] * (x.ndim - 1)
        parts = [
            jnp.pad(x[..., end - n : end], [*pad, (0, widest - n)]) for n, end in zip(nvec, ends, strict=True)
        ]
        return jnp.stack(parts, axis=-2)

    def prepared(logits: Array, mask: Mask) -> tuple[jax.Array, jax.Array | None]:
        logits = jnp.asarray(logits)
        rows = table(logits)
        if mask is None:
            return rows, None if uneven is None else jnp.broadcast_to(uneven, rows.shape)
        allowed = some_allowed(table(_as_bool(mask, logits)))
        return rows, allowed if uneven is None else allowed & uneven

    def sample(key: Key, logits: Array, mask: Mask) -> jax.Array:
        scores = _mask_out(*prepared(logits, mask))
        return highest(scores + gumbel(key, count * widest).reshape(scores.shape))

    return ActionDistribution(
        outputs=int(ends[-1]),
        free=0,
        sample=sample,
        mode=lambda logits, mask: highest(_mask_out(*prepared(logits, mask))),
        log_prob=lambda logits, mask, raw: jnp.sum(
            of_action(_log_probabilities(*prepared(logits, mask)), raw, axis=-1), axis=-1
        ),
        entropy=lambda logits, mask: jnp.sum(_entropy(_log_probabilities(*prepared(logits, mask))), axis=-1),
        to_env=to_env,
    )


def _gaussian(space: Box) -> ActionDistribution:
    """Independent Gaussians whose log standard deviations do not depend on the observation.

    Where an entry is bounded on both sides, raw -1 ... 1 becomes low ... high, clipped. Where it is
    bounded on one side, raw is clipped there; elsewhere it is the action itself.
    """
    if not np.issubdtype(np.dtype(space.dtype), np.floating):
        raise ShoalError(f"a Box of {space.dtype} is no continuous action; use MultiDiscrete for integers")
    size = math.prod(space.shape)
    low, high = (bound.reshape(size) for bound in _inside(space))
    two_sided = np.isfinite(low) & np.isfinite(high)
    floor, ceiling = np.where(two_sided, low, 0.0), np.where(two_sided, high, 0.0)

    def split(logits: Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
        if mask is not None:
            raise ShoalError("a Box has no action mask; masks are for discrete actions")
        logits = jnp.asarray(logits)
        return logits[..., :size], logits[..., size:]

    def sample(key: Key, logits: Array, mask: Mask) -> jax.Array:
        mean, log_std = split(logits, mask)
        return mean + jnp.exp(log_std) * normal(key, size)

    def log_prob(logits: Array, mask: Mask, raw: Raw) -> jax.Array:
        mean, log_std = split(logits, mask)
        z = (raw - mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * z * z - log_std - 0.5 * math.log(2.0 * math.pi), axis=-1)

    def entropy(logits: Array, mask: Mask) -> jax.Array:
        return jnp.sum(split(logits, mask)[1] + 0.5 * math.log(2.0 * math.pi * math.e), axis=-1)

    def to_env(raw: Raw) -> Action:
        raw = jnp.asarray(raw)
        share = jnp.clip(0.5 * raw + 0.5, 0.0, 1.0)
        # Weighing both bounds, instead of low + share * (high - low), can't overflow.
        scaled = floor * (1.0 - share) + ceiling * share
        action = jnp.clip(jnp.where(two_sided, scaled, raw), low, high)
        return action.reshape(*raw.shape[:-1], *space.shape)

    return ActionDistribution(
        outputs=size,
        free=size,
        sample=sample,
        mode=lambda logits, mask: split(logits, mask)[0],
        log_prob=log_prob,
        entropy=entropy,
        to_env=to_env,
    )


def _inside(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """The bounds as float32, moved inwards where rounding would leave the space: its environment may hold
    them as float64, whatever the dtype here."""
    low, high = space.bounds()
    exact_low, exact_high = (np.asarray(x, np.float64).reshape(-1) for x in (space.low, space.high))
    below = low.reshape(-1) < exact_low
    above = high.reshape(-1) > exact_high
    low = np.where(below.reshape(low.shape), np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(above.reshape(high.shape), np.nextafter(high, np.float32(-np.inf)), high)
    return np.minimum(low, high), high


def _joint(
    parts: Sequence[tuple[Any, ActionDistribution]], nest: Callable[[Sequence[Any]], Any]
) -> ActionDistribution:
    """Independent distributions side by side: logits are all their outputs, then all their free constants."""
    if not parts:
        raise ShoalError("an action space must hold at least one space")
    names = [name for name, _ in parts]
    dists = [dist for _, dist in parts]
    outputs, free = sum(d.outputs for d in dists), sum(d.free for d in dists)
    heads = np.cumsum([0] + [d.outputs for d in dists])
    tails = outputs + np.cumsum([0] + [d.free for d in dists])

    def shares(logits: Array) -> list[jax.Array]:
        logits = jnp.asarray(logits)
        pieces = []
        for i, dist in enumerate(dists):
            piece = logits[..., heads[i] : heads[i + 1]]
            if dist.free:
                piece = jnp.concatenate([piece, logits[..., tails[i] : tails[i + 1]]], axis=-1)
            pieces.append(piece)
        return pieces

    def masks(mask: Mask) -> list[Mask]:
        if mask is None:
            return [None] * len(dists)
        return [mask.get(name) if isinstance(mask, dict) else mask[name] for name in names]

    def each(logits: Array, mask: Mask) -> list[tuple[ActionDistribution, jax.Array, Mask]]:
        return list(zip(dists, shares(logits), masks(mask), strict=True))

    def sample(key: Key, logits: Array, mask: Mask) -> Raw:
        own = fold(key[..., None, :], np.arange(len(dists)))
        return nest([d.sample(own[..., i, :], x, m) for i, (d, x, m) in enumerate(each(logits, mask))])

    def log_prob(logits: Array, mask: Mask, raw: Raw) -> jax.Array:
        parts = zip(names, each(logits, mask), strict=True)
        return sum_of([d.log_prob(x, m, raw[name]) for name, (d, x, m) in parts])

    def sum_of(terms: Sequence[jax.Array]) -> jax.Array:
        return jnp.sum(jnp.stack(terms), axis=0)

    return ActionDistribution(
        outputs=outputs,
        free=free,
        sample=sample,
        mode=lambda logits, mask: nest([d.mode(x, m) for d, x, m in each(logits, mask)]),
        log_prob=log_prob,
        entropy=lambda logits, mask: sum_of([d.entropy(x, m) for d, x, m in each(logits, mask)]),
        to_env=lambda raw: nest([d.to_env(raw[name]) for name, d in zip(names, dists, strict=True)]),
    )
