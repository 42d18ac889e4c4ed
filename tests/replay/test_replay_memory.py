"""What is stored and drawn, against plain loops over the whole history: across seams, ends and fragments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_histories import history, layout, sequences, spec, transitions

from shoal.errors import ShoalError
from shoal.keys import key_for
from shoal.replay import Layout, draw, empty, insert, ready, reprioritize, stored
from shoal.types import Replay

few = settings(max_examples=25, deadline=None, derandomize=True)
SHAPES: dict[str, Any] = {
    "seed": st.integers(0, 10**6),
    "envs": st.integers(1, 3),
    "rows": st.integers(1, 4),
    "capacity": st.integers(12, 40),
    "frames": st.sampled_from([1, 1, 2, 4]),
    "prioritized": st.booleans(),
    "fragments": st.integers(1, 40),
}


def filled(shape: Layout, past: Any, fragments: int, seed: int) -> Any:
    """A NumPy memory with so many fragments inserted, and priorities changed now and then."""
    memory = empty(shape, past.fragment(0, shape.fragment), np)
    for i in range(fragments):
        memory = insert(shape, memory, past.fragment(i * shape.fragment, shape.fragment))
        if shape.prioritized and i % 3 == 0 and ready(shape, memory):
            drawn = draw(shape, memory, key_for(seed, "change", i), 2, 8)
            given = np.random.default_rng(i).random((2, 8)).astype(np.float32) * 2
            memory = reprioritize(shape, memory, drawn.index, given, 2)
    return memory


@few
@given(**SHAPES)
def test_an_insertion_that_is_repeated_changes_nothing(
    seed: int, envs: int, rows: int, capacity: int, frames: int, prioritized: bool, fragments: int
) -> None:
    """As where what follows it in an iteration raised, and the iteration is made again."""
    capacity = max(capacity, envs * rows)
    shape = layout(envs, frames, rows=rows, capacity=capacity, prioritized=prioritized)
    past = history(seed, (fragments + 1) * rows, envs, frames)
    before = filled(shape, past, fragments, seed)
    fragment = past.fragment(fragments * rows, rows)
    once = jax.tree.map(np.array, insert(shape, before, fragment))
    again = insert(shape, before, fragment)
    jax.tree.map(np.testing.assert_array_equal, once, again)


@few
@given(**SHAPES, n_step=st.integers(1, 4))
def test_transitions_are_those_of_the_history(
    seed: int,
    envs: int,
    rows: int,
    capacity: int,
    frames: int,
    prioritized: bool,
    fragments: int,
    n_step: int,
) -> None:
    capacity = max(capacity, envs * max(rows, n_step))
    shape = layout(envs, frames, rows=rows, capacity=capacity, n_step=n_step, prioritized=prioritized)
    past = history(seed, fragments * rows, envs, frames)
    memory = filled(shape, past, fragments, seed)
    expected = transitions(shape, past, fragments * rows)
    assert int(stored(shape, memory)) == len(expected)
    drawn = draw(shape, memory, key_for(seed, "draw"), 4, 300)
    index, weight = drawn.index.ravel(), drawn.weight.ravel()
    if prioritized:
        assert (weight > 0).all() == bool(expected)
    else:
        assert set(weight) <= {0.0, 1.0}
    assert set(index[weight > 0]) <= set(expected)
    if not prioritized:  # 1200 draws from at most some 60 rows
        assert set(index[weight > 0]) == set(expected)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn)
    for j in np.flatnonzero(weight > 0)[:400]:
        row = expected[index[j]]
        np.testing.assert_array_equal(flat.obs.policy[j], row["obs"])
        np.testing.assert_array_equal(flat.obs.critic[j], row["critic"])
        np.testing.assert_array_equal(flat.next_obs.policy[j], row["next_obs"])
        np.testing.assert_array_equal(flat.reward[j], row["reward"])
        assert flat.action["a"][j] == row["action"]
        assert (flat.steps[j], flat.terminated[j]) == (row["steps"], row["terminated"])
    idle = weight == 0
    assert not flat.reward[idle].any() and not flat.steps[idle].any() and not flat.terminated[idle].any()


@few
@given(**SHAPES, length=st.integers(1, 9))
def test_sequences_are_those_of_the_history(
    seed: int,
    envs: int,
    rows: int,
    capacity: int,
    frames: int,
    prioritized: bool,
    fragments: int,
    length: int,
) -> None:
    capacity = max(capacity, envs * max(rows, length))
    shape = layout(envs, frames, rows=rows, capacity=capacity, sequence=length, prioritized=prioritized)
    past = history(seed, fragments * rows, envs, frames)
    memory = filled(shape, past, fragments, seed)
    expected = sequences(shape, past, fragments * rows)
    assert int(stored(shape, memory)) == len(expected)
    drawn = draw(shape, memory, key_for(seed, "draw"), 2, 150)
    index, weight = drawn.index.ravel(), drawn.weight.ravel()
    assert set(index[weight > 0]) <= set(expected)
    if not prioritized:
        assert set(index[weight > 0]) == set(expected)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn.trajectory)
    for j in np.flatnonzero(weight > 0)[:100]:
        whole, b = expected[index[j]]
        raw = whole.extras["raw_action"]
        want = whole._replace(extras={"raw_action": raw}, action=raw, carry=())
        got = jax.tree.map(lambda x, j=j: x[j], flat)
        jax.tree.map(
            lambda x, y, b=b: np.testing.assert_array_equal(x, y[:, b]), got._replace(carry=()), want
        )
        np.testing.assert_array_equal(got.carry["h"], whole.carry["h"][b])


def test_a_capacity_can_be_drawn_from_to_the_last_row() -> None:
    shape = layout(2, rows=4, capacity=40)
    past = history(0, 100 * 4, 2, ends=0.0)
    memory = filled(shape, past, 100, 0)
    assert int(stored(shape, memory)) >= 40


def test_an_environment_that_was_begun_anew_loses_one_step_only() -> None:
    """After a restart a fragment may begin with another observation than the last one ended with."""
    for prioritized in (False, True):
        shape = layout(2, rows=2, capacity=20, prioritized=prioritized)
        past = history(0, 40, 2, ends=0.0)
        memory = filled(shape, past, 3, 0)
        before = int(stored(shape, memory))
        anew = past.fragment(6, 2)
        first = anew.first.copy()
        first[0, 1] = True
        memory = insert(shape, memory, anew._replace(first=first))
        assert int(stored(shape, memory)) == before + 2 * 2 - 1
        drawn = draw(shape, memory, key_for(0, "x"), 1, 500)
        assert 5 * 2 + 1 not in set(drawn.index[drawn.weight > 0])


def test_nothing_can_be_drawn_from_an_empty_replay() -> None:
    for plan in ({}, {"prioritized": True}, {"sequence": 3}, {"sequence": 3, "prioritized": True}):
        shape = layout(2, rows=2, capacity=20, **plan)
        memory = empty(shape, history(0, 2, 2).fragment(0, 2), np)
        assert not ready(shape, memory) and int(stored(shape, memory)) == 0
        assert not draw(shape, memory, key_for(0, "x"), 2, 8).weight.any()


@pytest.mark.parametrize("fault", ["a frame", "the padding", "the fragment before", "the shape"])
def test_stacks_that_are_none_are_refused(fault: str) -> None:
    shape = layout(2, 3, rows=4, capacity=40)
    past = history(1, 80, 2, 3)
    memory = filled(shape, past, 5, 0)
    good = past.fragment(20, 4)
    stacks, first = good.obs.policy.copy(), good.first
    begins = np.argwhere(first)
    if fault == "a frame":
        t, b = np.argwhere(~first[1:])[0] + (1, 0)
        stacks[t, b, 1] += 1
    elif fault == "the padding":
        t, b = begins[-1]
        stacks[t, b, 0] += 1
    elif fault == "the fragment before":
        goes_on = np.flatnonzero(~first[0])
        stacks = stacks + np.isin(np.arange(2), goes_on)[None, :, None, None]
    else:
        stacks = stacks[:, :, :2]
    was = jax.tree.map(np.copy, memory)
    with pytest.raises(ShoalError, match="stacks 3 frames"):
        insert(shape, memory, good._replace(obs=good.obs._replace(policy=stacks)))
    jax.tree.map(np.testing.assert_array_equal, memory, was)
    insert(shape, memory, good)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"capacity": 6, "rows": 4}, "at least 8 is needed"),
        ({"capacity": 20, "rows": 2, "sequence": 11}, "a sequence of 11 rows"),
        ({"capacity": 20, "rows": 2, "n_step": 11}, "n-step window of 11 rows"),
        ({"capacity": 2**31, "rows": 4}, "too large"),
        ({"capacity": 20, "rows": 2, "n_step": 0}, "n_step must be at least 1"),
        ({"capacity": 20, "rows": 2, "batch_size": 2**16, "prioritized": True}, "below 65536"),
    ],
)
def test_a_plan_that_cannot_be_laid_out_is_one_line(plan: dict[str, Any], says: str) -> None:
    with pytest.raises(ShoalError, match=says) as error:
        Layout.of(Replay(**{"batch_size": 8, "train_every": 1, **plan}), spec(), 2)
    assert "\n" not in str(error.value)


def test_a_policy_without_raw_actions_is_an_error() -> None:
    fragment = history(0, 2, 2).fragment(0, 2)
    with pytest.raises(ShoalError, match="raw_action"):
        empty(layout(2, rows=2, capacity=20), fragment._replace(extras={}), np)


def test_stacked_images_cost_one_frame_each() -> None:
    """84 x 84 x 4 bytes as the policy sees them; 84 x 84 are stored, and little else."""
    rows, envs = 64, 2
    fragment = history(0, 4, envs).fragment(0, 4)
    stacks = np.zeros((5, envs, 4, 84, 84), np.uint8)
    shape = layout(envs, 4, rows=4, capacity=rows * envs)
    like = fragment._replace(obs=fragment.obs._replace(policy=stacks, critic=None, mask=None))
    memory = empty(shape, like, np)
    held = sum(x.nbytes for x in jax.tree.leaves(memory))
    assert held <= 1.01 * shape.rows * envs * 84 * 84
    assert shape.rows <= rows + 8
    drawn = draw(shape, memory, key_for(0, "x"), 1, 3)
    assert drawn.obs.policy.shape == (1, 3, 4, 84, 84) and drawn.obs.policy.dtype == np.uint8


def test_a_draw_of_more_minibatches_begins_with_the_same() -> None:
    for prioritized in (False, True):
        shape = layout(2, rows=2, capacity=20, prioritized=prioritized)
        memory = filled(shape, history(0, 40, 2), 20, 0)
        key = key_for(0, "x")
        two, five = (draw(shape, memory, key, k, 8) for k in (2, 5))
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[:2]), two, five)


def test_layouts_are_plain_values() -> None:
    shape = layout(2, rows=2, capacity=20)
    assert shape == replace(shape) and hash(shape) == hash(replace(shape))
