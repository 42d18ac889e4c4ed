"""IMPALA's loss and gradient against the paper's formulas in plain NumPy, and against A2C's on-policy."""

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

from shoal import A2C, ShoalError
from shoal.algorithms.impala import IMPALA
from shoal.counters import value
from shoal.keys import key_for
from shoal.testing import check_agent
from shoal.transforms import normalize_observations, scale_rewards
from shoal.types import OnPolicy, Trajectory

SETTINGS: dict[str, Any] = {
    "hidden": (5,),
    "rollout_length": T,
    "discount": 0.9,
    "gae_lambda": 0.8,
    "rho_bar": 1.3,
    "c_bar": 0.9,
    "entropy_coefficient": 0.03,
}


def parts(params: Any, fixed: Any, exp: Trajectory, cfg: IMPALA) -> dict[str, np.ndarray]:
    """The loss of each row, [T, B] in float64; V-trace is taken from the parameters `fixed`."""
    log_p, values = outputs(params, exp.obs.policy)
    fixed_log_p, v = outputs(fixed, exp.obs.policy)
    raw = exp.extras["raw_action"][..., None]
    ratio = np.exp(np.take_along_axis(fixed_log_p[:-1], raw, -1)[..., 0] - exp.extras["log_prob"])
    rho, c = np.minimum(cfg.rho_bar, ratio), cfg.gae_lambda * np.minimum(cfg.c_bar, ratio)
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
    entropy = -(np.exp(log_p) * log_p).sum(-1)[:-1]
    policy = -np.take_along_axis(log_p[:-1], raw, -1)[..., 0] * advantage
    error = np.square(values[:-1] - target[:-1])
    total = policy + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy
    return {
        "total": total,
        "loss/policy": policy,
        "loss/value": error,
        "policy/entropy": entropy,
        "policy/rho": rho,
    }


def test_loss_and_gradient_are_the_papers() -> None:
    cfg = IMPALA(**SETTINGS)
    agent = compiled(cfg.bind(SPEC))
    state, exp = agent.init(key_for(0, "init")), fragment()
    gradient = agent.grads(state, minibatch(agent, state, exp), key_for(0, "k"))
    weight = exp.weight
    assert float(gradient.weight) == weight.sum() == T * B - 1
    expected = parts(state.params, state.params, exp, cfg)
    for name, rows in expected.items():
        if name != "total":
            assert float(gradient.metrics[name]) == pytest.approx((rows * weight).sum(), rel=1e-4, abs=1e-5)
    slope = slopes(lambda p: (parts(p, state.params, exp, cfg)["total"] * weight).sum(), state.params)
    assert_close(gradient.sum, slope)


def test_on_policy_it_is_a2c() -> None:
    """With the acting policy's own log-probabilities both ratios are 1, and V-trace is the n-step return."""
    same: dict[str, Any] = {"hidden": (5,), "rollout_length": T, "gae_lambda": 1.0}
    ours, other = (compiled(make(**same).bind(SPEC)) for make in (IMPALA, A2C))
    state, exp = ours.init(key_for(0, "init")), fragment()
    log_p = outputs(state.params, exp.obs.policy)[0][:-1]
    raw = exp.extras["raw_action"]
    log_prob = np.take_along_axis(log_p, raw[..., None], -1)[..., 0].astype(np.float32)
    exp = exp._replace(extras={"raw_action": raw, "log_prob": log_prob})
    gradients = [agent.grads(state, minibatch(agent, state, exp), key_for(0, "k")) for agent in (ours, other)]
    assert_close(*(g.sum for g in gradients), rtol=1e-4, atol=1e-5)
    assert float(gradients[0].metrics["policy/rho"]) == pytest.approx(T * B - 1, rel=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_keeps_what_executors_rely_on(name: str) -> None:
    spec, memory = spec_of(name)
    cfg = IMPALA(hidden=(4,), rollout_length=5, minibatches=2, memory=memory)
    agent = cfg.bind(spec)
    if memory:
        agent = scale_rewards(normalize_observations(agent, spec), 0.9)
    check_agent(agent, spec)


def test_minibatches_are_whole_fragments_and_every_one_counts() -> None:
    agent = IMPALA(hidden=(5,), rollout_length=T, minibatches=2, epochs=3, staleness=7).bind(SPEC)
    assert agent.plan == OnPolicy(rows=T, staleness=7, minibatches=2, sequences=True)
    state = agent.init(key_for(0, "init"))
    after = jax.jit(agent.learn)(state, fragment(), key_for(0, "learn")).state
    assert (value(after.updates), value(after.env_steps)) == (6, T * B - 1)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"staleness": -1}, "staleness must be at least 0"),
        ({"rho_bar": 0.5}, "rho_bar must be at least 1, got 0.5"),
        ({"c_bar": 0.0}, "c_bar must be greater than 0"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ShoalError, match=line):
        IMPALA(**fields)
