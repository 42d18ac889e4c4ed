"""DQN's update against its formulas in plain NumPy; how it acts; what its parts keep."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fragments import random_data

from shoal import DQN, Rainbow, ShoalError, algorithms, cli_parsing
from shoal.algorithms.dqn import spread
from shoal.algorithms.dqn_presets import ApexDQN
from shoal.counters import add, value
from shoal.keys import fold, key_for
from shoal.spaces import Box, Discrete, MultiDiscrete
from shoal.testing import check_agent
from shoal.types import (
    Acting,
    Agent,
    Draws,
    EnvSpec,
    Gradient,
    Observation,
    Sequences,
    State,
    Trajectory,
    Transitions,
)
from shoal.value_distributions import unscaled

A, K, N, F = 3, 2, 8, 4
SPEC = EnvSpec(id="test", observation=Box((F,)), action=Discrete(A, start=-1))


class Bound(NamedTuple):
    """An agent with its parts compiled once, and a state whose target network is not the online one."""

    agent: Agent
    state: State
    learn: Any
    grads: Any

    def rows(self, draws: Draws, k: int = 0) -> Any:
        batch = self.agent.batches(self.state, draws, key_for(0, "b"))
        return jax.tree.map(lambda x: np.asarray(x)[k], batch.rows)

    def gradient(self, draws: Draws, k: int = 0) -> Gradient:
        return self.grads(self.state, self.rows(draws, k), key_for(0, "grads"))


@cache
def bound(dqn: DQN) -> Bound:
    agent = dqn.bind(SPEC)
    state = agent.init(key_for(0, "init"))
    other = agent.init(key_for(1, "init")).params
    state = state._replace(extra={"dqn_target": other})
    return Bound(agent, state, jax.jit(agent.learn), jax.jit(agent.grads))


def drawn(n: int = 1, *, masked: bool = False, seed: int = 0) -> Draws:
    """K minibatches of N transitions; rows 1 and 5 of each weigh nothing."""
    rng = np.random.default_rng(seed)

    def obs() -> Observation:
        mask = rng.random((K, N, A)) < 0.6 if masked else None
        return Observation(rng.normal(size=(K, N, F)).astype(np.float32), mask=mask)

    steps = rng.integers(1, n + 1, (K, N)).astype(np.int32)
    reward = rng.normal(size=(K, N, n)).astype(np.float32) * (np.arange(n) < steps[..., None])
    weight = rng.uniform(0.3, 3.0, (K, N)).astype(np.float32)
    weight[:, [1, 5]] = 0.0
    action = rng.integers(0, A, (K, N)).astype(np.int32)
    index = np.arange(K * N, dtype=np.int32).reshape(K, N)
    terminated = rng.random((K, N)) < 0.3
    rows = Transitions(obs(), action, reward, steps, terminated, obs(), weight, index)
    return Draws(rows, np.int32(K))


def q_of(params: Any, x: np.ndarray) -> np.ndarray:
    """A network without hidden layers."""
    layer = params["head"]["value"]
    return x.astype(np.float64) @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_update_is_the_papers(double: bool, masked: bool) -> None:
    dqn = DQN(hidden=(), double=double, n_step=3, discount=0.9, prioritized=True, huber_delta=0.7)
    it, draws = bound(dqn), drawn(3, masked=masked)
    gradient = it.gradient(draws)
    t = jax.tree.map(lambda x: x[0], draws.minibatches)
    online, target = it.state.params, it.state.extra["dqn_target"]

    chooser = q_of(online if double else target, t.next_obs.policy)
    if masked:
        allowed = t.next_obs.mask | ~t.next_obs.mask.any(-1, keepdims=True)
        chooser = np.where(allowed, chooser, -np.inf)
    following = q_of(target, t.next_obs.policy)[np.arange(N), chooser.argmax(-1)]
    returns = (t.reward * 0.9 ** np.arange(3)).sum(-1)
    y = returns + 0.9**t.steps * ~t.terminated * following
    error = q_of(online, t.obs.policy)[np.arange(N), t.action] - y

    real = (t.weight > 0).astype(np.float64)
    importance = np.where(t.weight > 0, t.weight**0.4, 0.0)
    importance /= importance.max()
    slope = importance * np.clip(error, -0.7, 0.7)
    kernel, bias = np.zeros((F, A)), np.zeros(A)
    for i in range(N):
        kernel[:, t.action[i]] += slope[i] * t.obs.policy[i]
        bias[t.action[i]] += slope[i]
    layer = gradient.sum["head"]["value"]
    np.testing.assert_allclose(layer["kernel"], kernel, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(layer["bias"], bias, rtol=1e-3, atol=1e-5)
    assert float(gradient.weight) == real.sum() == N - 2
    priority = np.asarray(gradient.priorities)
    np.testing.assert_allclose(priority[real > 0], (np.abs(error) ** 0.6)[real > 0], rtol=1e-3)
    assert (priority > 0).all()
    within = np.minimum(np.abs(error), 0.7)
    losses = importance * within * (np.abs(error) - 0.5 * within)
    for name, expected in {"loss/value": losses, "value/target": y * real}.items():
        assert float(gradient.metrics[name]) == pytest.approx(expected.sum(), rel=1e-4, abs=1e-4)


SMALL: dict[str, Any] = {"hidden": (5,), "activation": "tanh", "atoms": 6, "prioritized": True}
KINDS = {
    "c51": DQN(distributional="categorical", v_min=-3, v_max=3, dueling=True, double=True, **SMALL),
    "quantile": DQN(distributional="quantile", noisy=True, rescale=True, **SMALL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope_of_the_loss(kind: str) -> None:
    it = bound(KINDS[kind])
    rows, key = it.rows(drawn()), key_for(0, "grads")
    gradient = it.grads(it.state, rows, key)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), it.state.params)

    def loss(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, it.state.params, direction)
        # The choice of the next action may change with the parameters, so the step is small.
        return float(it.grads(it.state._replace(params=moved), rows, key).metrics["loss/value"])

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    parts = jax.tree.map(lambda g, d: float((g * d).sum()), gradient.sum, direction)
    assert sum(jax.tree.leaves(parts)) == pytest.approx(slope, rel=2e-2, abs=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_no_weight_teach_nothing_and_halves_add_up(kind: str) -> None:
    it, draws = bound(KINDS[kind]), drawn(masked=True)
    rows, key = it.rows(draws), key_for(0, "grads")
    whole = it.grads(it.state, rows, key)
    idle = draws.minibatches.weight[0] == 0

    def changed(x: Any) -> Any:
        other = np.roll(x, 1, axis=0) if x.dtype != np.float32 else x + 7.0
        return np.where(idle.reshape(-1, *(1,) * (x.ndim - 1)), other, x)

    kept = ("real", "importance")
    noise = {name: x if name in kept else jax.tree.map(changed, x) for name, x in rows.items()}
    again = it.grads(it.state, noise, key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        (whole.sum, whole.weight, whole.metrics),
        (again.sum, again.weight, again.metrics),
    )
    parts = (jax.tree.map(lambda x: x[:4], rows), jax.tree.map(lambda x: x[4:], rows))
    halves = [it.grads(it.state, part, key) for part in parts]
    total = jax.tree.map(lambda a, b: a + b, *((h.sum, h.weight) for h in halves))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), total, (whole.sum, whole.weight)
    )


def test_double_is_plain_where_both_networks_agree() -> None:
    sums = []
    for double in (False, True):
        it = bound(DQN(hidden=(5,), double=double))
        same = it.state._replace(extra={"dqn_target": it.state.params})
        sums.append(it.grads(same, it.rows(drawn()), key_for(0, "g")).sum)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *sums)


def test_learn_takes_as_many_steps_as_are_due_and_copies_on_time() -> None:
    it = bound(DQN(hidden=(5,), target_every=2))
    draws = drawn()
    one = it.learn(it.state, draws._replace(count=np.int32(1)), key_for(0, "l"))
    two = it.learn(it.state, draws, key_for(0, "l"))
    assert (value(one.state.updates), value(two.state.updates)) == (1, 2)
    equal = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: E731
    assert equal(one.state.extra, it.state.extra) and not equal(one.state.params, it.state.params)
    assert equal(two.state.extra["dqn_target"], two.state.params)
    assert value(two.state.env_steps) == 0  # fragments are counted when they are stored


def test_soft_target() -> None:
    it = bound(DQN(hidden=(5,), target_every=1, target_tau=0.25))
    after = it.learn(it.state, drawn()._replace(count=np.int32(1)), key_for(0, "l")).state
    jax.tree.map(
        lambda old, new, target: np.testing.assert_allclose(target, 0.75 * old + 0.25 * new, atol=1e-6),
        it.state.extra["dqn_target"],
        after.params,
        after.extra["dqn_target"],
    )


# Acting


def acting(rows: int, explore: bool, seed: int = 0) -> Acting:
    keys = np.asarray(fold(key_for(seed, "act"), np.arange(rows)))
    return Acting(keys, np.arange(rows, dtype=np.int32), np.asarray(explore), np.zeros(rows, np.float32))


def acted(it: Bound, epsilon: float, explore: bool, mask: Any = None, rows: int = 600, seed: int = 0) -> Any:
    x = np.tile(np.random.default_rng(0).normal(size=(1, F)).astype(np.float32), (rows, 1))
    params = {"params": it.state.params, "epsilon": np.float32(epsilon)}
    action, _, extras = jax.jit(it.agent.act)(
        params, (), Observation(x, mask=mask), np.zeros(rows, bool), acting(rows, explore, seed)
    )
    np.testing.assert_array_equal(action, extras["raw_action"] - 1)  # the space begins at -1
    assert extras["raw_action"].dtype == jnp.int32
    return np.asarray(extras["raw_action"])


def test_epsilon_greedy() -> None:
    it = bound(DQN(hidden=(5,)))
    best = acted(it, 0.0, True)
    assert len(set(best)) == 1
    np.testing.assert_array_equal(acted(it, 1.0, False), best)  # greedy takes no notice of epsilon
    random = np.bincount(acted(it, 1.0, True), minlength=A) / 600
    np.testing.assert_allclose(random, 1 / 3, atol=0.08)
    sometimes = (acted(it, 0.3, True) != best).mean()
    assert sometimes == pytest.approx(0.3 * 2 / 3, abs=0.06)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_forbidden_actions_are_never_taken(epsilon: float) -> None:
    mask = np.random.default_rng(1).random((600, A)) < 0.5
    mask[:, 2] |= ~mask.any(-1)
    for explore in (False, True):
        raw = acted(bound(DQN(hidden=(5,))), epsilon, explore, mask)
        assert mask[np.arange(600), raw].all()


def test_noise_explores_and_greedy_acting_has_none() -> None:
    it = bound(DQN(hidden=(5,), noisy=True, noisy_std=3.0, epsilon_start=0.0, epsilon_end=0.0))
    assert len(set(acted(it, 0.0, True))) > 1  # noise of its own for each row
    greedy = acted(it, 0.0, False)
    assert len(set(greedy)) == 1
    np.testing.assert_array_equal(greedy, acted(it, 0.0, False, seed=1))


def test_epsilon_follows_the_count_of_steps() -> None:
    dqn = DQN(hidden=(5,), epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=1000)
    it = bound(dqn)
    for steps, expected in {0: 0.9, 500: 0.5, 1000: 0.1, 5000: 0.1}.items():
        state = it.state._replace(env_steps=add(it.state.env_steps, steps))
        assert float(it.agent.policy(state)["epsilon"]) == pytest.approx(expected)


# Memory

BURN, L = 2, 4


def sequences(seed: int = 0) -> Draws:
    rng = np.random.default_rng(seed)
    rows = BURN + L
    first = np.zeros((K, N, rows + 1), bool)
    first[:, 2, 3] = first[:, 3, 5] = first[:, 4, 0] = True
    terminated = np.zeros((K, N, rows), bool)
    terminated[:, 2, 1] = True  # and environment 3 meets a time limit
    raw = rng.integers(0, A, (K, N, rows)).astype(np.int32)
    seen = Trajectory(
        obs=Observation(rng.normal(size=(K, N, rows + 1, F)).astype(np.float32)),
        first=first,
        action=raw,
        reward=rng.normal(size=(K, N, rows)).astype(np.float32),
        terminated=terminated,
        version=np.zeros((K, N, rows), np.int32),
        extras={"raw_action": raw},
        carry={"memory": rng.normal(size=(K, N, 3)).astype(np.float32)},
    )
    weight = rng.uniform(0.5, 2.0, (K, N)).astype(np.float32)
    weight[:, 6] = 0.0
    return Draws(Sequences(seen, weight, np.arange(K * N, dtype=np.int32).reshape(K, N)), np.int32(K))


MEMORY = DQN(
    hidden=(5,),
    memory=3,
    rollout_length=L,
    burn_in=BURN,
    sequence_length=L,
    n_step=2,
    double=True,
    prioritized=True,
    rescale=True,
)


def test_sequences_are_learned_from_in_order() -> None:
    """Q row by row from the stored memory, targets by a loop over each episode."""
    it, draws = bound(MEMORY), sequences()
    assert it.agent.plan.sequence == BURN + L  # pyright: ignore[reportAttributeAccessIssue]
    gradient = it.gradient(draws)
    seen = jax.tree.map(lambda x: x[0], draws.minibatches.trajectory)
    online, target = it.state.params, it.state.extra["dqn_target"]
    q = {}
    for name, params in {"online": online, "target": target}.items():
        carry, q[name] = seen.carry, []
        for t in range(BURN + L + 1):
            obs = Observation(seen.obs.policy[:, t])
            out, carry = _step(it.agent, params, carry, obs, seen.first[:, t])
            q[name].append(np.asarray(out)[..., 0])
    surprise, real = np.zeros((N, L)), np.zeros((N, L))
    for i in range(N):
        for t in range(BURN, BURN + L):
            if seen.first[i, t + 1] or draws.minibatches.weight[0, i] == 0:
                continue
            total, factor, at = 0.0, 1.0, t
            for _ in range(2):
                if at == BURN + L or seen.first[i, at + 1]:
                    break
                total += factor * seen.reward[i, at]
                factor *= MEMORY.discount * (1.0 - seen.terminated[i, at])
                at += 1
            following = q["target"][at][i, q["online"][at][i].argmax()]
            inner = total + factor * float(unscaled(np.float32(following)))
            y = np.sign(inner) * (np.sqrt(abs(inner) + 1) - 1) + 1e-3 * inner
            surprise[i, t - BURN] = abs(q["online"][t][i, seen.action[i, t]] - y)
            real[i, t - BURN] = 1.0
    assert float(gradient.weight) == real.sum()
    assert float(gradient.metrics["value/td_error"]) == pytest.approx(surprise.sum(), rel=1e-3)
    expected = 0.9 * surprise.max(1) + 0.1 * surprise.sum(1) / np.maximum(real.sum(1), 1)
    got = np.asarray(gradient.priorities)
    np.testing.assert_allclose(got[real.any(1)], (expected**0.6)[real.any(1)], rtol=1e-3)


def _step(agent: Agent, params: Any, carry: Any, obs: Observation, first: Any) -> Any:
    """The outputs of a network, by way of a new one of the same form."""
    from shoal.value_networks import q_network

    network = q_network(SPEC, A, hidden=(5,), memory=3)
    return jax.jit(network.step)(params, carry, obs, first, np.zeros(0, np.float32))


def test_the_first_rows_only_refresh_the_memory() -> None:
    it, draws = bound(MEMORY), sequences()
    seen = draws.minibatches.trajectory
    early = np.arange(BURN + L) < BURN
    before = it.gradient(draws)
    other = seen._replace(
        reward=np.where(early, 5.0, seen.reward).astype(np.float32),
        extras={"raw_action": np.where(early, 0, seen.action)},
    )
    same = it.gradient(draws._replace(minibatches=draws.minibatches._replace(trajectory=other)))
    jax.tree.map(np.testing.assert_array_equal, before.sum, same.sum)
    hidden = np.where(np.arange(BURN + L + 1)[:, None] < BURN, 0.0, seen.obs.policy).astype(np.float32)
    other = seen._replace(obs=Observation(hidden))
    moved = it.gradient(draws._replace(minibatches=draws.minibatches._replace(trajectory=other)))
    assert not np.allclose(moved.sum["head"]["value"]["bias"], before.sum["head"]["value"]["bias"])


# What it is bound to


def test_keeps_what_executors_rely_on() -> None:
    spec = EnvSpec(id="test", observation=Box((3,)), action=Discrete(3, start=-2), masked=True)
    dqn = DQN(hidden=(), rollout_length=6, batch_size=8, capacity=200, learning_starts=10, n_step=2)
    check_agent(dqn.bind(spec), spec)


def test_rainbow_has_all_parts_and_takes_changes() -> None:
    rainbow = Rainbow(hidden=(7,), noisy=False)
    assert isinstance(rainbow, DQN)
    assert rainbow.double and rainbow.dueling and rainbow.prioritized and rainbow.n_step == 3
    assert rainbow.distributional == "categorical" and not rainbow.noisy and rainbow.hidden == (7,)
    with pytest.raises(TypeError, match="colour"):
        Rainbow(colour=1)


def test_rainbow_from_the_command_line() -> None:
    assert algorithms.load("rainbow") is DQN and algorithms.default("rainbow") == Rainbow()
    parts, defaults = {"rainbow": DQN}, {"rainbow": Rainbow()}
    parsed = cli_parsing.parse(parts, ["--v-min", "0", "--no-noisy"], "shoal train rainbow", "", defaults)
    assert parsed["rainbow"] == Rainbow(v_min=0.0, noisy=False)


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (Box((2,)), "test has a Box; SAC, TD3 and PPO take it"),
        (MultiDiscrete((2, 3)), "test has a MultiDiscrete; PPO and A2C take it"),
    ],
)
def test_other_action_spaces_are_refused(space: Any, line: str) -> None:
    with pytest.raises(ShoalError, match=line):
        DQN().bind(EnvSpec(id="test", observation=Box((2,)), action=space))


def test_fragments_that_sequences_would_leave_out_are_refused() -> None:
    spec = EnvSpec(id="test", observation=Box((2,)), action=Discrete(2))
    DQN(memory=4, rollout_length=40, sequence_length=40).bind(spec)
    DQN(rollout_length=41, sequence_length=40).bind(spec)  # without memory there are none
    with pytest.raises(ShoalError, match="rollout_length=41 must be at most sequence_length=40"):
        DQN(memory=4, rollout_length=41, sequence_length=40).bind(spec)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"epsilon_end": 1.5}, "epsilon_end must lie between 0 and 1"),
        ({"v_min": 3.0, "v_max": 3.0}, "v_min=3 must be less than v_max=3"),
        ({"atoms": 1}, "atoms must be at least 2"),
        ({"distributional": "gaussian"}, "distributional must be none, categorical or quantile"),
        ({"target_tau": 0.0}, "target_tau must be greater than 0"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ShoalError, match=line):
        DQN(**fields)


# Many env runners (Ape-X)


def test_environments_have_epsilons_of_their_own() -> None:
    """epsilon^(1 + 7 u) of environment i, u the fractional part of (i + 1/2) / golden ratio."""
    it = bound(DQN(hidden=(5,), epsilon_spread=7.0))
    index = np.array([0, 1, 2, 3, 1000, 123_456_789], np.int64)
    golden = Fraction(2654435769, 2**32)  # to 32 bits, which are what the rule is made of
    u = np.array([float((int(i) * golden + golden / 2) % 1) for i in index])
    each = 0.4 ** (1 + 7 * u)
    rows = 4000
    x = np.tile(np.random.default_rng(0).normal(size=(1, F)).astype(np.float32), (rows, 1))
    params = {"params": it.state.params, "epsilon": np.float32(0.4)}
    act = jax.jit(it.agent.act)
    for number, epsilon in zip(index, each, strict=True):
        who = acting(rows, True)._replace(index=np.full(rows, number, np.int32))
        raw = np.asarray(act(params, (), Observation(x), np.zeros(rows, bool), who)[0]) + 1
        best = np.bincount(raw).argmax()
        # The same words decide for every epsilon, so the share is exact but for the choice among A actions.
        assert (raw != best).mean() == pytest.approx(epsilon * (A - 1) / A, abs=0.02)
    greedy = act(params, (), Observation(x), np.zeros(rows, bool), acting(rows, False))[0]
    assert len(set(np.asarray(greedy))) == 1


@pytest.mark.parametrize("envs", [2, 8, 100, 1000])
def test_their_exponents_are_spread_evenly(envs: int) -> None:
    u = np.sort(np.asarray(spread(np.arange(envs))))
    assert u[0] >= 0 and u[-1] < 1
    gaps = np.diff(np.concatenate([[0.0], u, [1.0]]))
    assert gaps.max() < 2.0 / envs


PRIORITIES = {
    "plain": DQN(hidden=(), n_step=3, prioritized=True, discount=0.9),
    "double, c51": DQN(n_step=2, double=True, distributional="categorical", v_min=-3, v_max=3, **SMALL),
    "noisy": DQN(n_step=2, noisy=True, **SMALL),
}


@pytest.mark.parametrize("name", PRIORITIES)
def test_first_priorities_are_those_of_the_transitions(name: str) -> None:
    """As `grads` finds them for the same transitions, cut at the fragment's end, if the network acted with
    is its own target."""
    dqn = PRIORITIES[name]
    it, rows, envs = bound(dqn), 6, 3
    data, rng = random_data(5, rows, envs, 0.2), np.random.default_rng(0)
    first, terminated = data.first, data.terminated
    raw = rng.integers(0, A, (rows, envs)).astype(np.int32)
    mask = rng.random((rows + 1, envs, A)) < 0.7
    obs = Observation(rng.normal(size=(rows + 1, envs, F)).astype(np.float32), mask=mask)
    reward = data.reward.astype(np.float32)
    version = np.zeros((rows, envs), np.int32)
    fragment = Trajectory(obs, first, raw - 1, reward, terminated, version, {"raw_action": raw}, ())
    policy = it.agent.policy(it.state)
    assert it.agent.priority is not None
    found = np.asarray(jax.jit(it.agent.priority)(policy, fragment))
    assert found.shape == (rows, envs) and found.dtype == np.float32 and (found > 0).all()

    places, steps, ends, after = [], [], [], []
    rewards = np.zeros((rows * envs, dqn.n_step), np.float32)
    for b in range(envs):
        for t in range(rows):
            if first[t + 1, b]:
                continue
            n = 0
            while n < dqn.n_step and t + n < rows and not first[t + n + 1, b]:
                rewards[len(places), n] = reward[t + n, b]
                n += 1
            places.append((t, b))
            steps.append(n)
            ends.append(terminated[t + n - 1, b])
            after.append((t + n, b))
    at, then = (tuple(np.array(p).T) for p in (places, after))
    assert 0 < len(places) < rows * envs and len(set(steps)) == dqn.n_step
    transitions = Transitions(
        jax.tree.map(lambda x: x[at], obs),
        raw[at],
        rewards[: len(places)],
        np.array(steps, np.int32),
        np.array(ends),
        jax.tree.map(lambda x: x[then], obs),
        np.ones(len(places), np.float32),
        np.arange(len(places), dtype=np.int32),
    )
    draws = Draws(jax.tree.map(lambda x: x[None], transitions), np.int32(1))
    state = it.state._replace(extra={"dqn_target": it.state.params})
    if dqn.noisy:
        still = quiet(state.params)
        state = state._replace(params=still, extra={"dqn_target": still})
    rows_of = jax.tree.map(lambda x: np.asarray(x)[0], it.agent.batches(state, draws, key_for(0, "b")).rows)
    expected = np.asarray(it.grads(state, rows_of, key_for(0, "g")).priorities)
    np.testing.assert_allclose(found[at], expected, rtol=1e-3, atol=1e-5)


def quiet(params: Any) -> Any:
    """A noisy network without its noise."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if "_std" in jax.tree_util.keystr(path) else x, params
    )


def test_priorities_only_where_a_fragment_says_enough() -> None:
    assert bound(DQN(hidden=(5,))).agent.priority is None
    assert bound(MEMORY).agent.priority is None  # its sequences reach beyond the fragment


def test_apex_is_a_preset() -> None:
    apex = ApexDQN(hidden=(7,), staleness=3)
    assert isinstance(apex, DQN) and apex.hidden == (7,)
    assert apex.double and apex.dueling and apex.prioritized and apex.n_step == 3
    assert apex.epsilon_spread == 7.0 and apex.epsilon_start == apex.epsilon_end == 0.4
    plan = apex.bind(SPEC).plan
    assert plan.staleness == 3 and plan.prioritized  # pyright: ignore[reportAttributeAccessIssue]
    assert DQN().bind(SPEC).plan.staleness == 0
    assert algorithms.load("apex") is DQN and algorithms.default("apex") == ApexDQN()
