"""Critics of continuous actions: what they see, that each is its own, and the rows they learn from."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from shoal.critics import Critics, critics_for, least, minibatch_rows, polyak
from shoal.errors import ShoalError
from shoal.keys import key_for
from shoal.networks import NetworkFn, recurrent, torso
from shoal.spaces import Box
from shoal.types import EnvSpec, Observation, Transitions

SPEC = EnvSpec(id="test", observation=Box((3,)), action=Box((2,), -1.0, 1.0))
RNG = np.random.default_rng(0)
N = 4


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def made(spec: EnvSpec = SPEC, count: int = 2, network: NetworkFn | None = None) -> Critics:
    return critics_for(spec, 2, count, network, hidden=(6,), activation="tanh")


def test_each_critic_is_its_own() -> None:
    critics = made(count=3)
    params = critics.init(key_for(0, "x"))
    obs, action = Observation(numbers(N, 3)), numbers(N, 2)
    values = critics.values(params, obs, action)
    assert [v.shape for v in values] == [(N,)] * 3
    assert not np.allclose(values[0], values[1]) and not np.allclose(values[1], values[2])
    changed = {**params, "critic_1": jax.tree.map(lambda x: x + 1, params["critic_1"])}
    after = critics.values(changed, obs, action)
    assert [np.array_equal(a, b) for a, b in zip(values, after, strict=True)] == [True, False, True]
    np.testing.assert_array_equal(least(values), np.min(np.stack(values), axis=0))


def test_a_critic_is_a_perceptron_of_both() -> None:
    critics = made(count=1)
    params = critics.init(key_for(0, "x"))
    obs, action = numbers(N, 3), numbers(N, 2)
    (value,) = critics.values(params, Observation(obs), action)
    one = jax.tree.map(np.asarray, params["critic_0"])
    layer, head = one["torso"]["layers_0"], one["head"]
    hidden = np.tanh(np.concatenate([action, obs], -1) @ layer["kernel"] + layer["bias"])
    np.testing.assert_allclose(value, (hidden @ head["kernel"] + head["bias"])[:, 0], rtol=1e-5, atol=1e-6)


def test_what_only_the_critic_sees() -> None:
    critics = made(dataclasses.replace(SPEC, critic=Box((4,))))
    params = critics.init(key_for(0, "x"))
    obs, action = Observation(numbers(N, 3), critic=numbers(N, 4)), numbers(N, 2)
    base = least(critics.values(params, obs, action))
    for role in ("policy", "critic"):
        other = obs._replace(**{role: getattr(obs, role) + 1})
        assert not np.allclose(base, least(critics.values(params, other, action)))
    assert params["critic_0"]["torso"]["layers_0"]["kernel"].shape == (9, 6)


def test_images_have_a_network_of_their_own() -> None:
    spec = dataclasses.replace(SPEC, observation=Box((10, 10, 2), 0, 255, "uint8"))
    critics = made(spec)
    params = critics.init(key_for(0, "x"))
    obs = Observation(RNG.integers(0, 255, (N, 10, 10, 2)).astype(np.uint8))
    one, other = (critics.values(params, obs, numbers(N, 2))[0] for _ in range(2))
    assert one.shape == (N,) and not np.allclose(one, other)
    assert params["critic_0"]["torso"]["images"]


def test_a_network_of_the_users_and_then_the_action() -> None:
    critics = made(network=lambda space: torso(space, (5,), "relu"))
    params = critics.init(key_for(0, "x"))
    obs = Observation(numbers(N, 3))
    one, other = (critics.values(params, obs, numbers(N, 2))[0] for _ in range(2))
    assert not np.allclose(one, other)
    mine = params["critic_0"]["torso"]
    assert mine["network"]["layers_0"]["kernel"].shape == (3, 5)
    assert mine["joint"]["layers_0"]["kernel"].shape == (7, 6)


def test_memory_is_refused() -> None:
    with pytest.raises(ShoalError, match="must have no memory"):
        made(network=recurrent(torso, 4))


def test_a_hidden_layer_is_needed() -> None:
    with pytest.raises(ShoalError, match="at least one hidden layer"):
        critics_for(SPEC, 2, 2, None, hidden=(), activation="relu")


def test_rows_sum_rewards_up_to_what_follows() -> None:
    drawn = Transitions(
        obs=Observation(numbers(1, N, 3)),
        action=numbers(1, N, 2),
        reward=np.float32([[[1, 2, 4], [1, 2, 0], [1, 2, 4], [1, 0, 0]]]),
        steps=np.int32([[3, 2, 3, 1]]),
        terminated=np.array([[False, False, True, True]]),
        next_obs=Observation(numbers(1, N, 3)),
        weight=np.ones((1, N), np.float32),
        index=np.arange(N, dtype=np.int32)[None],
    )
    rows = minibatch_rows(drawn, 0.5, key_for(0, "noise"), 2)
    np.testing.assert_allclose(rows["reward"], [[3, 2, 3, 1]])
    np.testing.assert_allclose(rows["onward"], [[0.125, 0.25, 0, 0]])
    assert [x.shape for x in rows["noise"]] == [(1, N, 2)] * 2
    assert len(np.unique(np.stack(rows["noise"]))) == 4 * N


def test_polyak() -> None:
    target, online = {"a": np.float32([0, 1])}, {"a": np.float32([1, 3])}
    np.testing.assert_allclose(polyak(target, online, 0.25)["a"], [0.25, 1.5])
    np.testing.assert_array_equal(polyak(target, online, 1.0)["a"], online["a"])
