"""Spaces are plain data: JSON both ways, hashable, and their zeros are members in shape and dtype."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import spaces
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

FEW = settings(max_examples=50, deadline=None, derandomize=True)

bounds = st.one_of(st.sampled_from([-math.inf, math.inf, 0.0, -1.0]), st.floats(-1e30, 1e30, allow_nan=False))
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def boxes(draw: Any) -> Box:
    shape = draw(shapes)
    entries = math.prod(shape)
    bound = st.one_of(bounds, st.lists(bounds, min_size=entries, max_size=entries).map(tuple))
    dtype = draw(st.sampled_from(["float32", "float64", "uint8", "int32"]))
    return Box(shape, draw(bound), draw(bound), dtype)


choices = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
simple = st.one_of(
    boxes(),
    st.builds(Discrete, st.integers(1, 100), st.integers(-5, 5)),
    st.builds(MultiDiscrete, choices),
    choices.flatmap(
        lambda n: st.builds(
            MultiDiscrete,
            st.just(n),
            st.lists(st.integers(-3, 3), min_size=len(n), max_size=len(n)).map(tuple),
        )
    ),
    st.builds(MultiBinary, shapes),
)
every_space = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda s: Tuple(tuple(s))),
        st.dictionaries(st.text(max_size=4), inner, max_size=3).map(Dict.of),
    ),
    max_leaves=6,
)


@FEW
@given(every_space)
def test_json_and_back(space: spaces.Space) -> None:
    text = json.dumps(spaces.to_json(space), allow_nan=False)  # strict JSON: infinities are strings
    again = spaces.from_json(json.loads(text))
    assert again == space
    assert hash(again) == hash(space)
    assert json.dumps(spaces.to_json(again)) == text


@FEW
@given(every_space, st.sampled_from([(), (3,), (2, 3)]))
def test_zeros_have_the_batch_in_front_and_the_dtypes_of_observations(
    space: Any, batch: tuple[int, ...]
) -> None:
    one, many = spaces.zeros(space), spaces.zeros(space, batch)
    assert jax.tree.structure(one) == jax.tree.structure(many)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        assert isinstance(b, np.ndarray)
        assert b.shape == batch + a.shape
        assert b.dtype == a.dtype
        assert b.flags.writeable or not b.size


def test_zeros_of_discrete_spaces_are_members() -> None:
    assert spaces.zeros(Discrete(3, start=-7)) == -7
    assert spaces.zeros(MultiDiscrete((2, 3), (4, 5)), (2,)).tolist() == [[4, 5], [4, 5]]
    assert spaces.zeros(MultiDiscrete((2, 3))).tolist() == [0, 0]
    assert spaces.zeros(MultiBinary((2,))).dtype == np.int8


def test_a_dict_is_sorted_by_name_whatever_the_order_given() -> None:
    a, b = Discrete(2), Discrete(3)
    assert Dict.of({"b": b, "a": a}) == Dict.of({"a": a, "b": b}) == Dict((("a", a), ("b", b)))
    assert list(spaces.zeros(Dict.of({"b": b, "a": a}))) == ["a", "b"]


def test_bounds_are_given_once_or_for_each_entry() -> None:
    low, high = Box((2, 2), -1.0, (1.0, 2.0, 3.0, 4.0)).bounds()
    assert low.tolist() == [[-1, -1], [-1, -1]]
    assert high.tolist() == [[1, 2], [3, 4]]
    assert low.dtype == high.dtype == np.float32
    low, high = Box(()).bounds()
    assert low.shape == ()
    assert math.isinf(high)


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ValueError, match="unknown space type 'Graph'"):
        spaces.from_json({"type": "Graph"})
    with pytest.raises(ValueError, match="unknown space type None"):
        spaces.from_json({})
