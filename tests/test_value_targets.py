"""n-step targets and importance weights against loops."""

from __future__ import annotations

import numpy as np
from fragments import naive_n_step, random_data
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.value_targets import importance_weights, n_step_ahead, n_step_sums

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


@QUICK
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5]), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_sums_are_those_of_a_loop(seed: int, n: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    steps, terminated = rng.integers(0, n + 1, 6).astype(np.int32), rng.random(6) < 0.4
    reward = rng.normal(size=(6, n)).astype(np.float32)  # also beyond the steps that are real
    total, onward = n_step_sums(reward, steps, terminated, discount)
    for i in range(6):
        expected = sum(discount**k * reward[i, k] for k in range(steps[i]))
        np.testing.assert_allclose(total[i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(onward[i], 0.0 if terminated[i] else discount ** steps[i], rtol=1e-5)


@QUICK
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([1, 9]),
    st.sampled_from([0.0, 0.2, 0.6]),
    st.sampled_from([0.0, 0.9, 1.0]),
)
def test_ahead_adds_up_to_n_step_returns(seed: int, n: int, rows: int, end: float, discount: float) -> None:
    data = random_data(seed, rows, 3, end)
    total, onward, ahead = n_step_ahead(data.reward, data.terminated, data.first, discount, n)
    got = total + onward * np.take_along_axis(data.values, np.asarray(ahead), 0)
    np.testing.assert_allclose(got, naive_n_step(data, discount, n), atol=1e-5)
    assert (np.asarray(ahead) <= rows).all()


def test_importance_weights() -> None:
    weight = np.asarray([[4.0, 1.0, 0.0, 0.25], [0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 0.0, 9.0]], np.float32)
    expected = [[1.0, 0.5, 0.0, 0.25], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]]
    np.testing.assert_allclose(importance_weights(weight, 0.5), expected, rtol=1e-5)
    # No correction: every real row counts alike, and a row of weight 0 still counts nothing.
    np.testing.assert_allclose(importance_weights(weight, 0.0), (weight > 0).astype(np.float32))
