"""The sample-to-insert ratio: exact in the long run, never beyond its tolerance, never stuck."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.replay import begin, due, most_updates
from shoal.replay.ratio import (
    check_tolerance,
    inserted,
    learned,
    least_tolerance,
    may_insert,
    may_learn,
)
from shoal.types import Replay

few = settings(max_examples=25, deadline=None, derandomize=True)
plans = st.builds(
    Replay,
    rows=st.integers(1, 8),
    capacity=st.just(1000),
    batch_size=st.integers(1, 300),
    train_every=st.integers(1, 50),
    gradient_steps=st.integers(1, 20),
    learning_starts=st.integers(0, 100),
)


@few
@given(plan=plans, envs=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_exactly_what_is_due_is_learned(plan: Replay, envs: int, seed: int) -> None:
    """After any number of fragments: floor of the steps that count, times gradient_steps / train_every. The
    same with Python integers, NumPy and traced int32."""
    rng = np.random.default_rng(seed)
    traced = jax.jit(lambda credit, steps: due(plan, credit, steps))
    credit = in_python = begin(plan)
    in_python = type(credit)(int(credit.waiting), int(credit.steps))
    on_device = jax.tree.map(jnp.asarray, credit)
    total = updates = 0
    for _ in range(60):
        steps = int(rng.integers(0, plan.rows * envs + 1))
        total += steps
        k, credit = due(plan, credit, np.int32(steps))
        k_python, in_python = due(plan, in_python, steps)
        k_traced, on_device = traced(on_device, np.int32(steps))
        assert int(k) == k_python == int(k_traced)
        assert tuple(map(int, credit)) == tuple(in_python) == tuple(map(int, on_device))
        assert 0 <= k_python <= most_updates(plan, envs)
        updates += k_python
        counted = max(0, total - plan.learning_starts)
        assert updates == counted * plan.gradient_steps // plan.train_every
    assert on_device.steps.dtype == jnp.int32


@few
@given(
    plan=plans, most=st.integers(1, 40), at_once=st.integers(1, 5), slack=st.integers(0, 50), data=st.data()
)
def test_neither_side_goes_beyond_the_tolerance_or_gets_stuck(
    plan: Replay, most: int, at_once: int, slack: int, data: st.DataObject
) -> None:
    """Whoever comes first, as a schedule of hypothesis' choice has it."""
    tolerance = least_tolerance(plan, most, at_once) + slack
    check_tolerance(plan, tolerance, most, at_once)
    credit = begin(plan)
    total = samples = 0
    for choice in data.draw(
        st.lists(st.tuples(st.booleans(), st.integers(1, most)), min_size=80, max_size=120)
    ):
        insert_first, steps = choice
        insert = bool(may_insert(plan, credit, most, tolerance))
        learn = bool(may_learn(plan, credit, tolerance, at_once))
        assert insert or learn
        if insert and (insert_first or not learn):
            credit, total = inserted(plan, credit, steps), total + steps
        elif learn:
            assert total >= plan.learning_starts
            credit, samples = learned(plan, credit, at_once), samples + at_once * plan.batch_size
        counted = max(0, total - plan.learning_starts)
        ahead = samples - counted * plan.batch_size * plan.gradient_steps / plan.train_every
        assert abs(ahead) <= tolerance + 1e-6


def test_a_side_that_stops_holds_the_other() -> None:
    plan = Replay(rows=1, capacity=100, batch_size=32, train_every=4, learning_starts=10)
    tolerance = 64
    credit = begin(plan)
    while may_insert(plan, credit, 1, tolerance):
        credit = inserted(plan, credit, 1)
    assert int(credit.steps) == tolerance * 4 // 32
    while may_learn(plan, credit, tolerance):
        credit = learned(plan, credit, 1)
    assert int(credit.steps) == -tolerance * 4 // 32


def test_a_tolerance_that_would_block_is_an_error() -> None:
    plan = Replay(rows=1, capacity=100, batch_size=32, train_every=4)
    check_tolerance(plan, 64, steps=8)
    with pytest.raises(ShoalError, match="needs 64"):
        check_tolerance(plan, 63, steps=8)


@pytest.mark.parametrize("field", [{"train_every": 0}, {"gradient_steps": 0}, {"learning_starts": -1}])
def test_a_ratio_that_is_none_is_an_error(field: dict[str, int]) -> None:
    plan = {"rows": 1, "capacity": 100, "batch_size": 32, "train_every": 4, **field}
    with pytest.raises(ShoalError, match=next(iter(field))):
        begin(Replay(**plan))


def test_a_fragment_that_would_overflow_is_an_error() -> None:
    plan = Replay(rows=2**16, capacity=2**20, batch_size=32, train_every=1, gradient_steps=2**10)
    with pytest.raises(ShoalError, match="2\\^31"):
        most_updates(plan, 64)
