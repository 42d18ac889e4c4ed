"""Gradients made smaller for their way to the shards.

none: float32.  bfloat16: half of that, rounded to 8 bits of precision.  top-k: only the largest numbers; what
is left out is kept here and added to the next gradient (error feedback: Stich et al. 2018, "Sparsified SGD
with memory", algorithm 1), so that it comes later, and is lost only with the worker that keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np


class Sparse(NamedTuple):
    """A vector [size] that is 0 but for values float32 [k] at places int32 [k]."""

    size: int
    places: np.ndarray
    values: np.ndarray


Packed = np.ndarray | Sparse  # uint16: the upper half of float32


def bytes_of(packed: Packed) -> int:
    """What it takes on the way."""
    return packed.places.nbytes + packed.values.nbytes if isinstance(packed, Sparse) else packed.nbytes


def unpacked(packed: Packed) -> np.ndarray:
    """The vector again: float32 [n]."""
    if isinstance(packed, Sparse):
        vector = np.zeros(packed.size, np.float32)
        vector[packed.places] = packed.values
        return vector
    if packed.dtype == np.uint16:
        return packed.view(ml_dtypes.bfloat16).astype(np.float32)
    return packed


class Compressor:
    """Packs one worker's gradients, one after another. keep: with top-k, the share of the numbers that travel
    (at least one of each vector)."""

    def __init__(self, kind: str, keep: float) -> None:
        self._kind, self._keep = kind, keep
        self.left: list[np.ndarray] = []  # what was left out so far

    def __call__(self, vectors: Sequence[np.ndarray]) -> list[Packed]:
        """vectors: a gradient's shares, float32 [n] each, always the same shards'."""
        match self._kind:
            case "bfloat16":
                return [v.astype(ml_dtypes.bfloat16).view(np.uint16) for v in vectors]
            case "top-k":
                self.left = self.left or [np.zeros_like(v) for v in vectors]
                return [self._largest(v, left) for v, left in zip(vectors, self.left, strict=True)]
        return list(vectors)

    def _largest(self, vector: np.ndarray, left: np.ndarray) -> Sparse:
        left += vector
        count = max(1, round(self._keep * left.size))
        places = np.argpartition(np.abs(left), -count)[-count:].astype(np.int32)
        values = left[places].copy()
        left[places] = 0.0
        return Sparse(left.size, places, values)
