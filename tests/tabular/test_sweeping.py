"""Sweeps that compute what has changed against sweeps that compute everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import as_sparse, some_mdp

from shoal import GridWorld
from shoal.tabular import MDP, q_from_v, v_from_q, value_iteration
from shoal.tabular import sweeping as module
from shoal.tabular.sweeping import Sweeps

MDPS = st.builds(
    some_mdp,
    st.integers(0, 10_000),
    gamma=st.sampled_from([0.0, 0.5, 0.99]),
    masked=st.booleans(),
    terminals=st.integers(0, 2),
)


def compare(mdp: MDP, sweeps: int) -> int:
    """How many of the sweeps were of a part. Fails where a bit or a bound differs."""
    sweep, value, parts = Sweeps(mdp), np.zeros(mdp.states), 0
    whole: Any = sweep._whole

    def counted() -> Any:
        nonlocal parts
        parts -= 1
        return whole()

    sweep._whole = counted
    for _ in range(sweeps):
        parts += 1
        told = sweep()
        q = q_from_v(mdp, value)
        change, value = v_from_q(q) - value, v_from_q(q)
        np.testing.assert_array_equal(sweep.value, value)
        np.testing.assert_array_equal(sweep.q, q)
        assert (told.low, told.high) == (change.min(), change.max())
        assert told.largest >= np.abs(value).max()
    return parts


@given(mdp=MDPS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_bits_of_whole_sweeps(mdp: MDP) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", 1.0)
        assert compare(as_sparse(mdp), 12) > 0
    assert compare(mdp, 3) == 0, "a dense one is swept whole"


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_in_a_grid_a_wave_is_followed(slip: float) -> None:
    mdp = as_sparse(GridWorld(size=12, walls=(14, 15, 16, 40, 52), slip=slip).mdp(gamma=0.95))
    parts = compare(mdp, 60)
    assert parts > 20 if slip == 0.0 else parts > 0


def test_a_large_maze_costs_what_its_wave_does(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = GridWorld(size=40).mdp(gamma=0.9)
    assert mdp.sparse
    found = value_iteration(mdp, 1e-6)
    monkeypatch.setattr(module, "_FEW", -1.0)
    whole = value_iteration(mdp, 1e-6)
    np.testing.assert_array_equal(found.value, whole.value)
    np.testing.assert_array_equal(found.policy, whole.policy)
    assert (found.iterations, found.error_bound) == (whole.iterations, whole.error_bound)
