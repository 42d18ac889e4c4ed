"""Rows that come into the replay with priorities of their own: against a plain dict, on host and device."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_histories import history, layout, transitions

from shoal.keys import key_for
from shoal.replay import Layout, draw, empty, insert, reprioritize, stored, sumtree

LAYOUTS = {
    "transitions": layout(2, rows=3, capacity=20, n_step=2, prioritized=True),
    "frames": layout(3, 3, rows=2, capacity=24, prioritized=True),
}


@cache
def compiled(shape: Layout) -> tuple[Any, Any]:
    """insert with priorities, and without."""
    return (
        jax.jit(lambda memory, fragment, given: insert(shape, memory, fragment, given), donate_argnums=0),
        jax.jit(lambda memory, fragment: insert(shape, memory, fragment), donate_argnums=0),
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_new_rows_get_what_they_come_with(name: str) -> None:
    shape = LAYOUTS[name]
    rows, envs = shape.fragment, shape.envs

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), fragments=st.integers(2, 20))
    def check(seed: int, fragments: int) -> None:
        past, rng = history(seed, fragments * rows, envs, shape.frames), np.random.default_rng(seed)
        like = past.fragment(0, rows)
        host, device = empty(shape, like, np), empty(shape, like, jnp)
        kept: dict[int, Any] = {}
        top = np.float32(1)
        for i in range(fragments):
            fragment = past.fragment(i * rows, rows)
            number = [((i * rows + t) % shape.rows) * envs + b for t in range(rows) for b in range(envs)]
            new = dict.fromkeys(number, top)
            if rng.random() < 0.3:  # some come without
                host, device = insert(shape, host, fragment), compiled(shape)[1](device, fragment)
            else:
                priorities = (10.0 ** rng.uniform(-3, 3, (rows, envs))).astype(np.float32)
                odd = rng.random((rows, envs)) < 0.2
                priorities[odd] = rng.choice([np.nan, np.inf, 0.0, -1.0, 1e-30])
                host = insert(shape, host, fragment, priorities)
                device = compiled(shape)[0](device, fragment, priorities)
                cut = np.clip(priorities, np.float32(2.0**-40), np.float32(2.0**40)).ravel()
                new = {j: top if np.isnan(p) else p for j, p in zip(number, cut, strict=True)}
            now = transitions(shape, past, (i + 1) * rows)
            kept = {j: new[j] if j in new else kept[j] for j in now}
            top = max([top, *(kept[j] for j in new if j in kept)])
            leaves = sumtree.leaves(host.priorities.tree, np.arange(shape.units))
            assert {j: leaves[j] for j in np.flatnonzero(leaves)} == kept
            assert host.priorities.top == top and stored(shape, host) == len(kept)
            jax.tree.map(np.testing.assert_array_equal, host, device)
            if kept and rng.random() < 0.5:
                drawn = draw(shape, host, key_for(seed, "draw", i), 1, 4)
                learned = rng.exponential(size=(1, 4)).astype(np.float32) + np.float32(1e-3)
                host = reprioritize(shape, host, drawn.index, learned, 1)
                device = reprioritize(shape, device, jnp.asarray(drawn.index), learned, 1)
                for j in np.unique(drawn.index):
                    kept[j] = learned[drawn.index == j].max()
                    top = max(top, kept[j])

    check()


@pytest.mark.parametrize("plan", [{}, {"prioritized": True, "sequence": 4}])
def test_replays_that_cannot_take_them_say_so(plan: dict[str, Any]) -> None:
    shape = layout(2, rows=2, capacity=24, **plan)
    fragment = history(0, 2, 2).fragment(0, 2)
    memory = empty(shape, fragment, np)
    with pytest.raises(ValueError, match="for a prioritised replay of transitions"):
        insert(shape, memory, fragment, np.ones((2, 2), np.float32))
    assert memory.filled == 0
