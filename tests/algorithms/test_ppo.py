"""PPO's loss against the paper's formulas in plain NumPy, and its schedules and stops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import PPO, ShoalError
from shoal.counters import value
from shoal.keys import key_for
from shoal.spaces import Box, Discrete
from shoal.types import EnvSpec, Gradient, Observation, State, Trajectory

SPEC = EnvSpec(id="test", observation=Box((3,)), action=Discrete(2))
T, B = 6, 4


def fragment(seed: int = 0) -> Trajectory:
    rng = np.random.default_rng(seed)
    first = np.zeros((T + 1, B), bool)
    first[0] = True
    first[3, 1] = True  # the reset row of environment 1 is row 2
    terminated = np.zeros((T, B), bool)
    terminated[1, 1] = True
    reward = rng.normal(size=(T, B)).astype(np.float32)
    reward[2, 1] = 0.0
    return Trajectory(
        obs=Observation(rng.normal(size=(T + 1, B, 3)).astype(np.float32)),
        first=first,
        action=rng.integers(0, 2, (T, B)).astype(np.int32),
        reward=reward,
        terminated=terminated,
        version=np.zeros((T, B), np.int32),
        extras={
            "raw_action": rng.integers(0, 2, (T, B)).astype(np.int32),
            "log_prob": np.log(rng.uniform(0.2, 0.8, (T, B))).astype(np.float32),
        },
        carry=(),
    )


def forward(params: Any, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities, values) of the two small networks, written out."""

    def dense(layer: Any, x: np.ndarray) -> np.ndarray:
        return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)

    outputs = []
    for part in ("policy", "value"):
        hidden = np.tanh(dense(params[part]["torso"]["layers_0"], obs))
        outputs.append(dense(params[part]["head"], hidden))
    logits, values = outputs
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), values[..., 0]


@pytest.mark.parametrize("value_clip", [None, 0.1])
def test_loss_is_the_papers(value_clip: float | None) -> None:
    ppo = PPO(
        hidden=(5,),
        epochs=1,
        minibatches=1,
        value_clip=value_clip,
        entropy_coefficient=0.03,
        rollout_length=T,
    )
    agent = ppo.bind(SPEC)
    state = agent.init(key_for(0, "init"))
    exp = fragment()

    @jax.jit
    def first_gradient(state: State, exp: Trajectory, key: Any) -> Gradient:
        batch = agent.batches(state, exp, key)
        return agent.grads(state, jax.tree.map(lambda x: x[batch.index[0]], batch.rows), key)

    gradient = first_gradient(state, exp, key_for(0, "k"))

    log_p, values = forward(state.params, exp.obs.policy.astype(np.float64))
    weight = 1.0 - exp.first[1:]
    advantage, following = np.zeros((T, B)), np.zeros(B)
    for t in reversed(range(T)):
        alive = 1.0 - exp.terminated[t]
        delta = exp.reward[t] + ppo.discount * alive * values[t + 1] - values[t]
        following = weight[t] * (delta + ppo.discount * ppo.gae_lambda * alive * following)
        advantage[t] = following
    target = advantage + values[:-1]
    mean = (advantage * weight).sum() / weight.sum()
    deviation = np.sqrt((np.square(advantage - mean) * weight).sum() / weight.sum())
    advantage = (advantage - mean) / (deviation + 1e-8)
    chosen = np.take_along_axis(log_p[:-1], exp.extras["raw_action"][..., None], -1)[..., 0]
    ratio = np.exp(chosen - exp.extras["log_prob"])
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    entropy = -(np.exp(log_p) * log_p).sum(-1)[:-1]
    error = np.square(values[:-1] - target)  # the value has not moved yet, so clipping changes nothing

    assert float(gradient.weight) == weight.sum()
    for name, expected in {
        "loss/policy": -surrogate,
        "loss/value": error,
        "policy/entropy": entropy,
        "policy/clip_fraction": np.abs(ratio - 1) > 0.2,
    }.items():
        assert float(gradient.metrics[name]) == pytest.approx(
            float((expected * weight).sum()), rel=1e-4, abs=1e-5
        )
    # The value head's bias: d/db sum w * c_v * (V - target)^2.
    expected = (2 * ppo.value_coefficient * (values[:-1] - target) * weight).sum()
    assert float(gradient.sum["value"]["head"]["bias"][0]) == pytest.approx(expected, rel=1e-4)


def learned(ppo: PPO) -> tuple[Any, Any]:
    agent = ppo.bind(SPEC)
    state = agent.init(key_for(0, "init"))
    return state, agent.learn(state, fragment(), key_for(0, "learn"))


def test_counts_real_steps_and_updates() -> None:
    _, update = learned(PPO(hidden=(5,), epochs=3, minibatches=4, rollout_length=T))
    assert value(update.state.env_steps) == T * B - 1
    assert value(update.state.updates) == 12


def test_target_kl_stops_the_update() -> None:
    start, update = learned(PPO(hidden=(5,), epochs=3, minibatches=4, rollout_length=T, target_kl=1e-6))
    assert value(update.state.updates) < 12
    assert value(update.state.env_steps) == T * B - 1
    assert not update.state.extra["ppo_stopped"]  # the next update starts afresh
    assert jax.tree.structure(start) == jax.tree.structure(update.state)


def test_annealing_ends_at_zero() -> None:
    ppo = PPO(hidden=(5,), epochs=1, minibatches=1, rollout_length=T, anneal_steps=T * B - 1)
    agent = ppo.bind(SPEC)
    first = agent.learn(agent.init(key_for(0, "init")), fragment(), key_for(0, "a")).state
    second = agent.learn(first, fragment(1), key_for(0, "b")).state
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_minibatches_must_divide() -> None:
    ppo = PPO(hidden=(5,), minibatches=5, rollout_length=T)
    with pytest.raises(
        ShoalError, match="minibatches=5 does not divide the 24 rows of an update; minibatches=4"
    ):
        jax.eval_shape(
            ppo.bind(SPEC).learn, ppo.bind(SPEC).init(jnp.zeros(2, jnp.uint32)), fragment(), key_for(0, "x")
        )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"discount": 1.5}, "discount must lie between 0 and 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"clip": -0.1}, "clip must be greater than 0"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ShoalError, match=line):
        PPO(**fields)
