"""TD3's losses and gradients against formulas in plain NumPy, its delay, and what its update must keep."""

from __future__ import annotations

import functools
import itertools
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

from shoal import DDPG, TD3, ParameterServer, ShoalError, Trainer
from shoal.counters import add, value, zero
from shoal.execution.local import Local
from shoal.keys import fold, key_for
from shoal.networks import recurrent, torso
from shoal.spaces import Box, Discrete
from shoal.testing import Identity
from shoal.types import Acting, Agent, EnvSpec, Observation, State

TINY: dict[str, Any] = {"hidden": (4,), "batch_size": N, "learning_starts": 100}


@functools.cache
def made(algorithm: Any = TD3, **settings: Any) -> tuple[TD3, Agent, State]:
    """With networks and targets that differ."""
    td3 = algorithm(**{**TINY, **settings})
    agent = compiled(td3.bind(SPEC))
    state, other = (agent.init(key_for(0, name)) for name in ("init", "other"))
    for params in (state.params, other.params):
        params["actor"]["policy"]["head"]["kernel"] *= 50.0
    return td3, agent, state._replace(extra={"td3_target": other.params})


@pytest.mark.parametrize("settings", [{"policy_delay": 1}, {"algorithm": DDPG, "n_step": 2}])
def test_losses_and_gradients_are_the_papers(settings: dict[str, Any]) -> None:
    td3, agent, state = made(**settings)
    draws = drawn(n_step=td3.n_step)
    rows = double(minibatch(agent, state, draws, key_for(0, "k")))
    params, target = double(state.params), double(state.extra["td3_target"])
    obs, next_obs, weight = rows["obs"].policy, rows["next_obs"].policy, rows["weight"]

    raw = draws.minibatches
    reward = (raw.reward[0] * td3.discount ** np.arange(td3.n_step)).sum(-1)
    noise = np.clip(td3.target_noise * rows["noise"][0], -td3.target_noise_clip, td3.target_noise_clip)
    following = np.clip(np.tanh(actor_output(target["actor"], next_obs)) + noise, -1, 1)
    after = np.min(q_values(target["critic"], next_obs, following), 0)
    goal = reward + td3.discount**td3.n_step * (1.0 - raw.terminated[0]) * after

    def critic_loss(critic: Any) -> float:
        errors = [np.square(q - goal) for q in q_values(critic, obs, raw.action[0].astype(np.float64))]
        return float((np.sum(errors, 0) * weight).sum())

    def actor_loss(actor: Any) -> float:
        q = q_values(params["critic"], obs, np.tanh(actor_output(actor, obs)))[0]
        return -float((q * weight).sum())

    gradient = agent.grads(state, minibatch(agent, state, draws, key_for(0, "k")), key_for(0, "g"))
    assert float(gradient.weight) == N - 1
    assert len(params["critic"]) == td3.critics
    assert_close(gradient.sum["critic"], slopes(critic_loss, params["critic"]))
    assert_close(gradient.sum["actor"], slopes(actor_loss, params["actor"]))
    assert float(gradient.metrics["loss/actor"]) == pytest.approx(actor_loss(params["actor"]), rel=1e-3)
    assert float(gradient.metrics["value/target"]) == pytest.approx((goal * weight).sum(), rel=1e-3)


def test_ddpg_is_td3_without_its_extras() -> None:
    ddpg = DDPG(learning_rate=1e-4)
    assert (ddpg.critics, ddpg.policy_delay, ddpg.target_noise, ddpg.learning_rate) == (1, 1, 0.0, 1e-4)


def test_the_actor_waits() -> None:
    td3, agent, state = made(policy_delay=3)
    states = [state]
    for i in range(4):
        states.append(agent.learn(states[-1], drawn(seed=i), key_for(0, "l", i)).state)
    assert [value(s.updates) for s in states] == [0, 1, 2, 3, 4]

    def moved(part: Any) -> list[bool]:
        trees = [jax.tree.leaves(part(s)) for s in states]
        return [
            any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
            for one, two in itertools.pairwise(trees)
        ]

    assert moved(lambda s: s.params["critic"]) == [True] * 4
    assert moved(lambda s: s.params["actor"]) == [False, False, True, False]
    assert moved(lambda s: s.opt["actor"]) == [False, False, True, False]
    assert moved(lambda s: s.extra["td3_target"]) == [False, False, True, False]
    assert [int(s.opt["critic"].count) for s in states] == [0, 1, 2, 3, 4]
    assert_close(
        states[3].extra["td3_target"],
        jax.tree.map(
            lambda t, x: (1 - td3.tau) * t + td3.tau * x, state.extra["td3_target"], states[3].params
        ),
        rtol=1e-5,
        atol=1e-6,
    )


def test_several_steps_in_one_call_are_the_same_steps() -> None:
    _, agent, state = made()
    update = agent.learn(state, drawn(5)._replace(count=np.int32(3)), key_for(0, "l"))
    batch = agent.batches(state, drawn(5), fold(key_for(0, "l"), 0))
    for k in range(3):
        rows = jax.tree.map(lambda x, k=k: x[k], batch.rows)
        state = agent.apply(state, agent.grads(state, rows, key_for(0, "g")))
    assert value(update.state.updates) == value(state.updates) == 3
    assert_close(update.state.params, state.params, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(x) for x in update.metrics.values())


def test_the_actor_climbs_where_the_critics_have_just_learned() -> None:
    """Algorithm 1 of the paper: first the critics' step, then the actor's, of the same transitions."""
    _, agent, state = made(policy_delay=2)
    draws = drawn(4)
    batch = agent.batches(state, draws, fold(key_for(0, "l"), 0))
    obs, weight = draws.minibatches.obs.policy, draws.minibatches.weight
    first, second = (jax.tree.map(lambda x, k=k: x[k], batch.rows) for k in range(2))
    state = agent.apply(state, agent.grads(state, first, key_for(0, "g")))
    gradient = agent.grads(state, second, key_for(0, "g"))
    critic = double(state.params["critic"])

    def actor_loss(actor: Any) -> float:
        q = q_values(critic, obs[0].astype(np.float64), np.tanh(actor_output(actor, obs[0])))[0]
        return -float((q * weight[0]).sum())

    assert_close(gradient.sum["actor"], slopes(actor_loss, double(state.params["actor"])))


@pytest.mark.parametrize("mode", ["async", "stale"])
def test_the_actor_moves_whatever_step_its_gradient_becomes(mode: str) -> None:
    """With two groups every gradient is computed at an even count of updates: a part that depended on it
    would be missing in each step in which the actor moves."""
    td3 = TD3(**{**TINY, "rollout_length": 8, "learning_starts": 16})
    with Trainer(
        td3, Identity(Box((1,), -1.0, 1.0)), on=ParameterServer(envs=2, inline=True, mode=mode)
    ) as trainer:
        before = jax.device_get(trainer._run.learner.state)
        while value(trainer._run.learner.state.updates) < 20:
            trainer.train()
        after = jax.device_get(trainer._run.learner.state)
    kernel = lambda state: state.params["actor"]["policy"]["head"]["kernel"]  # noqa: E731
    assert np.abs(kernel(after) - kernel(before)).max() > 1e-3
    assert int(after.opt["actor"].count) == value(after.updates) // td3.policy_delay


def test_the_actors_rows_weigh_as_much_as_the_critics() -> None:
    """Both sums are divided by the critics' weight, and the actor's minibatch is another one."""
    _, agent, state = made(policy_delay=1)
    draws = drawn(3)
    weight = np.ones((3, N), np.float32)
    weight[0, 1:], weight[2] = 0.0, 0.0  # one row that counts, all, none
    minibatches = draws.minibatches._replace(weight=weight)
    rows = agent.batches(state, draws._replace(minibatches=minibatches), key_for(0, "k")).rows
    np.testing.assert_allclose(rows["climbed"]["weight"].sum(1), [1, N, 0])
    np.testing.assert_allclose(rows["climbed"]["weight"][1], N * weight[0])


def test_rows_without_weight_change_nothing_and_parts_add_up() -> None:
    _, agent, state = made(policy_delay=1)
    rows, key = minibatch(agent, state, drawn(), key_for(0, "k")), key_for(0, "g")
    gradient = agent.grads(state, rows, key)
    spoiled = jax.tree.map(
        lambda x: np.where(np.arange(N).reshape(-1, *[1] * (x.ndim - 1)) == 1, 7.0, x), rows
    )
    spoiled["climbed"]["weight"] = rows["climbed"]["weight"]
    other = agent.grads(state, {**spoiled, "weight": rows["weight"]}, key)
    assert_close(gradient, other, rtol=1e-5, atol=1e-5)
    one, two = (agent.grads(state, part, fold(key, i)) for i, part in enumerate(halves(rows)))
    assert_close(gradient.sum, jax.tree.map(np.add, one.sum, two.sum), rtol=1e-4, atol=1e-4)
    assert float(one.weight + two.weight) == float(gradient.weight)


def test_acting() -> None:
    td3, agent, state = made()
    rows = 500
    obs = Observation(np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32))
    first, index, reward = np.zeros(rows, bool), np.arange(rows, dtype=np.int32), np.zeros(rows, np.float32)

    def acted(steps: int, explore: bool, name: str = "a") -> np.ndarray:
        params = agent.policy(state._replace(env_steps=add(zero(), steps)))
        acting = Acting(fold(key_for(0, name), index), index, np.asarray(explore), reward)
        action, carry, extras = agent.act(params, (), obs, first, acting)
        assert carry == ()
        np.testing.assert_allclose(action, 2.0 * extras["raw_action"], rtol=1e-6, atol=1e-6)
        return np.asarray(extras["raw_action"])

    best = np.tanh(actor_output(double(state.params["actor"]), obs.policy))
    np.testing.assert_allclose(acted(0, False), best, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(acted(100, False, "a"), acted(100, False, "b"))
    assert acted(99, True).std() == pytest.approx(3**-0.5, abs=0.03)  # uniform in the box
    inside = np.abs(best) < 0.5
    assert (acted(100, True) - best)[inside].std() == pytest.approx(td3.exploration_noise, rel=0.15)
    assert np.abs(acted(100, True)).max() <= 1.0


@pytest.mark.parametrize("algorithm", [TD3, DDPG])
def test_learns_a_bandit(algorithm: Any) -> None:
    env = Identity(Box((2,), -1.0, 3.0))
    settings = {
        "hidden": (32,),
        "learning_rate": 3e-3,
        "discount": 0.0,
        "batch_size": 64,
        "exploration_noise": 0.5,
    }
    with Trainer(algorithm(**settings, learning_starts=200), env, seed=0, on=Local(envs=8)) as trainer:
        trainer.fit(1_600)
        assert trainer.evaluate(5).mean > 15.8  # of 16; the middle of the box gives 14.7


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: TD3(policy_delay=0), "policy_delay must be at least 1"),
        (lambda: TD3(target_noise=-0.1), "target_noise must be at least 0"),
        (lambda: TD3().bind(EnvSpec(id="x", observation=Box((1,)), action=Discrete(2))), "TD3 acts in a Box"),
        (lambda: TD3(network=recurrent(torso, 4)).bind(SPEC), "must have no memory"),
    ],
)
def test_mistakes_are_one_line(build: Any, line: str) -> None:
    with pytest.raises(ShoalError, match=line) as error:
        build()
    assert "\n" not in str(error.value)
