"""SAC's losses and gradients against formulas in plain NumPy, and what its update must keep."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from transitions import (
    SPEC,
    N,
    actor_output,
    assert_close,
    compiled,
    double,
    drawn,
    halves,
    minibatch,
    q_values,
    slopes,
)

from shoal import SAC, ShoalError, Trainer
from shoal.counters import add, value, zero
from shoal.execution.local import Local
from shoal.keys import fold, key_for
from shoal.networks import recurrent, torso
from shoal.spaces import Box, Discrete
from shoal.testing import Identity
from shoal.types import Acting, Agent, EnvSpec, Observation, State

TINY: dict[str, Any] = {"hidden": (4,), "batch_size": N, "initial_temperature": 0.3, "learning_starts": 100}


@functools.cache
def made(**settings: Any) -> tuple[SAC, Agent, State]:
    """With critics and targets that differ, and a policy whose deviation depends on what it sees."""
    sac = SAC(**{**TINY, **settings})
    agent = compiled(sac.bind(SPEC))
    state, other = (agent.init(key_for(0, name)) for name in ("init", "other"))
    state.params["actor"]["policy"]["head"]["kernel"] *= 50.0
    return sac, agent, state._replace(extra={"sac_target": other.params["critic"]})


def sample(logits: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, log_std = np.split(logits, 2, -1)
    u = mean + np.exp(log_std) * noise
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - np.log(1 - np.tanh(u) ** 2)
    return np.tanh(u), density.sum(-1)


@pytest.mark.parametrize("settings", [{}, {"critics": 1}, {"critics": 3, "n_step": 2, "target_entropy": 0.5}])
def test_losses_and_gradients_are_the_papers(settings: dict[str, Any]) -> None:
    sac, agent, state = made(**settings)
    draws = drawn(n_step=sac.n_step)
    rows = double(minibatch(agent, state, draws, key_for(0, "k")))
    params, target = double(state.params), double(state.extra["sac_target"])
    alpha = math.exp(params["log_temperature"])
    obs, next_obs, weight = rows["obs"].policy, rows["next_obs"].policy, rows["weight"]

    raw = draws.minibatches
    reward = (raw.reward[0] * sac.discount ** np.arange(sac.n_step)).sum(-1)
    onward = sac.discount**sac.n_step * (1.0 - raw.terminated[0])
    following, next_log_prob = sample(actor_output(params["actor"], next_obs), rows["noise"][0])
    after = np.min(q_values(target, next_obs, following), 0) - alpha * next_log_prob
    goal = reward + onward * after

    def critic_loss(critic: Any) -> float:
        errors = [np.square(q - goal) for q in q_values(critic, obs, raw.action[0].astype(np.float64))]
        return 0.5 * float((np.sum(errors, 0) * weight).sum())

    def actor_loss(actor: Any) -> float:
        action, log_prob = sample(actor_output(actor, obs), rows["noise"][1])
        q = np.min(q_values(params["critic"], obs, action), 0)
        return float(((alpha * log_prob - q) * weight).sum())

    _, log_prob = sample(actor_output(params["actor"], obs), rows["noise"][1])
    entropy = -2.0 if sac.target_entropy is None else sac.target_entropy
    gradient = agent.grads(state, minibatch(agent, state, draws, key_for(0, "k")), key_for(0, "g"))
    assert float(gradient.weight) == N - 1
    assert_close(gradient.sum["critic"], slopes(critic_loss, params["critic"]))
    assert_close(gradient.sum["actor"], slopes(actor_loss, params["actor"]), rtol=3e-3, atol=1e-3)
    assert float(gradient.sum["log_temperature"]) == pytest.approx(
        float((-(log_prob + entropy) * weight).sum()), rel=1e-3
    )
    for name, expected in {
        "loss/critic": 2 * critic_loss(params["critic"]) / sac.critics,
        "loss/actor": actor_loss(params["actor"]),
        "policy/entropy": -(log_prob * weight).sum(),
        "policy/temperature": alpha * (N - 1),
        "value/target": (goal * weight).sum(),
    }.items():
        assert float(gradient.metrics[name]) == pytest.approx(float(expected), rel=1e-3)


def test_rows_without_weight_change_nothing_and_parts_add_up() -> None:
    _, agent, state = made()
    rows, key = minibatch(agent, state, drawn(), key_for(0, "k")), key_for(0, "g")
    gradient = agent.grads(state, rows, key)
    spoiled = jax.tree.map(
        lambda x: np.where(np.arange(N).reshape(-1, *[1] * (x.ndim - 1)) == 1, 7.0, x), rows
    )
    other = agent.grads(state, {**spoiled, "weight": rows["weight"]}, key)
    assert_close(gradient, other, rtol=1e-5, atol=1e-5)
    one, two = (agent.grads(state, part, fold(key, i)) for i, part in enumerate(halves(rows)))
    assert_close(gradient.sum, jax.tree.map(np.add, one.sum, two.sum), rtol=1e-4, atol=1e-4)
    assert float(one.weight + two.weight) == float(gradient.weight)


@pytest.mark.parametrize(("log_std", "up"), [(-5.0, True), (0.0, False)])
def test_the_temperature_follows_the_entropy(log_std: float, up: bool) -> None:
    sac, agent, state = made()
    head = state.params["actor"]["policy"]["head"]
    head = {"kernel": 0.1 * head["kernel"], "bias": head["bias"].at[2:].set(log_std)}
    actor = {"policy": {**state.params["actor"]["policy"], "head": head}}
    update = agent.learn(state._replace(params={**state.params, "actor": actor}), drawn(4), key_for(0, "l"))
    assert (float(update.metrics["policy/entropy"]) < -2.0) == up
    moved = float(update.state.params["log_temperature"]) - float(state.params["log_temperature"])
    assert moved == pytest.approx((4 if up else -4) * sac.learning_rate, rel=0.05)


def test_rates_are_each_parts_own_and_targets_follow() -> None:
    sac, agent, state = made(learning_rate=1e-3, critic_learning_rate=3e-3, temperature_learning_rate=0.0)
    rows = minibatch(agent, state, drawn(), key_for(0, "k"))
    after = agent.apply(state, agent.grads(state, rows, key_for(0, "g")))
    for part, rate in {"actor": 1e-3, "critic": 3e-3}.items():
        moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params[part], state.params[part])
        assert max(jax.tree.leaves(moves)) == pytest.approx(rate, rel=0.02)  # Adam's first step
    assert after.params["log_temperature"] == state.params["log_temperature"]
    assert_close(
        after.extra["sac_target"],
        jax.tree.map(
            lambda t, x: (1 - sac.tau) * t + sac.tau * x, state.extra["sac_target"], after.params["critic"]
        ),
        rtol=1e-5,
        atol=1e-6,
    )


def test_learns_from_as_many_minibatches_as_are_due() -> None:
    _, agent, state = made()
    draws = drawn(4)
    update = agent.learn(state, draws._replace(count=np.int32(3)), key_for(0, "l"))
    assert value(update.state.updates) == 3
    assert value(update.state.env_steps) == 0  # `observe` counts them
    assert all(np.isfinite(x) for x in update.metrics.values())


def test_large_gradients_are_scaled_down() -> None:
    _, agent, state = made(max_grad_norm=1e-3, critic_learning_rate=1.0)
    gradient = agent.grads(state, minibatch(agent, state, drawn(), key_for(0, "k")), key_for(0, "g"))
    nu = agent.apply(state, gradient).opt.nu["critic"]  # 0.001 times the squares of what Adam got
    assert math.sqrt(sum(1e3 * float(x.sum()) for x in jax.tree.leaves(nu))) == pytest.approx(1e-3, rel=1e-3)


def test_acting() -> None:
    _, agent, state = made()
    rows = 500
    obs = Observation(np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32))
    first, index, reward = np.zeros(rows, bool), np.arange(rows, dtype=np.int32), np.zeros(rows, np.float32)

    def acted(steps: int, explore: bool, name: str = "a") -> tuple[np.ndarray, np.ndarray]:
        params = agent.policy(state._replace(env_steps=add(zero(), steps)))
        acting = Acting(fold(key_for(0, name), index), index, np.asarray(explore), reward)
        action, carry, extras = agent.act(params, (), obs, first, acting)
        assert carry == ()
        return np.asarray(action), np.asarray(extras["raw_action"])

    action, raw = acted(99, True)  # uniform in the box
    np.testing.assert_allclose(action, 2.0 * raw, rtol=1e-6)
    assert np.abs(raw).max() < 1 and abs(raw.mean()) < 0.06 and raw.std() == pytest.approx(3**-0.5, abs=0.03)
    logits = actor_output(double(state.params["actor"]), obs.policy)
    noise = (np.arctanh(np.clip(acted(100, True)[1], -0.9999, 0.9999)) - logits[:, :2]) / np.exp(
        logits[:, 2:]
    )
    assert abs(np.median(noise)) < 0.1 and np.percentile(noise, 84) == pytest.approx(1.0, abs=0.15)
    for steps in (0, 100):  # the mode needs no key
        np.testing.assert_array_equal(acted(steps, False, "a")[1], acted(steps, False, "b")[1])
        np.testing.assert_allclose(acted(steps, False)[1], np.tanh(logits[:, :2]), rtol=1e-3, atol=1e-4)


def test_learns_a_bandit() -> None:
    env = Identity(Box((2,), -1.0, 3.0))
    sac = SAC(hidden=(32,), learning_rate=3e-3, discount=0.0, batch_size=64, learning_starts=200)
    with Trainer(sac, env, seed=0, on=Local(envs=8)) as trainer:
        trainer.fit(1_200)
        assert trainer.evaluate(5).mean > 15.9  # of 16; the middle of the box gives 14.7


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: SAC(tau=0.0), "tau must be greater than 0"),
        (lambda: SAC(critics=0), "critics must be at least 1"),
        (lambda: SAC(initial_temperature=0.0), "initial_temperature must be greater than 0"),
        (lambda: SAC().bind(EnvSpec(id="x", observation=Box((1,)), action=Discrete(2))), "SAC acts in a Box"),
        (lambda: SAC(network=recurrent(torso, 4)).bind(SPEC), "must have no memory"),
        (lambda: SAC(hidden=()).bind(SPEC), "at least one hidden layer"),
    ],
)
def test_mistakes_are_one_line(build: Any, line: str) -> None:
    with pytest.raises(ShoalError, match=line) as error:
        build()
    assert "\n" not in str(error.value)
