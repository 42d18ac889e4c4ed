"""Returns against loops written from the definitions, episode by episode, and against literal numbers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fragments import Data, future_value, naive_n_step, random_data, segments
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import returns

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def naive_lambda(data: Data, discount: float, lambda_: float) -> np.ndarray:
    """(1 - lambda) * the sum of lambda^(n-1) * n-step returns, the rest of the weight on the last one."""
    result = data.values[:-1].copy()
    for b in range(result.shape[1]):
        for start, end in segments(data, b):
            for t in range(start, end):
                last = end - t
                total = 0.0
                for n in range(1, last + 1):
                    weight = lambda_ ** (n - 1) * ((1 - lambda_) if n < last else 1.0)
                    total += weight * naive_n_step(data, discount, n)[t, b] if weight else 0.0
                result[t, b] = total
    return result


def naive_gae(data: Data, discount: float, lambda_: float) -> np.ndarray:
    """The sum of (discount * lambda)^k * delta[t + k] along the episode (Schulman et al. 2016, eq. 16)."""
    result = np.zeros_like(data.reward)
    for b in range(result.shape[1]):
        for start, end in segments(data, b):

            def delta(t: int, b: int = b, end: int = end) -> float:
                after = future_value(data, b, end) if t + 1 == end else data.values[t + 1, b]
                return data.reward[t, b] + discount * after - data.values[t, b]

            for t in range(start, end):
                result[t, b] = sum((discount * lambda_) ** (s - t) * delta(s) for s in range(t, end))
    return result


def naive_vtrace(
    data: Data, discount: float, lambda_: float, rho_bar: float, c_bar: float
) -> tuple[np.ndarray, np.ndarray]:
    """Espeholt et al. 2018: eq. 1 as the sum that it is, and the advantage of section 4.2."""
    targets, advantages = data.values[:-1].copy(), np.zeros_like(data.reward)
    ratio = np.exp(data.log_ratio)
    rho, c = np.minimum(rho_bar, ratio), lambda_ * np.minimum(c_bar, ratio)
    for b in range(targets.shape[1]):
        for start, end in segments(data, b):
            after = np.append(data.values[start + 1 : end, b], future_value(data, b, end))
            stretch = slice(start, end)
            delta = rho[stretch, b] * (data.reward[stretch, b] + discount * after - data.values[stretch, b])
            for t in range(start, end):
                targets[t, b] += sum(
                    discount ** (s - t) * np.prod(c[t:s, b]) * delta[s - start] for s in range(t, end)
                )
            for t in range(start, end):
                q = after[t - start]
                if t + 1 < end:
                    q = lambda_ * targets[t + 1, b] + (1 - lambda_) * data.values[t + 1, b]
                advantages[t, b] = rho[t, b] * (data.reward[t, b] + discount * q - data.values[t, b])
    return advantages, targets


compiled = functools.cache(jax.jit)


def exact(function: Any, *args: Any) -> Any:
    """Compiled, in float64. Numbers are traced, so that one compilation serves all examples of a shape."""
    with jax.enable_x64(True):
        result = compiled(function)(*args)
        assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(result))
        return jax.tree.map(np.asarray, result)


fragments = st.builds(
    random_data,
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([1, 2, 9]),
    envs=st.just(3),
    end=st.sampled_from([0.0, 0.2, 0.6]),
)
portions = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@FEW
@given(fragments, portions, portions)
def test_gae_is_the_sum_of_discounted_deltas_of_each_episode(
    data: Data, discount: float, lambda_: float
) -> None:
    advantages, targets = exact(returns.gae, *data[:4], discount, lambda_)
    np.testing.assert_allclose(advantages, naive_gae(data, discount, lambda_), atol=1e-10)
    np.testing.assert_allclose(targets, naive_gae(data, discount, lambda_) + data.values[:-1], atol=1e-10)


@FEW
@given(fragments, portions, portions)
def test_lambda_returns_average_the_n_step_returns(data: Data, discount: float, lambda_: float) -> None:
    result = exact(returns.lambda_returns, *data[:4], discount, lambda_)
    np.testing.assert_allclose(result, naive_lambda(data, discount, lambda_), atol=1e-10)


@FEW
@given(fragments, portions)
def test_discounted_returns_reach_to_the_end_of_each_episode(data: Data, discount: float) -> None:
    result = exact(returns.discounted_returns, *data[:4], discount)
    np.testing.assert_allclose(result, naive_n_step(data, discount, 10**6), atol=1e-10)
    nothing = exact(returns.discounted_returns, *data[:3], 0.0, discount)
    expected = naive_n_step(data._replace(values=np.zeros_like(data.values)), discount, 10**6)
    np.testing.assert_allclose(nothing, expected, atol=1e-10)


@FEW
@given(fragments, portions, portions, st.sampled_from([(1.0, 1.0), (2.0, 0.5), (0.7, 0.7), (10.0, 1.0)]))
def test_vtrace_is_equation_1(data: Data, discount: float, lambda_: float, bars: tuple[float, float]) -> None:
    advantages, targets = exact(returns.vtrace, *data, discount, lambda_, *bars)
    expected_advantages, expected_targets = naive_vtrace(data, discount, lambda_, *bars)
    np.testing.assert_allclose(targets, expected_targets, atol=1e-10)
    np.testing.assert_allclose(advantages, expected_advantages, atol=1e-10)


@FEW
@given(fragments, portions, portions)
def test_vtrace_on_policy_is_gae(data: Data, discount: float, lambda_: float) -> None:
    on_policy = data._replace(log_ratio=np.zeros_like(data.log_ratio))
    advantages, targets = exact(returns.vtrace, *on_policy, discount, lambda_)
    expected_advantages, expected_targets = exact(returns.gae, *data[:4], discount, lambda_)
    np.testing.assert_allclose(targets, expected_targets, atol=1e-10)
    np.testing.assert_allclose(advantages, expected_advantages, atol=1e-10)
    if lambda_ == 1.0:
        full = exact(returns.lambda_returns, *data[:4], discount, 1.0)
        np.testing.assert_allclose(targets, full, atol=1e-10)


CASES = (
    lambda run, data: run(returns.gae, *data[:4], 0.9, 0.8),
    lambda run, data: run(returns.lambda_returns, *data[:4], 0.9, 0.8),
    lambda run, data: run(returns.discounted_returns, *data[:4], 0.9),
    lambda run, data: run(returns.vtrace, *data, 0.9, 0.8),
)


@pytest.mark.parametrize("case", CASES)
def test_compiled_and_not_are_the_same(case: Any) -> None:
    data = random_data(0, 9, 3, 0.3)
    with jax.enable_x64(True):
        plain = case(lambda function, *args: function(*args), data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), plain, case(exact, data))


@FEW
@given(fragments)
def test_what_stands_in_rows_that_only_reset_changes_nothing(data: Data) -> None:
    reset = data.first[1:]
    other = data._replace(
        reward=np.where(reset, 1e6, data.reward), log_ratio=np.where(reset, 1e6, data.log_ratio)
    )
    for case in CASES:
        jax.tree.map(np.testing.assert_array_equal, case(exact, data), case(exact, other))
    advantages, targets = exact(returns.gae, *data[:4], 0.9, 0.8)
    assert not advantages[reset].any()
    np.testing.assert_array_equal(targets[reset], data.values[:-1][reset])


def column(*numbers: float, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(numbers, dtype)[:, None]


# One environment: two steps, a time limit, a reset row, one step that terminates, a reset row, one more step.
REWARD = column(1, 2, 0, 3, 0, 4)
TERMINATED = column(0, 0, 0, 1, 0, 0, dtype=bool)
FIRST = column(1, 0, 0, 1, 0, 1, 0, dtype=bool)
VALUES = column(10, 20, 30, 40, 50, 60, 70)


def test_literal_numbers_through_a_time_limit_and_a_termination() -> None:
    advantages, targets = returns.gae(REWARD, TERMINATED, FIRST, VALUES, 0.5, 0.5)
    # deltas: 1 + .5*20 - 10 = 1;  2 + .5*30 - 20 = -3;  -;  3 - 40 = -37;  -;  4 + .5*70 - 60 = -21
    np.testing.assert_allclose(advantages[:, 0], [1 - 3 / 4, -3, 0, -37, 0, -21])
    np.testing.assert_allclose(targets[:, 0], [10.25, 17, 30, 3, 50, 39])
    discounted = returns.discounted_returns(REWARD, TERMINATED, FIRST, VALUES, 0.5)
    np.testing.assert_allclose(discounted[:, 0], [1 + 1 + 7.5, 17, 30, 3, 50, 39])
    without = returns.discounted_returns(REWARD, TERMINATED, FIRST, 0.0, 0.5)
    np.testing.assert_allclose(without[:, 0], [2, 2, 0, 3, 0, 4])
    advantages, targets = returns.vtrace(
        column(1, 2),
        column(0, 0, dtype=bool),
        column(1, 0, 0, dtype=bool),
        column(10, 20, 30),
        np.log(column(4, 0.5)),
        0.5,
        rho_bar=2.0,
    )
    # rho = 2, .5; c = 1, .5; rho * delta = 2, -1.5; v[1] = 18.5; v[0] = 10 + 2 + .5 * (18.5 - 20)
    np.testing.assert_allclose(targets[:, 0], [11.25, 18.5])
    np.testing.assert_allclose(advantages[:, 0], [2 * (1 + 0.5 * 18.5 - 10), -1.5])


def test_constant_reward_under_time_limits_only_is_a_fixed_point() -> None:
    # Whatever the limits, V = 1 / (1 - discount) explains a reward of 1 for ever: every advantage is 0.
    rng = np.random.default_rng(3)
    first = np.zeros((41, 5), bool)
    for t in range(1, 41):
        first[t] = (rng.random(5) < 0.3) & ~first[t - 1]
    reward = (~first[1:]).astype(np.float32)
    values = np.full((41, 5), 1 / (1 - 0.9), np.float32)
    nothing = np.zeros((40, 5), bool)
    advantages, targets = returns.gae(reward, nothing, first, values, 0.9, 0.95)
    np.testing.assert_allclose(advantages, 0, atol=2e-5)
    np.testing.assert_allclose(targets, 10, rtol=1e-5)
    np.testing.assert_allclose(returns.discounted_returns(reward, nothing, first, values, 0.9), 10, rtol=1e-5)
    np.testing.assert_allclose(
        returns.vtrace(reward, nothing, first, values, np.zeros_like(reward), 0.9)[1], 10, rtol=1e-5
    )


def test_results_are_float32_of_strong_type_and_constants_to_a_gradient() -> None:
    inputs = (jnp.asarray(REWARD), jnp.asarray(TERMINATED), jnp.asarray(FIRST))
    for out in (
        *jax.jit(returns.gae)(*inputs, jnp.asarray(VALUES), 0.9, 0.9),
        returns.discounted_returns(*inputs, 0.0, 0.9),
        *returns.vtrace(*inputs, jnp.asarray(VALUES), jnp.asarray(REWARD), 0.9),
    ):
        assert out.dtype == jnp.float32
        assert not out.weak_type
        assert out.shape == REWARD.shape
    for function in (
        lambda v: returns.gae(*inputs, v, 0.9, 0.9)[1].sum(),
        lambda v: returns.vtrace(*inputs, v, v[:-1], 0.9)[0].sum(),
    ):
        assert not jax.grad(function)(jnp.asarray(VALUES)).any()


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"first and values \(7, 1\)"):
        returns.gae(REWARD, TERMINATED, FIRST, VALUES[:-1], 0.9, 0.9)
    with pytest.raises(ValueError, match="values"):  # one value per environment: wrong at the time limits
        returns.discounted_returns(REWARD, TERMINATED, FIRST, VALUES[-1], 0.9)


def test_normalized_and_explained_variance_leave_out_rows_without_weight() -> None:
    advantage = np.asarray([[1.0, 2.0], [3.0, 1e6]], np.float32)
    weight = np.asarray([[1.0, 1.0], [1.0, 0.0]], np.float32)
    result = np.asarray(returns.normalized(advantage, weight))
    np.testing.assert_allclose(result[weight > 0], (np.array([1, 2, 3]) - 2) / np.sqrt(2 / 3), rtol=1e-6)

    target = np.asarray([[1.0, 2.0], [3.0, -7.0]], np.float32)
    assert returns.explained_variance(target, target, weight) == 1.0
    assert returns.explained_variance(np.full_like(target, 5), target, weight) == 0.0
    np.testing.assert_allclose(returns.explained_variance(-target, target, weight), -3.0, rtol=1e-6)
    assert returns.explained_variance(target, np.full_like(target, 2), weight) == 0.0
