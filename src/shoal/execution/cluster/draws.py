"""A draw of minibatches from several replay shards: how many rows each gives, their answers side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from shoal.execution.cluster.shards import Drawn
from shoal.keys import fold, uniform
from shoal.types import Key


@dataclass
class Draw:
    """K minibatches from all shards. parts: of each shard that was asked, None until it answers."""

    counts: dict[int, dict[int, int]]
    lives: dict[int, int]
    parts: dict[int, Drawn | None]

    @property
    def whole(self) -> bool:
        return all(part is not None for part in self.parts.values())

    def minibatches(self) -> Any:
        """Transitions or Sequences, leaves [K, N, ...]: shards side by side in order."""
        parts = [part.minibatches for part in self.parts.values() if part is not None]
        if len(parts) == 1:
            return parts[0]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def divided(key: Key, mass: np.ndarray, n: int) -> np.ndarray:
    """How many of n draws each part gets, in proportion to mass [G] (not negative, not all 0): int64 [G].

    One point is drawn in each of n equal stretches of the sum, so that a part's count is its expected one
    rounded up or down, more or less, and that on average exactly.
    """
    points = (np.arange(n) + np.asarray(uniform(fold(key, 0xD1CE), n), np.float64)) / n
    bounds = np.cumsum(np.asarray(mass, np.float64))
    part = np.searchsorted(bounds / bounds[-1], points, side="right")
    last = int(np.flatnonzero(mass)[-1])
    return np.bincount(np.minimum(part, last), minlength=len(mass))
