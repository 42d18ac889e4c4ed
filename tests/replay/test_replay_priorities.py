"""How likely rows are drawn: priorities against a plain dict of them, frequencies against the priorities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_histories import History, chi_square, history, layout, transitions

from shoal.keys import key_for
from shoal.replay import Layout, Memory, draw, empty, insert, reprioritize, stored, sumtree

few = settings(max_examples=25, deadline=None, derandomize=True)


def after(shape: Layout, past: History, fragments: int) -> Memory:
    memory = empty(shape, past.fragment(0, shape.fragment), np)
    for i in range(fragments):
        memory = insert(shape, memory, past.fragment(i * shape.fragment, shape.fragment))
    return memory


def priorities(shape: Layout, memory: Memory) -> np.ndarray:
    return sumtree.leaves(memory.priorities.tree, np.arange(shape.units))


@few
@given(
    seed=st.integers(0, 10**6),
    envs=st.integers(1, 3),
    rows=st.integers(1, 4),
    frames=st.sampled_from([1, 3]),
    fragments=st.integers(2, 30),
)
def test_priorities_are_those_of_a_plain_dict(
    seed: int, envs: int, rows: int, frames: int, fragments: int
) -> None:
    """New rows get the highest ever given, learned ones what was given last, lost ones nothing."""
    shape = layout(envs, frames, rows=rows, capacity=12 * envs, prioritized=True)
    past, rng = history(seed, fragments * rows, envs, frames), np.random.default_rng(seed)
    memory, kept, top = after(shape, past, 0), {}, np.float32(1)
    for i in range(fragments):
        memory = insert(shape, memory, past.fragment(i * rows, rows))
        now = transitions(shape, past, (i + 1) * rows)
        new = {((i * rows + t) % shape.rows) * envs + b for t in range(rows) for b in range(envs)}
        kept = {index: top if index in new else kept[index] for index in now}
        drawn = draw(shape, memory, key_for(seed, "x", i), 3, 4)
        assert set(drawn.index.ravel()) <= set(kept)
        values = (10.0 ** rng.uniform(-3, 3, (3, 4))).astype(np.float32)
        values[rng.random((3, 4)) < 0.1] = np.nan
        count = int(rng.integers(0, 4))
        memory = reprioritize(shape, memory, drawn.index, values, count)
        for index in np.unique(drawn.index[:count]):
            given = values[:count][drawn.index[:count] == index]
            if not np.isnan(given).all():
                kept[index] = np.nanmax(given)
                top = max(top, kept[index])
        leaves = priorities(shape, memory)
        assert {j: leaves[j] for j in np.flatnonzero(leaves)} == kept
        assert memory.priorities.top == top and stored(shape, memory) == len(kept)


def test_what_is_no_priority_becomes_one_or_changes_nothing() -> None:
    shape = layout(2, rows=4, capacity=40, prioritized=True)
    past = history(0, 12, 2, ends=0.0)
    memory = after(shape, past, 3)
    head_row = 12 * 2
    given = {3: np.nan, 4: 0.0, 5: -1.0, 6: np.inf, 7: 1e-30, 8: 2.0, head_row: 5.0}
    index = np.array([list(given)])
    memory = reprioritize(shape, memory, index, np.array([list(given.values())], np.float32), 1)
    leaves = priorities(shape, memory)
    assert leaves[list(given)].tolist() == [1.0, 2.0**-40, 2.0**-40, 2.0**40, 2.0**-40, 2.0, 0.0]
    assert memory.priorities.top == 2.0**40


@pytest.mark.parametrize("prioritized", [False, True])
def test_rows_are_drawn_as_often_as_they_should_be(prioritized: bool) -> None:
    """Uniform: each real row alike. Prioritised: in proportion, and the weight is 1 / (n * P(i)); strata make
    counts more even than chance would."""
    shape = layout(3, rows=5, capacity=600, prioritized=prioritized)
    past = history(1, 700, 3)
    memory = after(shape, past, 140)
    real = np.array(sorted(transitions(shape, past, 700)))
    assert len(real) < 0.95 * 600
    if prioritized:
        given = np.random.default_rng(0).uniform(0.1, 3, (1, len(real))).astype(np.float32)
        memory = reprioritize(shape, memory, real[None], given, 1)
    leaves = priorities(shape, memory) if prioritized else np.isin(np.arange(shape.units), real)
    drawn = draw(shape, memory, key_for(0, "chi"), 1000, 64)
    good = drawn.weight > 0
    share = leaves / leaves.sum(dtype=np.float64)
    counts = np.bincount(drawn.index[good], minlength=shape.units)
    assert chi_square(share * good.sum(), counts) < 3
    if prioritized:
        assert good.all()
        np.testing.assert_allclose(drawn.weight, 1 / (len(real) * share[drawn.index]), rtol=1e-5)
    else:
        assert good.mean() > 0.9 and set(np.unique(drawn.weight)) == {0, 1}
        assert chi_square(share * good.sum(), counts) > -3
