"""APPO's loss and gradient against its formulas in plain NumPy; its target policy; PPO where they meet."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from off_policy import (
    SPACES,
    SPEC,
    B,
    T,
    assert_close,
    compiled,
    fragment,
    minibatch,
    outputs,
    slopes,
    spec_of,
)

from shoal import PPO, ShoalError
from shoal.algorithms.appo import APPO
from shoal.counters import value
from shoal.keys import key_for
from shoal.testing import check_agent
from shoal.transforms import normalize_observations, scale_rewards
from shoal.types import OnPolicy, State, Trajectory

WHOLE: dict[str, Any] = {"hidden": (5,), "rollout_length": T, "minibatches": 1, "epochs": 1}


def two_policies(agent: Any) -> State:
    """A state whose target is not the policy that learns; neither is as even as new ones are."""
    first, second = (agent.init(key_for(i, "init")) for i in range(2))
    for params in (first.params, second.params):
        head = params["policy"]["head"]
        params["policy"]["head"] = {**head, "kernel": 80.0 * head["kernel"]}
    return first._replace(extra={"appo_target": second.params})


def chosen(log_p: np.ndarray, exp: Trajectory) -> np.ndarray:
    return np.take_along_axis(log_p[:-1], exp.extras["raw_action"][..., None], -1)[..., 0]


def parts(params: Any, state: State, exp: Trajectory, cfg: APPO) -> dict[str, np.ndarray]:
    """The loss of each row, [T, B] in float64; advantages and targets are those of `state`."""
    log_p, values = outputs(params, exp.obs.policy)
    _, v = outputs(state.params, exp.obs.policy)
    in_target = chosen(outputs(state.extra["appo_target"], exp.obs.policy)[0], exp)
    acting = exp.extras["log_prob"].astype(np.float64)
    weight = exp.weight
    rho = np.minimum(cfg.rho_bar, np.exp(in_target - acting))
    c = cfg.gae_lambda * np.minimum(cfg.c_bar, np.exp(in_target - acting))
    target, advantage = v.copy(), np.zeros((T, B))
    for b in range(B):
        for t in reversed(range(T)):
            if exp.first[t + 1, b]:  # only resets
                continue
            onward = cfg.discount * (1.0 - exp.terminated[t, b])
            later = target[t + 1, b] - v[t + 1, b]
            delta = exp.reward[t, b] + onward * v[t + 1, b] - v[t, b]
            target[t, b] = v[t, b] + rho[t, b] * delta + onward * c[t, b] * later
            advantage[t, b] = rho[t, b] * (delta + onward * cfg.gae_lambda * later)
    mean = (advantage * weight).sum() / weight.sum()
    deviation = np.sqrt((np.square(advantage - mean) * weight).sum() / weight.sum())
    advantage = (advantage - mean) / (deviation + 1e-8)
    ratio = np.minimum(np.exp(acting - in_target), cfg.acting_clip) * np.exp(chosen(log_p, exp) - acting)
    near = np.clip(ratio, 1 - cfg.clip, 1 + cfg.clip)
    surrogate = np.minimum(ratio * advantage, near * advantage)
    entropy = -(np.exp(log_p) * log_p).sum(-1)[:-1]
    error = np.square(values[:-1] - target[:-1])
    return {
        "total": -surrogate + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy,
        "loss/policy": -surrogate,
        "loss/value": error,
        "policy/entropy": entropy,
        "policy/clip_fraction": np.abs(ratio - 1) > cfg.clip,
        "policy/rho": rho,
    }


def test_loss_and_gradient_are_the_papers() -> None:
    cfg = APPO(**WHOLE, clip=0.3, acting_clip=1.2, rho_bar=1.3, c_bar=0.9, entropy_coefficient=0.03)
    agent = compiled(cfg.bind(SPEC))
    state, exp = two_policies(agent), fragment()
    gradient = agent.grads(state, minibatch(agent, state, exp), key_for(0, "k"))
    weight = exp.weight
    assert float(gradient.weight) == weight.sum() == T * B - 1
    expected = parts(state.params, state, exp, cfg)
    assert 0 < (expected["policy/clip_fraction"] * weight).sum() < weight.sum()
    for name, rows in expected.items():
        if name != "total":
            assert float(gradient.metrics[name]) == pytest.approx((rows * weight).sum(), rel=1e-4, abs=1e-4)
    slope = slopes(lambda p: (parts(p, state, exp, cfg)["total"] * weight).sum(), state.params)
    assert_close(gradient.sum, slope)


def test_it_is_ppo_where_the_policy_that_acted_is_the_target() -> None:
    """A whole update, of several epochs, on fresh data."""
    same: dict[str, Any] = {**WHOLE, "minibatches": 2, "epochs": 2, "gae_lambda": 0.9, "learning_rate": 1e-2}
    ours, other = (compiled(cfg.bind(SPEC)) for cfg in (APPO(**same, target_every=4), PPO(**same)))
    state, exp = ours.init(key_for(0, "init")), fragment()
    log_prob = chosen(outputs(state.params, exp.obs.policy)[0], exp).astype(np.float32)
    exp = exp._replace(extras={"raw_action": exp.extras["raw_action"], "log_prob": log_prob})
    one = ours.learn(state, exp, key_for(0, "learn"))
    two = other.learn(state._replace(extra={}), exp, key_for(0, "learn"))
    assert_close(one.state.params, two.state.params, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one.state.params, state.params)
    assert max(jax.tree.leaves(moved)) > 5e-3
    for name in ("loss/policy", "policy/clip_fraction", "policy/kl"):
        assert float(one.metrics[name]) == pytest.approx(float(two.metrics[name]), rel=1e-3, abs=1e-5)


def test_the_target_follows_as_told() -> None:
    slow, late = (
        compiled(APPO(**{**WHOLE, "epochs": 2}, **how).bind(SPEC))
        for how in ({"target_every": 1, "target_tau": 0.25}, {"target_every": 3})
    )
    state, exp = two_policies(slow), fragment()
    batch = minibatch(slow, state, exp)
    gradient = slow.grads(state, batch, key_for(0, "g"))
    after = slow.apply(state, gradient)
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state.extra["appo_target"], after.params)
    assert_close(after.extra["appo_target"], expected, atol=1e-6)
    one = late.learn(state, exp, key_for(0, "l")).state  # two gradient steps
    two = late.learn(one, exp, key_for(0, "l")).state  # two more: the third copies
    assert (value(one.updates), value(two.updates)) == (2, 4)
    jax.tree.map(np.testing.assert_array_equal, one.extra, state.extra)
    kept = jax.tree.map(np.array_equal, two.extra, state.extra)
    assert not any(jax.tree.leaves(kept))


# The other spaces go the same way as IMPALA's.
@pytest.mark.parametrize(
    "name", [name if name == "box" else pytest.param(name, marks=pytest.mark.slow) for name in SPACES]
)
def test_keeps_what_executors_rely_on(name: str) -> None:
    spec, memory = spec_of(name)
    cfg = APPO(hidden=(4,), rollout_length=5, epochs=1, minibatches=2, memory=memory)
    agent = cfg.bind(spec)
    assert agent.plan == OnPolicy(rows=5, staleness=4, minibatches=2, sequences=memory > 0)
    if memory:
        agent = scale_rewards(normalize_observations(agent, spec), 0.9)
    check_agent(agent, spec)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"target_every": 0}, "target_every must be at least 1"),
        ({"target_tau": 0.0}, "target_tau must be greater than 0"),
        ({"acting_clip": 0.5}, "acting_clip must be at least 1, got 0.5"),
        ({"rho_bar": 0.5}, "rho_bar must be at least 1, got 0.5"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ShoalError, match=line):
        APPO(**fields)
