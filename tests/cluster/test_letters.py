"""What travels as bytes arrives as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.execution.cluster import letters
from shoal.execution.cluster.letters import opened, pieces, sealed, together


@given(st.binary(max_size=200), st.integers(1, 70))
def test_pieces_are_bounded_and_make_the_letter_again(letter: bytes, most: int) -> None:
    parts = pieces(letter, most)
    assert parts and all(len(part) <= most for part in parts)
    assert together(parts) == letter


def test_what_is_no_bytes_stays_as_it_is() -> None:
    thing: Any = object()
    assert together((thing,)) is thing and opened(thing) is thing


def test_a_tree_of_arrays_is_sealed_unless_it_is_large() -> None:
    small = {"weight": np.arange(6.0).reshape(2, 3), "none": None}
    letter = sealed(small)
    assert isinstance(letter, bytes)
    again = opened(together(pieces(letter, 7)))
    np.testing.assert_array_equal(again["weight"], small["weight"], strict=True)
    large = {"weight": np.zeros(letters.MOST // 8 + 1)}
    assert sealed(large) is large
