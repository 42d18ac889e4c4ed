"""Minibatches take every row once per epoch; gradients are means over weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.keys import key_for
from shoal.sgd import linear_decay, mean_gradient, minibatches, over_all_rows

shuffled = jax.jit(minibatches, static_argnums=(1, 2, 3))


@settings(deadline=None, derandomize=True, max_examples=15)
@given(size=st.integers(1, 9), count=st.integers(1, 6), epochs=st.integers(1, 3))
def test_every_row_once_per_epoch(size: int, count: int, epochs: int) -> None:
    index = np.asarray(shuffled(key_for(0, "m"), size * count, epochs, count))
    assert index.shape == (epochs * count, size)
    for epoch in index.reshape(epochs, -1):
        assert sorted(epoch) == list(range(size * count))


def test_epochs_are_shuffled_differently() -> None:
    index = np.asarray(minibatches(key_for(0, "m"), 64, 2, 2)).reshape(2, -1)
    assert (index[0] != index[1]).any()
    assert (index[0] != np.arange(64)).any()


def test_mean_gradient_divides_by_weight() -> None:
    mean = mean_gradient({"w": jnp.asarray([6.0, 3.0])}, jnp.float32(3))
    np.testing.assert_allclose(mean["w"], [2.0, 1.0])
    nothing = mean_gradient({"w": jnp.zeros(2)}, jnp.float32(0), 0.5)
    np.testing.assert_array_equal(nothing["w"], [0.0, 0.0])


def test_mean_gradient_is_clipped_to_a_global_norm() -> None:
    total = {"a": jnp.asarray([6.0]), "b": jnp.asarray([8.0])}  # of two rows: the mean's norm is 5
    np.testing.assert_allclose(mean_gradient(total, jnp.float32(2), 1.0)["b"], [0.8], rtol=1e-6)
    np.testing.assert_allclose(mean_gradient(total, jnp.float32(2), 10.0)["b"], [4.0], rtol=1e-6)


def test_over_all_rows_sums_loss_and_metrics_by_weight() -> None:
    weight = jnp.asarray([[1.0, 0.0], [0.5, 2.0]])
    each = jnp.asarray([[1.0, 100.0], [2.0, 3.0]])
    loss, (total, sums) = over_all_rows(each, {"each": -each, "one": jnp.float32(2)}, weight)
    assert (float(loss), float(total)) == (8.0, 3.5)
    assert {name: float(x) for name, x in sums.items()} == {"each": -8.0, "one": 7.0}


def test_linear_decay() -> None:
    rates = [float(linear_decay(2.0, 100, jnp.float32(steps))) for steps in (0, 50, 100, 500)]
    assert rates == [2.0, 1.0, 0.0, 0.0]
    assert float(linear_decay(2.0, None, jnp.float32(1e9))) == 2.0
