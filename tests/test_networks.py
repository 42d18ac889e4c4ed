"""Networks: what they compute, what memory does to them, and modules of other frameworks as torsos."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from shoal.errors import ShoalError
from shoal.keys import key_for
from shoal.layers import MINATAR, NATURE, is_image, orthogonal
from shoal.networks import (
    ActorCritic,
    Network,
    NetworkFn,
    actor_critic,
    convolutional,
    feedforward,
    flat_size,
    flatten,
    from_equinox,
    from_linen,
    from_nnx,
    recurrent,
    torso,
)
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from shoal.types import EnvSpec, Observation

KEY = key_for(0, "test-networks")
FLAT = Box((4,))
NESTED = Dict.of(
    {
        "camera": Box((4, 10, 12), 0, 255, "uint8"),
        "body": Tuple((Box((2, 3)), Discrete(3, start=1))),
        "tools": Dict.of({"held": MultiBinary((2,)), "kind": MultiDiscrete((2, 3), start=(0, 5))}),
    }
)


def observations(space: Space, *leading: int, seed: int = 0) -> Any:
    """Random observations, pytree of [*leading, ...]."""
    rng = np.random.default_rng(seed)

    def fill(inner: Space) -> Any:
        match inner:
            case Box(dtype="uint8"):
                return rng.integers(0, 256, (*leading, *inner.shape), np.uint8)
            case Box():
                return rng.normal(size=(*leading, *inner.shape)).astype(inner.dtype)
            case Discrete():
                return rng.integers(inner.start, inner.start + inner.n, leading).astype(np.int32)
            case MultiDiscrete():
                offsets = np.asarray(inner.start or 0, np.int32)
                return rng.integers(0, inner.nvec, (*leading, len(inner.nvec))).astype(np.int32) + offsets
            case MultiBinary():
                return rng.integers(0, 2, (*leading, *inner.shape)).astype(np.int8)
            case Tuple():
                return tuple(fill(s) for s in inner.spaces)
            case Dict():
                return {name: fill(s) for name, s in inner.spaces}

    return fill(space)


def shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def spec(observation: Space = FLAT, critic: Space | None = None) -> EnvSpec:
    return EnvSpec(id="Test-v0", observation=observation, action=Discrete(3), critic=critic)


def some_params(network: Network | ActorCritic) -> Any:
    """Parameters of the right shapes without the time that it takes to compile `init`."""
    rng = np.random.default_rng(0)
    wanted = jax.eval_shape(network.init, KEY)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4, a.dtype), wanted)


def features_of(network: Network, params: Any, x: Any) -> np.ndarray:
    """What `step` gives for rows of a network without memory."""
    first = np.zeros(len(jax.tree.leaves(x)[0]), bool)
    return np.asarray(jax.jit(lambda p, x: network.step(p, (), x, first)[0])(params, x))


# Layers


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, 5), (4, 4)])
def test_orthogonal_columns_or_rows(rows: int, columns: int) -> None:
    noise = np.random.default_rng(0).normal(size=(2, rows, columns)).astype(np.float32)
    made = np.asarray(orthogonal(jnp.asarray(noise), 2.0))
    for q in made:
        product = q.T @ q if rows >= columns else q @ q.T
        np.testing.assert_allclose(product, 4.0 * np.eye(min(rows, columns)), atol=1e-5)
    # Q of a QR decomposition with positive diagonal: the first direction is that of the noise itself.
    lead, source = (made[0][:, 0], noise[0][:, 0]) if rows >= columns else (made[0][0], noise[0][0])
    np.testing.assert_allclose(lead, 2.0 * source / np.linalg.norm(source), atol=1e-5)


def test_flatten_writes_every_kind_of_space_in_order() -> None:
    x = {
        "camera": np.full((4, 10, 12), 51, np.uint8),
        "body": (np.arange(6, dtype=np.float32).reshape(2, 3), np.int32(2)),
        "tools": {"held": np.array([1, 0], np.int8), "kind": np.array([1, 7], np.int32)},
    }
    expected = [0, 1, 2, 3, 4, 5] + [0, 1, 0] + [0.2] * 480 + [1, 0] + [0, 1] + [0, 0, 1]
    flat = flatten(NESTED, x)
    assert flat.shape == (flat_size(NESTED),)
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat, expected, rtol=1e-6)
    rows = flatten(NESTED, observations(NESTED, 2, 3))
    assert rows.shape == (2, 3, flat_size(NESTED))


def test_bytes_are_scaled_by_their_upper_bound_and_other_numbers_are_not() -> None:
    assert flatten(Box((2,), 0, 255, "uint8"), np.array([0, 255], np.uint8)).tolist() == [0, 1]
    assert flatten(Box((2,), 0, 1, "uint8"), np.array([0, 1], np.uint8)).tolist() == [0, 1]
    assert flatten(Box((2,), -5, 5, "int64"), np.array([-5, 4])).tolist() == [-5, 4]
    assert flatten(Box((2,), dtype="float64"), np.array([0.5, 300.0])).dtype == np.float32
    assert flatten(Box(()), np.float32(3.0)).tolist() == [3.0]


# Torsos


def test_mlp_is_the_formula_and_starts_orthogonal() -> None:
    params = jax.jit(torso(FLAT, (8, 6), "relu").init)(KEY)
    assert shapes(params) == {
        "layers_0": {"kernel": (4, 8), "bias": (8,)},
        "layers_1": {"kernel": (8, 6), "bias": (6,)},
    }
    kernel = np.asarray(params["layers_1"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 2.0 * np.eye(6), atol=1e-5)
    assert not np.any(params["layers_0"]["bias"])
    params = jax.tree.map(lambda p: p + 0.1, params)
    x = observations(FLAT, 5)
    y = x
    for layer in params.values():
        y = np.maximum(y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0.0)
    np.testing.assert_allclose(features_of(torso(FLAT, (8, 6), "relu"), params, x), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu", "gelu"])
def test_activations(activation: str) -> None:
    known = {
        "tanh": math.tanh(1.0),
        "relu": 1.0,
        "silu": 1.0 / (1.0 + math.exp(-1.0)),
        "gelu": 0.5 * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * 1.044715)),
    }
    one = {"layers_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}
    y = features_of(torso(Box((1,)), (1,), activation), one, np.ones((1, 1), np.float32))
    assert float(y[0, 0]) == pytest.approx(known[activation], abs=1e-5)


def test_wrong_settings_get_one_clear_line() -> None:
    with pytest.raises(ShoalError, match="did you mean 'tanh'"):
        torso(FLAT, (8,), "tahn")
    with pytest.raises(ShoalError, match="at least one unit"):
        torso(FLAT, (8, 0))
    with pytest.raises(ShoalError, match="at least 1"):
        recurrent(torso, 0)
    with pytest.raises(ShoalError, match="needs an image"):
        convolutional(FLAT)
    with pytest.raises(ShoalError, match="too small"):
        convolutional(Box((2, 2, 9), 0, 255, "uint8"))


@pytest.mark.parametrize(
    ("shape", "channels", "features"),
    [
        ((84, 84, 4), 4, 512),
        ((4, 84, 84), 4, 512),  # frame stack of grey images
        ((2, 40, 36, 3), 6, 512),  # frame stack of colour images
        ((36, 36), 1, 512),
        ((35, 84, 3), 3, 128),
        ((10, 10, 12), 12, 128),  # MinAtar-like, more channels than pixels
    ],
)
def test_images(shape: tuple[int, ...], channels: int, features: int) -> None:
    space = Box(shape, 0, 255, "uint8")
    assert is_image(space)
    network = torso(space, (8,))
    params = jax.eval_shape(network.init, KEY)
    filters = (NATURE if features == 512 else MINATAR).filters
    assert len(params) == len(filters) + 1
    assert params["conv_0"]["kernel"].shape == (filters[0][1], filters[0][1], channels, filters[0][0])
    y = jax.eval_shape(network.unroll, params, (), observations(space, 2, 3), np.zeros((2, 3), bool))[0]
    assert (y.shape, y.dtype) == ((2, 3, features), np.float32)


def test_nature_network_has_the_published_sizes() -> None:
    params = jax.eval_shape(torso(Box((84, 84, 4), 0, 255, "uint8")).init, KEY)
    assert params["dense"]["kernel"].shape == (3136, 512)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 1_684_128
    assert NATURE.smallest == 36


def test_a_frame_stack_is_its_images_as_channels() -> None:
    stacked, channels_last = Box((3, 9, 8), 0, 255, "uint8"), Box((9, 8, 3), 0, 255, "uint8")
    x = observations(stacked, 2)
    params = some_params(torso(channels_last))
    a = features_of(torso(stacked), params, x)
    b = features_of(torso(channels_last), params, np.moveaxis(x, 1, 3))
    np.testing.assert_allclose(a, b, atol=1e-5)
    many = Box((2, 9, 8, 3), 0, 255, "uint8")
    y = observations(many, 2)
    joined = np.moveaxis(y, 1, 3).reshape(2, 9, 8, 6)
    params = some_params(torso(many))
    c = features_of(torso(many), params, y)
    d = features_of(torso(Box((9, 8, 6), 0, 255, "uint8")), params, joined)
    np.testing.assert_allclose(c, d, atol=1e-5)


def test_the_small_network_is_a_convolution_and_a_dense_layer() -> None:
    space = Box((4, 5, 2), 0, 255, "uint8")
    params = some_params(torso(space))
    x = observations(space, 1)
    kernel = np.asarray(params["conv_0"]["kernel"])
    image = x[0].astype(np.float64) / 255.0
    out = np.zeros((2, 3, 16))
    for i in range(2):
        for j in range(3):
            out[i, j] = np.einsum("hwc,hwcf->f", image[i : i + 3, j : j + 3], kernel)
    hidden = np.maximum(out + params["conv_0"]["bias"], 0.0).reshape(-1)
    dense = hidden @ np.asarray(params["dense"]["kernel"]) + params["dense"]["bias"]
    np.testing.assert_allclose(features_of(torso(space), params, x)[0], np.maximum(dense, 0.0), atol=1e-4)


def test_boxes_that_are_no_images_are_flattened() -> None:
    for space in (Box((84, 84, 4)), Box((128,), 0, 255, "uint8"), Box((2, 2, 9), 0, 255, "uint8")):
        assert not is_image(space)
        assert set(jax.eval_shape(torso(space, (8,)).init, KEY)) == {"layers_0"}


def test_nested_observations_join_images_and_the_rest() -> None:
    network = torso(NESTED, (8,))
    params = some_params(network)
    assert shapes(params["layers_0"]["kernel"]) == (128 + 6 + 3 + 2 + 5, 8)
    assert set(params["images"]) == {"camera"}
    x = observations(NESTED, 3)
    camera = Box((4, 10, 12), 0, 255, "uint8")
    seen = features_of(torso(camera), params["images"]["camera"], x["camera"])
    rest = Dict.of({name: space for name, space in NESTED.spaces if name != "camera"})
    flat = flatten(rest, {name: part for name, part in x.items() if name != "camera"})
    joined = np.concatenate([flat[:, :9], seen, flat[:, 9:]], axis=1)
    y = np.tanh(joined @ np.asarray(params["layers_0"]["kernel"]) + params["layers_0"]["bias"])
    np.testing.assert_allclose(features_of(network, params, x), y, atol=1e-4)


@pytest.mark.parametrize("space", [FLAT, NESTED], ids=["flat", "nested"])
def test_a_row_depends_on_itself_alone(space: Space) -> None:
    network = torso(space, (8,))
    params = some_params(network)
    step = jax.jit(lambda x: network.step(params, (), x, np.zeros(4, bool))[0])
    x, other = observations(space, 4), observations(space, 4, seed=1)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:2], b[2:]]), x, other)
    assert np.array_equal(step(x)[:2], step(mixed)[:2])
    assert not np.array_equal(step(x)[2:], step(mixed)[2:])


# Memory


def gru_by_hand(params: Any, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    size = h.shape[-1]
    w, b = np.asarray(params["input"]["kernel"]), np.asarray(params["input"]["bias"])
    u, c = np.asarray(params["hidden"]["kernel"]), np.asarray(params["hidden"]["bias"])
    xr, xz, xn = np.split(x @ w + b, 3, axis=1)
    hr, hz, hn = np.split(h @ u, 3, axis=1)
    r, z = 1 / (1 + np.exp(-(xr + hr))), 1 / (1 + np.exp(-(xz + hz)))
    n = np.tanh(xn + r * (hn + c))
    assert n.shape[1] == size
    return (1 - z) * n + z * h


@pytest.mark.parametrize("deep", [False, True], ids=["one", "stacked"])
def test_unroll_is_step_after_step_with_resets(deep: bool) -> None:
    inner: NetworkFn = lambda space: torso(space, (6,))  # noqa: E731
    network = recurrent(recurrent(inner, 7) if deep else inner, 5)(FLAT)
    params = some_params(network)
    x = observations(FLAT, 9, 4)
    first = np.random.default_rng(1).random((9, 4)) < 0.3
    carry = jax.tree.map(lambda h: h + 0.5, network.begin(4))  # a memory in the middle of an episode
    whole, last = jax.jit(network.unroll)(params, carry, x, first)
    assert whole.shape == (9, 4, 5)
    step = jax.jit(network.step)
    for t in range(9):
        y, carry = step(params, carry, x[t], first[t])
        np.testing.assert_allclose(whole[t], y, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, carry)
    assert jax.tree.structure(last) == jax.tree.structure(network.begin(4))


def test_the_memory_is_a_gru() -> None:
    network = recurrent(lambda space: torso(space, ()), 5)(FLAT)
    params = some_params(network)
    h, x = np.random.default_rng(2).normal(size=(2, 3, 5)).astype(np.float32)
    x = observations(FLAT, 3)
    y, carry = jax.jit(network.step)(params, {"memory": h}, x, np.array([False, True, False]))
    h[1] = 0.0
    np.testing.assert_allclose(y, gru_by_hand(params["memory"], h, x), atol=1e-5)
    assert np.array_equal(carry["memory"], y)


def test_a_reset_forgets_everything_and_only_in_its_row() -> None:
    network = recurrent(lambda space: torso(space, (6,)), 5)(FLAT)
    params = some_params(network)
    x = observations(FLAT, 6, 2)
    first = np.zeros((6, 2), bool)
    first[3, 0] = True
    y, _ = jax.jit(network.unroll)(params, network.begin(2), x, first)
    fresh, _ = jax.jit(network.unroll)(params, network.begin(2), x[3:], first[3:])
    np.testing.assert_allclose(y[3:, 0], fresh[:, 0], atol=1e-6)
    assert np.abs(np.asarray(y[3:, 1] - fresh[:, 1])).max() > 1e-3


# Actor and critic


def build(
    *,
    observation: Space = FLAT,
    privileged: Space | None = None,
    outputs: int = 3,
    free: int = 0,
    network: NetworkFn | None = None,
    memory: int = 0,
    shared: bool = False,
    critic: bool = True,
) -> ActorCritic:
    return actor_critic(
        spec(observation, privileged),
        outputs,
        free,
        network,
        hidden=(6,),
        activation="tanh",
        memory=memory,
        shared=shared,
        critic=critic,
        free_init=-0.5,
    )


@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_acting_row_by_row_gives_what_unroll_gives(shared: bool, memory: int, critic: bool) -> None:
    net = build(free=2, memory=memory, shared=shared, critic=critic)
    assert net.recurrent == (memory > 0)
    params = some_params(net)
    obs = Observation(observations(FLAT, 5, 4))
    first = np.random.default_rng(3).random((5, 4)) < 0.3
    carry = net.begin(4)
    logits, values = jax.jit(net.unroll)(params, carry, obs, first)
    assert (logits.shape, values.shape, values.dtype) == ((5, 4, 5), (5, 4), np.float32)
    assert np.any(values) == critic
    assert (np.asarray(logits[..., 3:]) == params["policy"]["free"]).all()
    step = jax.jit(net.step)
    for t in range(5):
        row, after = step(net.acting(params), carry, Observation(obs.policy[t]), first[t])
        np.testing.assert_allclose(row, logits[t], atol=1e-6)
        assert shapes(after) == shapes(carry)
        carry = after


def test_parameters_and_the_part_that_acts() -> None:
    apart, shared = (jax.eval_shape(net.init, KEY) for net in (build(free=1), build(shared=True)))
    layers = {"layers_0": {"kernel": (4, 6), "bias": (6,)}}
    policy, value = {"kernel": (6, 3), "bias": (3,)}, {"kernel": (6, 1), "bias": (1,)}
    assert shapes(apart) == {
        "policy": {"torso": layers, "head": policy, "free": (1,)},
        "value": {"torso": layers, "head": value},
    }
    assert shapes(shared) == {"torso": layers, "policy": {"head": policy}, "value": {"head": value}}
    assert set(build(free=1).acting(apart)) == {"policy"}
    assert set(build(shared=True).acting(shared)) == {"torso", "policy"}
    assert set(jax.eval_shape(build(critic=False).init, KEY)) == {"policy"}
    own_memory = build(memory=5)
    assert set(own_memory.acting(some_params(own_memory))["value"]) == {"torso"}
    assert shapes(own_memory.begin(2)) == {"policy": {"memory": (2, 5)}, "value": {"memory": (2, 5)}}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((apart, shared)))


def test_heads_start_small_for_the_policy_and_at_one_for_the_value() -> None:
    net = build(free=2)
    params = net.init(KEY)
    assert np.asarray(params["policy"]["free"]).tolist() == [-0.5, -0.5]
    kernel = np.asarray(params["policy"]["head"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(3), atol=1e-8)
    assert np.linalg.norm(params["value"]["head"]["kernel"]) == pytest.approx(1.0, abs=1e-6)
    torsos = [np.asarray(params[role]["torso"]["layers_0"]["kernel"]) for role in ("policy", "value")]
    assert not np.allclose(*torsos)
    again = net.init(KEY)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    other = net.init(key_for(1, "test-networks"))
    assert not np.allclose(params["policy"]["head"]["kernel"], other["policy"]["head"]["kernel"])


@pytest.mark.parametrize("memory", [0, 5])
def test_the_critic_sees_more_and_the_policy_does_not(memory: int) -> None:
    net = build(privileged=Box((2,)), memory=memory)
    params = some_params(net)
    policy, secret, other = (
        observations(FLAT, 3, 2),
        observations(Box((2,)), 3, 2),
        np.ones((3, 2, 2), np.float32),
    )
    first = np.zeros((3, 2), bool)
    unroll = jax.jit(net.unroll)
    logits, values = unroll(params, net.begin(2), Observation(policy, secret), first)
    same, changed = unroll(params, net.begin(2), Observation(policy, other), first)
    assert np.array_equal(logits, same)
    assert not np.array_equal(values, changed)
    torso_params = params["value"]["torso"]["torso"] if memory else params["value"]["torso"]
    assert torso_params["layers_0"]["kernel"].shape == (4 + 2, 6)
    # The value's memory is carried while acting, so that a fragment can begin in mid-episode.
    carry = net.begin(2)
    step = jax.jit(net.step)
    for t in range(2):
        _, carry = step(net.acting(params), carry, Observation(policy[t], secret[t]), first[t])
    _, later = unroll(params, carry, Observation(policy[2:], secret[2:]), first[2:])
    np.testing.assert_allclose(later[0], values[2], atol=1e-6)


def test_a_shared_torso_cannot_see_more_for_the_critic() -> None:
    with pytest.raises(ShoalError, match="set shared=False"):
        build(privileged=Box((2,)), shared=True)
    build(privileged=Box((2,)), shared=True, critic=False)


def test_the_gradient_reaches_every_parameter() -> None:
    for shared in (True, False):
        net = build(observation=NESTED, free=1, memory=5, shared=shared)
        params = some_params(net)
        obs, first = Observation(observations(NESTED, 4, 3)), np.zeros((4, 3), bool)

        def loss(p: Any, net: ActorCritic = net, obs: Observation = obs, first: Any = first) -> jax.Array:
            logits, values = net.unroll(p, net.begin(3), obs, first)
            return jnp.sum(logits**2) + jnp.sum((values - 1.0) ** 2)

        gradient = jax.jit(jax.grad(loss))(params)
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradient))


def test_network_functions_get_the_space_of_their_role() -> None:
    seen = []

    def network(space: Space) -> Network:
        seen.append(space)
        return torso(space, (4,))

    build(network=network, privileged=Box((2,)))
    assert seen == [FLAT, Dict.of({"critic": Box((2,)), "policy": FLAT})]
    seen.clear()
    build(network=network, shared=True)
    assert seen == [FLAT]


def test_a_network_that_gives_no_rows_of_features_is_refused() -> None:
    wrong: list[tuple[Callable[[Any, Any], Any], str]] = [
        (lambda p, x: x.sum(axis=-1), "into"),
        (lambda p, x: x.T, "into"),
        (lambda p, x: (x, x), "into"),
        (lambda p, x: x.astype(jnp.int32), "floats"),
    ]
    for apply, words in wrong:
        with pytest.raises(ShoalError, match=words):
            build(network=lambda space, apply=apply: feedforward(lambda key: {}, apply))


# Modules of other frameworks


class LinenTorso(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.tanh(nn.Dense(5)(nn.tanh(nn.Dense(8)(x))))


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(use_running_average=True)(x)


class LinenNoise(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x))


class NnxTorso(nnx.Module):
    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(inputs, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)])
        self.norm = nnx.LayerNorm(5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return self.norm(x)


class NnxNoise(nnx.Module):
    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(inputs, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.layer(x))


def prng() -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(KEY), impl="threefry2x32")


def own_linen(x: np.ndarray) -> Any:
    module = LinenTorso()
    return module.apply(module.init(prng(), x), x)


def own_nnx(x: np.ndarray) -> Any:
    return NnxTorso(4, nnx.Rngs(prng()))(jnp.asarray(x))


def own_equinox(x: np.ndarray) -> Any:
    return jax.vmap(eqx.nn.MLP(4, 5, 8, 2, key=prng()))(jnp.asarray(x))


@pytest.mark.parametrize(
    ("network", "own"),
    [
        (from_linen(LinenTorso()), own_linen),
        (from_nnx(lambda space, rngs: NnxTorso(flat_size(space), rngs)), own_nnx),
        (from_equinox(lambda space, key: eqx.nn.MLP(flat_size(space), 5, 8, 2, key=key)), own_equinox),
    ],
    ids=["linen", "nnx", "equinox"],
)
def test_modules_become_networks_of_plain_parameters(
    network: NetworkFn, own: Callable[[np.ndarray], Any]
) -> None:
    def check_plain(tree: Any) -> None:
        if type(tree) is dict:
            assert all(type(name) is str for name in tree)
            jax.tree.map(check_plain, list(tree.values()), is_leaf=lambda node: isinstance(node, dict))
        else:
            assert isinstance(tree, jax.Array)
            assert tree.dtype == np.float32

    net = network(FLAT)
    x = observations(FLAT, 6)
    params, expected = jax.jit(lambda key, x: (net.init(key), own(x)))(KEY, x)
    check_plain(params)
    y = features_of(net, params, x)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    rows, _ = jax.jit(net.unroll)(params, (), x.reshape(2, 3, 4), np.zeros((2, 3), bool))
    np.testing.assert_allclose(rows.reshape(6, 5), y, atol=1e-6)

    ac = build(network=network)
    params = some_params(ac)

    def loss(p: Any) -> jax.Array:
        logits, values = ac.unroll(p, (), Observation(x.reshape(2, 3, 4)), np.zeros((2, 3), bool))
        return jnp.sum(logits**2) + jnp.sum(values**2)

    gradient = jax.jit(jax.grad(loss))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_modules_with_state_beside_parameters_are_refused() -> None:
    with pytest.raises(ShoalError, match="batch_stats"):
        from_linen(LinenNorm())(FLAT)
    with pytest.raises(ShoalError, match="RngKey"):
        from_nnx(lambda space, rngs: NnxNoise(4, rngs))(FLAT)
    with pytest.raises(ShoalError, match="LinenNoise cannot be called with observations alone, here of Box"):
        from_linen(LinenNoise())(FLAT)
    for layer in (lambda key: eqx.nn.Dropout(0.5), lambda key: eqx.nn.BatchNorm(4, "batch", mode="ema")):
        with pytest.raises(ShoalError, match="cannot be called with observations alone") as caught:
            from_equinox(lambda space, key, layer=layer: layer(key))(FLAT)
        assert "\n" not in str(caught.value)


def test_what_is_no_float_in_an_equinox_module_stays_constant() -> None:
    class Chooser(eqx.Module):
        weight: jax.Array
        columns: jax.Array
        scale: float

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.scale * x[self.columns] * self.weight

    net = from_equinox(lambda space, key: Chooser(jnp.ones(2), jnp.array([3, 0]), 2.0))(FLAT)
    params = net.init(KEY)
    assert shapes(params) == {"weight": (2,)}
    x = observations(FLAT, 3)
    assert np.array_equal(net.step(params, (), x, None)[0], 2.0 * x[:, [3, 0]])


def test_records_are_frozen() -> None:
    for record in (torso(FLAT), build()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.init = None  # type: ignore[misc]
