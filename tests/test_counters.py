"""Counts that go past 2^31 and 2^32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import counters

EDGES = [0, 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**48]
integers = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**62))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(integers, integers)
def test_adding_is_adding(a: int, b: int) -> None:
    total = counters.add(counters.add(counters.zero(), a), b)
    assert counters.value(total) == a + b
    np.testing.assert_allclose(float(counters.as_float(total)), a + b, rtol=2e-7)


def test_steps_are_counted_past_every_limb_inside_compiled_code() -> None:
    start = 2**32 - 1000
    add = jax.jit(lambda c, n: jax.lax.fori_loop(0, 300, lambda _, c: counters.add(c, n), c))
    for n in (jnp.int32(7), jnp.uint32(7), np.int32(7), jnp.uint8(7)):
        total = add(counters.add(counters.zero(), start), n)
        assert counters.value(total) == start + 2100
        assert total.low.dtype == total.high.dtype == jnp.uint32
        assert not total.low.weak_type
        assert not total.high.weak_type
    assert counters.value(counters.add(counters.zero(), jnp.int32(2**31 - 1))) == 2**31 - 1
    assert counters.value(counters.add(counters.zero(), jnp.uint32(2**32 - 1))) == 2**32 - 1


def test_a_counter_from_a_checkpoint_is_numpy_and_counts_on() -> None:
    saved = jax.tree.map(np.asarray, counters.add(counters.zero(), 2**32 - 1))
    assert counters.value(counters.add(saved, 1)) == 2**32


def test_what_is_no_count_is_refused() -> None:
    with pytest.raises(ValueError, match="not -1"):
        counters.add(counters.zero(), -1)
    with pytest.raises(ValueError, match=r"0 <= n < 2\^64"):
        counters.add(counters.zero(), 2**64)
    with pytest.raises(TypeError, match="float32"):
        counters.add(counters.zero(), jnp.float32(3))


def test_as_float_does_not_go_negative() -> None:
    assert float(counters.as_float(counters.add(counters.zero(), 3 * 2**30))) == 3 * 2.0**30
