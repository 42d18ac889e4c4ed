"""Gradients on their way: what arrives, and what is made up for later."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.execution.parameter_server.compression import Compressor, bytes_of, unpacked

QUICK = settings(deadline=None, derandomize=True, max_examples=25)


def vectors(seed: int, sizes: tuple[int, ...] = (100, 37)) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=n).astype(np.float32) for n in sizes]


def test_without_compression_nothing_changes() -> None:
    given = vectors(0)
    packed = Compressor("none", 0.5)(given)
    assert sum(map(bytes_of, packed)) == 4 * 137
    for one, vector in zip(packed, given, strict=True):
        np.testing.assert_array_equal(unpacked(one), vector)


def test_bfloat16_takes_half_and_rounds() -> None:
    given = vectors(1)
    packed = Compressor("bfloat16", 0.5)(given)
    assert sum(map(bytes_of, packed)) == 2 * 137
    for one, vector in zip(packed, given, strict=True):
        np.testing.assert_allclose(unpacked(one), vector, rtol=2**-8)


@QUICK
@given(st.floats(0.001, 1.0), st.integers(1, 12), st.integers(0, 99))
def test_what_top_k_leaves_out_comes_later(keep: float, rounds: int, seed: int) -> None:
    pack = Compressor("top-k", keep)
    sent = [np.zeros(100), np.zeros(37)]
    given = [np.zeros(100), np.zeros(37)]
    for n in range(rounds):
        new = vectors(seed + n)
        for s, packed in enumerate(pack(new)):
            arrived = unpacked(packed)
            assert np.count_nonzero(arrived) <= max(1, round(keep * arrived.size))
            sent[s] += arrived
            given[s] += new[s]
    for s in range(2):
        np.testing.assert_allclose(sent[s] + pack.left[s], given[s], atol=1e-4)
        if keep == 1.0:
            np.testing.assert_allclose(sent[s], given[s], atol=1e-4)


@pytest.mark.parametrize("keep", [0.01, 0.2])
def test_top_k_takes_the_largest(keep: float) -> None:
    (vector,) = vectors(3, (50,))
    (packed,) = Compressor("top-k", keep)([vector])
    arrived = unpacked(packed)
    count = max(1, round(keep * 50))
    places = np.argsort(-np.abs(vector))[:count]
    np.testing.assert_array_equal(np.flatnonzero(arrived), np.sort(places))
    assert bytes_of(packed) == 8 * count
