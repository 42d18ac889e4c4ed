"""Return distributions against loops in plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.value_distributions import (
    ValueDistribution,
    categorical,
    expected_value,
    huber,
    projected,
    quantiles,
    rescaled,
    unscaled,
)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def brute_projection(probabilities: np.ndarray, values: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Bellemare et al. 2017: each atom's probability to its two neighbours."""
    result, width = np.zeros(len(support)), support[1] - support[0]
    for p, z in zip(probabilities, values, strict=True):
        b = (min(max(z, support[0]), support[-1]) - support[0]) / width
        low, high = int(np.floor(b)), int(np.ceil(b))
        if low == high:
            result[low] += p
        else:
            result[low] += p * (high - b)
            result[high] += p * (b - low)
    return result


@QUICK
@given(st.integers(0, 10**6), st.sampled_from([2, 5, 11]), st.floats(0.0, 3.0), st.floats(-4.0, 4.0))
def test_projection_is_the_papers(seed: int, atoms: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    support = np.linspace(-2.0, 3.0, atoms, dtype=np.float32)
    p = softmax(rng.normal(size=(4, atoms))).astype(np.float32)
    values = (scale * support + shift + np.zeros((4, 1))).astype(np.float32)
    got = projected(p, values, support, np.float32(5.0 / (atoms - 1)))
    for row in range(4):
        np.testing.assert_allclose(got[row], brute_projection(p[row], values[row], support), atol=2e-5)
    np.testing.assert_allclose(np.asarray(got).sum(-1), 1.0, atol=1e-5)


def test_projection_keeps_a_distribution_on_its_own_support() -> None:
    support = np.linspace(-1.0, 1.0, 5, dtype=np.float32)
    p = np.asarray([[0.1, 0.2, 0.3, 0.0, 0.4]], np.float32)
    np.testing.assert_allclose(projected(p, support[None], support, np.float32(0.5)), p, atol=1e-7)


def test_categorical_target_of_an_end_is_the_reward() -> None:
    values = categorical(11, -5.0, 5.0)
    after = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    reward = np.asarray([2.0, 2.25, 9.0], np.float32)
    target = np.asarray(values.target(after, reward, np.zeros(3, np.float32)))
    assert target[0, 7] == pytest.approx(1.0) and target[2, 10] == pytest.approx(1.0)
    assert target[1, 7] == pytest.approx(0.75, abs=1e-5) and target[1, 8] == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(values.expected(target), [2.0, 2.25, 5.0], atol=1e-5)


def test_categorical_error_is_cross_entropy_and_its_surprise_the_divergence() -> None:
    rng, values = np.random.default_rng(1), categorical(7, -1.0, 1.0)
    outputs, target = rng.normal(size=(5, 7)).astype(np.float32), softmax(rng.normal(size=(5, 7)))
    target[0, :3] = 0.0
    target = (target / target.sum(-1, keepdims=True)).astype(np.float32)
    loss, surprise = values.error(jnp.asarray(outputs), jnp.asarray(target))
    log_p = np.log(softmax(outputs))
    np.testing.assert_allclose(loss, -(target * log_p).sum(-1), rtol=1e-5)
    log_target = np.log(np.where(target > 0, target, 1.0))
    np.testing.assert_allclose(surprise, (target * (log_target - log_p)).sum(-1), rtol=1e-4, atol=1e-6)
    same, none = values.error(jnp.log(jnp.asarray(target[1:])), jnp.asarray(target[1:]))
    np.testing.assert_allclose(none, 0.0, atol=1e-5)
    assert (np.asarray(same) > 0).all()
    np.testing.assert_allclose(
        values.mean(outputs), softmax(outputs) @ np.linspace(-1, 1, 7), rtol=1e-4, atol=1e-6
    )


@QUICK
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 7]), st.sampled_from([None, 0.3, 1.0]))
def test_quantile_loss_is_the_papers(seed: int, number: int, kappa: float | None) -> None:
    rng, values = np.random.default_rng(seed), quantiles(number, kappa)
    outputs, target = rng.normal(size=(2, 3, number)).astype(np.float32) * 2.0
    loss, surprise = values.error(jnp.asarray(outputs), jnp.asarray(target))
    for row in range(3):
        total, size = 0.0, 0.0
        for i in range(number):
            level = (i + 0.5) / number
            for j in range(number):
                u = float(target[row, j]) - float(outputs[row, i])
                if kappa is None:
                    curve = abs(u)
                else:
                    curve = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                    curve /= kappa
                total += abs(level - (u < 0)) * curve / number
                size += abs(u) / number**2
        assert float(loss[row]) == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert float(surprise[row]) == pytest.approx(size, rel=1e-4, abs=1e-5)


def test_quantiles_find_the_quantiles() -> None:
    """The loss is least at the quantiles of the target: of 0, 1, ..., 8, three are 1, 4 and 7."""
    values, target = quantiles(3, None), jnp.arange(9.0)
    outputs = jnp.zeros(3)
    slope = jax.jit(jax.grad(lambda x: values.error(x, target)[0]))
    for k in range(3000):
        outputs = outputs - (0.5 / (1 + 0.01 * k)) * slope(outputs)
    np.testing.assert_allclose(outputs, [1.0, 4.0, 7.0], atol=0.15)


@pytest.mark.parametrize("delta", [0.5, 1.0, None])
def test_huber(delta: float | None) -> None:
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    bound = np.inf if delta is None else delta
    inner = np.minimum(np.abs(x), bound)
    expected = np.where(np.abs(x) <= bound, 0.5 * x * x, inner * np.abs(x) - 0.5 * inner**2)
    np.testing.assert_allclose(huber(x, delta), expected, rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda e: huber(e, delta)))(x)
    np.testing.assert_allclose(slope, np.clip(x, -bound, bound), rtol=1e-6)


def test_rescaling_and_its_inverse() -> None:
    x = np.concatenate([[0.0], np.logspace(-6, 6, 200)]).astype(np.float32)
    x = np.concatenate([-x[::-1], x])
    exact = np.sign(x) * (np.sqrt(np.abs(x.astype(np.float64)) + 1.0) - 1.0) + 1e-3 * x
    np.testing.assert_allclose(rescaled(x), exact, rtol=1e-5)
    np.testing.assert_allclose(unscaled(rescaled(x)), x, rtol=1e-5)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        expected_value,
        lambda rescale: categorical(401, -50.0, 50.0, rescale=rescale),
        lambda rescale: quantiles(3, rescale=rescale),
    ],
    ids=["expected", "categorical", "quantile"],
)
def test_target_is_the_bellman_operator(make: object, rescale: bool) -> None:
    """Of a return known for certain, all kinds say reward + onward * value, of numbers rescaled or not."""
    values: ValueDistribution = make(rescale=rescale)  # pyright: ignore[reportCallIssue]
    z = 10.0
    if values.size == 401:
        after = np.where(np.arange(401) == 240, 100.0, 0.0).astype(np.float32)[None]
    else:
        after = np.full((1, values.size), z, np.float32)
    target = values.target(after, np.asarray([3.0], np.float32), np.asarray([0.5], np.float32))
    expected = 3.0 + 0.5 * z
    if rescale:
        inner = 3.0 + 0.5 * float(unscaled(np.float32(z)))
        expected = np.sqrt(inner + 1.0) - 1.0 + 1e-3 * inner
    np.testing.assert_allclose(values.expected(target), [expected], rtol=1e-4)


def test_targets_are_constants() -> None:
    for values in (expected_value(), categorical(5, -1.0, 1.0), quantiles(4)):
        after = jnp.ones((2, values.size))

        def total(after: jax.Array, values: ValueDistribution = values) -> jax.Array:
            return values.target(after, jnp.ones(2), jnp.ones(2)).sum()

        assert not np.asarray(jax.grad(total)(after)).any()
