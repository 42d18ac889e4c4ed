"""Q-networks: heads against their formulas, noise, memory, and choosing among allowed actions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import ShoalError
from shoal.keys import fold, key_for
from shoal.layers import dense, feedforward
from shoal.spaces import Box, Discrete, Space
from shoal.types import EnvSpec, Observation
from shoal.value_networks import QNetwork, noisy_dense, q_network

A, Z, ROWS = 3, 4, 5


def spec(space: Space) -> EnvSpec:
    return EnvSpec(id="test", observation=space, action=Discrete(A))


VECTOR = spec(Box((6,)))


def rows(seed: int = 0, count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def evaluated(network: QNetwork, params: Any, x: np.ndarray, noise: Any) -> jax.Array:
    first = np.zeros(len(x), bool)
    return jax.jit(network.step)(params, network.begin(len(x)), Observation(x), first, noise)[0]


def test_plain_is_the_torso_and_one_layer() -> None:
    network = q_network(VECTOR, A, hidden=(7,), activation="tanh")
    params = network.init(key_for(0, "init"))
    quiet = jax.jit(network.noise)(key_for(0, "noise"))
    assert quiet.shape == (0,) and not network.recurrent
    x = rows()
    hidden = np.tanh(np.asarray(dense(params["torso"]["layers_0"], x)))
    expected = dense(params["head"]["value"], hidden)
    np.testing.assert_allclose(evaluated(network, params, x, quiet)[..., 0], expected, rtol=1e-5)


def test_dueling_is_value_and_centred_advantage() -> None:
    network = q_network(VECTOR, A, Z, hidden=(7,), dueling=True)
    params = network.init(key_for(0, "init"))
    x = rows()
    outputs = evaluated(network, params, x, np.zeros(0, np.float32))
    y = jax.nn.relu(dense(params["torso"]["layers_0"], x))
    head = params["head"]
    value = dense(head["value"], jax.nn.relu(dense(head["value_hidden"], y)))
    advantage = dense(head["advantage"], jax.nn.relu(dense(head["advantage_hidden"], y))).reshape(ROWS, A, Z)
    np.testing.assert_allclose(outputs.mean(axis=1), value, atol=1e-5)  # the mean over actions is the value
    expected = value[:, None] + advantage - advantage.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    # What is added to all advantages of a state is no one's advantage.
    moved = {**head, "advantage": {**head["advantage"], "bias": head["advantage"]["bias"] + 3.0}}
    again = evaluated(network, {**params, "head": moved}, x, np.zeros(0, np.float32))
    np.testing.assert_allclose(again, outputs, atol=1e-5)


def test_noisy_layer_is_a_layer_with_random_weights() -> None:
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 2)),
        "bias": rng.normal(size=2),
        "kernel_std": rng.normal(size=(3, 2)),
        "bias_std": rng.normal(size=2),
    }
    x, noise = rng.normal(size=(4, 3)), rng.normal(size=(4, 5))
    for i in range(4):
        before, after = noise[i, :3], noise[i, 3:]
        kernel = params["kernel"] + params["kernel_std"] * np.outer(before, after)
        expected = x[i] @ kernel + params["bias"] + params["bias_std"] * after
        np.testing.assert_allclose(noisy_dense(params, x[i], noise[i]), expected, rtol=1e-5)
        np.testing.assert_allclose(noisy_dense(params, x, noise)[i], expected, rtol=1e-4)
    np.testing.assert_allclose(noisy_dense(params, x, np.zeros(5)), dense(params, x), rtol=1e-5)


@pytest.mark.parametrize("dueling", [False, True])
def test_noise(dueling: bool) -> None:
    network = q_network(VECTOR, A, Z, hidden=(8,), dueling=dueling, noisy_std=0.5)
    params = network.init(key_for(0, "init"))
    kernel = params["head"]["value_hidden"]
    np.testing.assert_allclose(kernel["kernel_std"], 0.5 / np.sqrt(8), rtol=1e-6)
    assert np.abs(kernel["kernel"]).max() <= 1 / np.sqrt(8) and np.abs(kernel["kernel"]).max() > 0.3
    keys = fold(key_for(0, "noise"), np.arange(4000))
    noise = np.asarray(jax.jit(network.noise)(keys))
    # f(x) = sign(x) sqrt(|x|) of a normal x: mean 0, and E f^2 = E |x| = sqrt(2 / pi).
    assert abs(noise.mean()) < 0.01 and np.square(noise).mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.01)
    x = rows()
    together = evaluated(network, params, x, noise[:ROWS])
    for i in range(ROWS):
        alone = evaluated(network, params, x[i : i + 1], noise[i])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)
    quiet = evaluated(network, params, x, np.zeros(noise.shape[1], np.float32))
    assert np.abs(together - quiet).max() > 0.01


def test_every_head_on_every_torso_has_its_shape() -> None:
    small = Box((12, 12, 2), 0, 255, "uint8")
    build = lambda space: feedforward(  # noqa: E731
        lambda key: {}, lambda params, x: jnp.concatenate([x, x], axis=-1)
    )
    cases: list[tuple[EnvSpec, Any, dict[str, Any]]] = [
        (spec(small), np.zeros((ROWS, 12, 12, 2), np.uint8), {"dueling": True}),
        (VECTOR, rows(), {"network": build, "noisy_std": 0.1}),
        (VECTOR, rows(), {"memory": 3, "dueling": True, "noisy_std": 0.1}),
        (spec(Discrete(9)), np.arange(ROWS, dtype=np.int32), {"hidden": ()}),
    ]
    for which, x, kwargs in cases:
        network = q_network(which, A, Z, **kwargs)
        params = network.init(key_for(0, "init"))
        outputs = evaluated(network, params, x, jax.jit(network.noise)(key_for(0, "noise")))
        assert outputs.shape == (ROWS, A, Z) and outputs.dtype == jnp.float32, kwargs
        assert set(params) == {"torso", "head"}


def test_memory_unrolls_as_it_steps() -> None:
    network = q_network(VECTOR, A, Z, hidden=(7,), memory=3, dueling=True, noisy_std=0.2)
    assert network.recurrent
    params, noise = network.init(key_for(0, "init")), jax.jit(network.noise)(key_for(0, "noise"))
    x = np.stack([rows(t, 2) for t in range(4)])
    first = np.zeros((4, 2), bool)
    first[0] = first[2, 1] = True
    whole, after = jax.jit(network.unroll)(params, network.begin(2), Observation(x), first, noise)
    carry = network.begin(2)
    for t in range(4):
        now, carry = jax.jit(network.step)(params, carry, Observation(x[t]), first[t], noise)
        np.testing.assert_allclose(now, whole[t], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), carry, after)


def test_networks_without_features_are_refused() -> None:
    flat = lambda space: feedforward(lambda key: {}, lambda params, x: x.sum())  # noqa: E731
    with pytest.raises(ShoalError, match="features"):
        q_network(VECTOR, A, network=flat)
