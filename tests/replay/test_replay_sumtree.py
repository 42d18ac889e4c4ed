"""The sum tree against plain sums and searches, and what it draws against the priorities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_histories import chi_square

from shoal.keys import bits, key_for
from shoal.replay import sumtree

few = settings(max_examples=25, deadline=None, derandomize=True)
pytestmark = pytest.mark.as_in_use  # what rounds how is the matter here
updated = jax.jit(sumtree.update, donate_argnums=0)
sampled = jax.jit(sumtree.sample)
repaired = jax.jit(sumtree.repair, static_argnums=2)


def built(leaves: np.ndarray) -> np.ndarray:
    tree = sumtree.zeros(len(leaves), np)
    tree = sumtree.put_leaves(tree, np.arange(len(leaves)), leaves.astype(np.float32))
    return sumtree.rebuild(tree, len(tree) // 2)


def whole(tree: np.ndarray) -> bool:
    """Whether each parent is exactly left + right, one float32 addition."""
    size = len(tree) // 2
    return bool((tree[1:size] == tree[2 : 2 * size : 2] + tree[3 : 2 * size : 2]).all()) and tree[0] == 0


@few
@given(seed=st.integers(0, 10**6), units=st.sampled_from([1, 5, 64, 300]), n=st.sampled_from([1, 30, 400]))
def test_updates_keep_every_sum(seed: int, units: int, n: int) -> None:
    """Duplicates, unchosen ones, and more updates than leaves included."""
    rng = np.random.default_rng(seed)
    leaves = rng.exponential(size=units).astype(np.float32)
    tree = built(leaves)
    on_device = jnp.array(tree)
    for _ in range(3):
        index, values = rng.integers(0, units, n), rng.exponential(size=n).astype(np.float32)
        chosen = rng.random(n) < 0.8
        for i in np.unique(index[chosen]):
            leaves[i] = values[chosen & (index == i)].max()
        tree = sumtree.update(tree, index, values, chosen)
        on_device = updated(on_device, index.astype(np.int32), values, chosen)
        np.testing.assert_array_equal(sumtree.leaves(tree, np.arange(units)), leaves)
        np.testing.assert_array_equal(tree, on_device)
        assert whole(tree)
    np.testing.assert_allclose(sumtree.total(tree), leaves.astype(np.float64).sum(), rtol=1e-5)


@few
@given(
    seed=st.integers(0, 10**6),
    units=st.sampled_from([90, 256]),
    count=st.sampled_from([1, 2, 33, 90]),
    data=st.data(),
)
def test_a_repair_mends_what_lies_above_a_range(
    seed: int, units: int, count: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    tree = built(rng.exponential(size=units))
    start = data.draw(st.integers(0, units - count))
    new = rng.exponential(size=count).astype(np.float32)
    tree = sumtree.put_leaves(tree, start + np.arange(count), new)
    on_device = jnp.array(tree)
    assert whole(sumtree.repair(tree, start, count))
    np.testing.assert_array_equal(repaired(on_device, np.int32(start), count), tree)


@few
@given(
    seed=st.integers(0, 10**6),
    units=st.sampled_from([1, 7, 200]),
    n=st.sampled_from([1, 6, 64]),
    zeros=st.floats(0, 0.95),
)
def test_draws_are_those_of_a_search_in_the_running_sum(seed: int, units: int, n: int, zeros: float) -> None:
    """With whole numbers as priorities no sum is rounded, and a draw is a binary search; each stratum of the
    sum gives one, and no unit of priority 0 is drawn."""
    rng = np.random.default_rng(seed)
    leaves = rng.integers(1, 50, units) * (rng.random(units) >= zeros)
    leaves[rng.integers(units)] += 1
    tree = built(leaves)
    word, more = bits(key_for(seed, "x"), 2 * 5 * n).reshape(2, 5, n)
    drawn, priority, sum_ = sumtree.sample(tree, word, more)
    for on_device, on_host in zip(sampled(jnp.array(tree), word, more), (drawn, priority, sum_), strict=True):
        assert (np.asarray(on_device) == on_host).all()
    assert sum_ == leaves.sum() and (leaves[drawn] == priority).all() and (priority > 0).all()
    total, stratum = leaves.sum(), np.arange(n)
    ends = np.cumsum(leaves)
    # The number drawn lies within its stratum, whose ends are whole multiples of total / 2^23 or finer.
    grain = 2.0**-22
    lowest = np.searchsorted(ends, np.maximum(stratum / n - grain, 0) * total, side="right")
    highest = np.searchsorted(ends, np.minimum((stratum + 1) / n + grain, 1) * total, side="left")
    assert (drawn >= lowest).all() and (drawn <= highest).all()


def test_draws_are_in_proportion() -> None:
    """1000 units whose priorities differ a hundredfold, 400,000 draws one at a time."""
    leaves = np.random.default_rng(0).uniform(0.01, 1, 1000).astype(np.float32)
    leaves[::7] = 0
    word, more = bits(key_for(0, "chi"), 800_000).reshape(2, 400_000, 1)
    drawn = sumtree.sample(built(leaves), word, more)[0].ravel()
    assert abs(chi_square(leaves / leaves.sum() * drawn.size, np.bincount(drawn, minlength=1000))) < 3


def test_small_priorities_of_a_large_tree_are_drawn_as_often_as_they_should() -> None:
    """2^20 units, 2^16 of them with 2^-26 of the sum each, which is less than the steps of one float32."""
    leaves = np.ones(2**20, np.float32)
    leaves[2**19 :: 8] = 2.0**-6
    tree = built(leaves)
    drawn = []
    for i in range(4):
        word, more = bits(key_for(i, "small"), 2**19).reshape(2, 2**12, 2**6)
        drawn.append(sumtree.sample(tree, word, more)[0].ravel())
    small = leaves[np.concatenate(drawn)] < 1
    expected = 4 * 2**18 * 2**16 * 2.0**-6 / leaves.astype(np.float64).sum()
    assert abs(small.sum() - expected) < 4 * np.sqrt(expected)


def test_strata_cut_the_variance() -> None:
    """One draw from each of N equal parts of the sum: equal priorities are each drawn at most twice."""
    tree = built(np.ones(256))
    word, more = bits(key_for(3, "x"), 2 * 256).reshape(2, 1, 256)
    drawn = sumtree.sample(tree, word, more)[0][0]
    np.testing.assert_array_equal(drawn, np.arange(256))


def test_rounding_never_leads_to_nothing() -> None:
    """Sums of very different numbers lose their low bits; what is drawn has a priority all the same."""
    rng = np.random.default_rng(0)
    for seed in range(50):
        leaves = np.where(rng.random(64) < 0.7, 0, 10.0 ** rng.integers(-11, 11, 64)).astype(np.float32)
        leaves[rng.integers(64)] = 3e10
        tree = built(leaves)
        word = np.full((1, 64), 0xFFFFFFFF, np.uint32)  # the upper end of every stratum
        for words in (word, word * 0, *bits(key_for(seed, "x"), 256).reshape(4, 1, 64)):
            drawn = sumtree.sample(tree, words, word)[0]
            assert (leaves[drawn] > 0).all()
            np.testing.assert_array_equal(sampled(jnp.array(tree), words, word)[0], drawn)
