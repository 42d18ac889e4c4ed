"""The squashed Gaussian against integrals and formulas in double precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.keys import key_for, normal
from shoal.spaces import Box, Dict, Discrete
from shoal.squashed import bounded, log_prob, mode, reparameterized

few = settings(deadline=None, derandomize=True, max_examples=25)


def exact(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The log-density in float64, by the definition: log N(u) - log |d tanh(u) / du|."""
    u = mean + np.exp(log_std) * noise
    slope = -2.0 * np.logaddexp(u, -u) + 2.0 * np.log(2.0)  # log of 1 / cosh(u)^2
    return (-0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - slope).sum(-1)


@few
@given(mean=st.floats(-1.5, 1.5), log_std=st.floats(-1.5, 0.0))
def test_the_density_is_one(mean: float, log_std: float) -> None:
    # The trapezoid in u, where the density is smooth: da = (1 - a^2) du.
    u = np.linspace(mean - 8 * np.exp(log_std), mean + 8 * np.exp(log_std), 4001)
    u = u[np.abs(u) < 7]  # beyond, float32 actions lie too coarsely
    a = np.tanh(u).astype(np.float32)
    logits = np.broadcast_to(np.float32([mean, log_std]), (len(u), 2))
    density = np.exp(np.asarray(log_prob(logits, a[:, None]), np.float64))
    assert np.trapezoid(density, a.astype(np.float64)) == pytest.approx(1.0, abs=3e-3)


def test_two_actions_are_independent() -> None:
    logits = np.float32([0.3, -0.4, -0.5, 0.2])
    raw = np.float32([0.1, -0.7])
    parts = [log_prob(logits[[i, i + 2]], raw[i : i + 1]) for i in range(2)]
    assert float(log_prob(logits, raw)) == pytest.approx(float(sum(parts)), rel=1e-5)


@few
@given(mean=st.floats(-3, 3), log_std=st.floats(-3, 1), noise=st.floats(-4, 4))
def test_density_of_a_sample(mean: float, log_std: float, noise: float) -> None:
    raw, density = reparameterized(np.float32([mean, log_std]), np.float32([noise]))
    truth = exact(*(np.float64([np.float32(x)]) for x in (mean, log_std, noise)))
    assert float(density) == pytest.approx(float(truth), rel=1e-4, abs=1e-4)
    if abs(float(raw[0])) < 0.99:
        assert float(log_prob(np.float32([mean, log_std]), raw)) == pytest.approx(float(truth), abs=2e-2)


@pytest.mark.parametrize("mean", [-60.0, 60.0])
def test_safe_where_tanh_is_one(mean: float) -> None:
    def density(logits: jax.Array) -> jax.Array:
        return reparameterized(logits, jnp.float32([0.5]))[1]

    value, slope = jax.value_and_grad(density)(jnp.float32([mean, 0.0]))
    assert float(value) == pytest.approx(float(exact(*np.float64([[mean], [0.0], [0.5]]))), rel=1e-5)
    assert float(slope[0]) == pytest.approx(np.sign(mean) * 2.0, rel=1e-4)  # d/du of 2 |u|
    assert np.isfinite(slope).all()
    assert np.isfinite(float(log_prob(jnp.float32([mean, 0.0]), jnp.float32([np.sign(mean)]))))


def test_samples_have_the_density() -> None:
    noise = normal(key_for(0, "squashed"), 40_000)[:, None]
    raw, _ = reparameterized(jnp.float32([0.4, -0.3]), noise)
    edges = np.linspace(-1, 1, 21)
    counts, _ = np.histogram(np.asarray(raw)[:, 0], edges)
    fine = np.linspace(-1, 1, 20 * 200 + 1)[1:-1].astype(np.float32)
    logits = np.broadcast_to(np.float32([0.4, -0.3]), (len(fine), 2))
    density = np.exp(log_prob(logits, fine[:, None]))
    expected, _ = np.histogram(fine, edges, weights=density * (2 / 4000))
    np.testing.assert_allclose(counts / 40_000, expected, atol=5e-3)


def test_the_deviation_is_bounded() -> None:
    wide, noise = jnp.float32([0.0, 50.0]), jnp.float32([0.3])
    np.testing.assert_array_equal(*(reparameterized(x, noise)[0] for x in (wide, jnp.float32([0.0, 2.0]))))
    np.testing.assert_array_equal(mode(jnp.float32([0.7, 50.0])), jnp.tanh(jnp.float32([0.7])))


def test_actions_fill_the_box() -> None:
    box = Box((2, 1), (-2.0, 0.0), (4.0, 1.0))
    actions = bounded(box, "SAC")
    assert actions.size == 2
    raw = np.float32([[-1, -1], [1, 1], [0, 0.5]])
    np.testing.assert_array_equal(
        np.asarray(actions.to_env(raw))[..., 0], np.float32([[-2, 0], [4, 1], [1, 0.75]])
    )


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (Box((2,)), "SAC needs an action Box with finite bounds"),
        (Box((1,), 0.0), "SAC needs an action Box with finite bounds"),
        (Box((1,), 0.0, 3.0, "int32"), "a Box of int32 is no continuous action"),
        (Discrete(3), "SAC acts in a Box of real numbers, not in a Discrete"),
        (Dict.of({"a": Box((1,), 0.0, 1.0)}), "SAC acts in a Box of real numbers, not in a Dict"),
    ],
)
def test_other_spaces_are_refused(space: object, line: str) -> None:
    with pytest.raises(ShoalError, match=line) as error:
        bounded(space, "SAC")  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)
