"""Transforms around a tiny agent that tells what it was shown, against NumPy running over the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import counters
from shoal.errors import ShoalError
from shoal.sgd import learner
from shoal.spaces import Box, Dict, Discrete, MultiBinary, Tuple
from shoal.transforms import Moments, normalize_observations, scale_rewards
from shoal.types import (
    Acting,
    Agent,
    Batch,
    EnvSpec,
    Gradient,
    Observation,
    OnPolicy,
    State,
    Trajectory,
    Update,
)

T, B = 6, 3
SPEC = EnvSpec(
    id="stream",
    observation=Dict.of(
        {
            "image": Box((2, 2), 0, 255, "uint8"),
            "pair": Tuple((Box(()), Discrete(3))),
            "position": Box((3,)),
        }
    ),
    action=Discrete(2),
    critic=Tuple((Box((2,)), MultiBinary((2,)))),
    masked=True,
)
KEY = np.zeros(2, np.uint32)
TRANSFORMS: dict[str, Callable[[Agent], Agent]] = {
    "normalize": lambda a: normalize_observations(a, SPEC),
    "scale": lambda a: scale_rewards(a, 0.9),
    "normalize(scale)": lambda a: normalize_observations(scale_rewards(a, 0.9), SPEC),
    "scale(normalize)": lambda a: scale_rewards(normalize_observations(a, SPEC), 0.9),
}


def tiny(memory: bool = False) -> Agent:
    """An agent whose extras hold the observation as `act` saw it, and whose rows are its whole trajectory."""

    def init(key: Any) -> State:
        return State({"w": jnp.ones(3)}, (), {"mine": jnp.zeros(2)}, counters.zero(), counters.zero())

    def act(params: Any, carry: Any, obs: Observation, first: Any, acting: Acting) -> tuple[Any, Any, Any]:
        score = obs.policy["position"] @ params["w"]
        if memory:
            carry = jnp.where(first, 0.0, carry) + score
            score = carry
        return (score > 0).astype(jnp.int32), carry, {"seen": (obs.policy, obs.critic), "score": score}

    def batches(state: State, trajectory: Trajectory, key: Any) -> Batch:
        rows = trajectory._asdict()
        assert "running_return" not in rows["extras"]
        assert (rows["carry"].shape == (B,)) if memory else (rows["carry"] == ())
        rows |= {"obs": jax.tree.map(lambda x: x[:-1], trajectory.obs), "first": trajectory.first[:-1]}
        rows.pop("carry")
        return Batch(rows, jnp.arange(trajectory.reward.shape[0])[None])

    def grads(state: State, rows: Any, key: Any) -> Gradient:
        position, reward = rows["obs"].policy["position"], rows["reward"]
        total = {"w": (position * reward[..., None]).sum((0, 1))}
        return Gradient(total, jnp.float32(reward.size), {"loss/reward": reward.sum()})

    def apply(state: State, gradient: Gradient) -> State:
        params = {"w": state.params["w"] + 0.01 * gradient.sum["w"] / gradient.weight}
        return state._replace(params=params, updates=counters.add(state.updates, 1))

    def observe(state: State, trajectory: Trajectory) -> State:
        mine = state.extra["mine"] + jnp.stack([trajectory.reward.sum(), trajectory.obs.critic[0].sum()])
        steps = counters.add(state.env_steps, trajectory.weight.sum().astype(jnp.int32))
        return state._replace(extra={**state.extra, "mine": mine}, env_steps=steps)

    return Agent(
        plan=OnPolicy(rows=T),
        init=init,
        policy=lambda state: state.params,
        begin=lambda size: jnp.zeros(size) if memory else (),
        act=act,
        batches=batches,
        grads=grads,
        apply=apply,
        observe=observe,
        learn=learner(batches, grads, apply, observe),
    )


class Stream(NamedTuple):
    """N + 1 rows of B environments, as a host would give them; reward[t] led to row t."""

    obs: Observation
    first: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def stream(rows: int, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    n = rows + 1

    def numbers(*shape: int, at: float, wide: float) -> np.ndarray:
        return (at + wide * rng.normal(size=(n, B, *shape))).astype(np.float32)

    first = np.zeros((n, B), bool)
    first[0] = True
    for t in range(2, n):
        first[t] = (rng.random(B) < 0.25) & ~first[t - 1]
    reward = np.where(first, 0, numbers(at=1.0, wide=20.0)).astype(np.float32)
    terminated = np.zeros((n, B), bool)
    terminated[:-1] = first[1:] & (rng.random((rows, B)) < 0.5)
    policy = {
        "image": rng.integers(0, 256, (n, B, 2, 2)).astype(np.uint8),
        "pair": (numbers(at=-3.0, wide=0.1), rng.integers(0, 3, (n, B)).astype(np.int32)),
        "position": numbers(3, at=100.0, wide=2.0),
    }
    policy["position"][..., 2] = 7.0  # a feature that never changes
    critic = (numbers(2, at=0.0, wide=50.0), rng.integers(0, 2, (n, B, 2)).astype(np.int8))
    return Stream(Observation(policy, critic, rng.random((n, B, 2)) < 0.7), first, reward, terminated)


def run(
    agent: Agent, data: Stream, fragments: int
) -> tuple[list[Trajectory], list[Any], list[State], list[Update]]:
    """Collect and learn by turns: (trajectories, minibatch rows, states before each fragment, updates)."""
    act, learn, batches = jax.jit(agent.act), jax.jit(agent.learn), jax.jit(agent.batches)
    state, carry = jax.jit(agent.init)(KEY), agent.begin(B)
    trajectories, rows, states, updates = [], [], [], []
    for fragment in range(fragments):
        params = agent.policy(state)
        extras, actions, start = [], [], carry
        for t in range(fragment * T, fragment * T + T):
            obs = jax.tree.map(lambda x, t=t: x[t], data.obs)
            acting = Acting(
                np.zeros((B, 2), np.uint32), np.arange(B, dtype=np.int32), np.True_, data.reward[t]
            )
            action, carry, extra = act(params, carry, obs, data.first[t], acting)
            actions.append(action)
            extras.append(extra)
        part = slice(fragment * T, fragment * T + T + 1)
        trajectories.append(
            Trajectory(
                obs=jax.tree.map(lambda x, part=part: x[part], data.obs),
                first=data.first[part],
                action=np.stack(actions),
                reward=data.reward[part][1:],
                terminated=data.terminated[part][:-1],
                version=np.full((T, B), fragment, np.int32),
                extras=jax.tree.map(lambda *x: np.stack(x), *extras),
                carry=start,
            )
        )
        rows.append(batches(state, trajectories[-1], KEY).rows)
        states.append(state)
        updates.append(learn(state, trajectories[-1], KEY))
        state = updates[-1].state
    assert act._cache_size() == learn._cache_size() == 1  # nothing changes its type on the way
    return trajectories, rows, [*states, state], updates


def real_leaves(policy: Any, critic: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in (policy["pair"][0], policy["position"], critic[0])]


def other_leaves(policy: Any, critic: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in (policy["image"], policy["pair"][1], critic[1])]


@pytest.mark.as_in_use
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("name", ["normalize", "normalize(scale)", "scale(normalize)"])
def test_act_and_learn_see_the_same_bits_of_the_observations_so_far(name: str, memory: bool) -> None:
    data = stream(4 * T)
    trajectories, rows, _, _ = run(TRANSFORMS[name](tiny(memory)), data, 4)
    for k, (trajectory, row) in enumerate(zip(trajectories, rows, strict=True)):
        seen = trajectory.extras["seen"]
        jax.tree.map(np.testing.assert_array_equal, seen, (row["obs"].policy, row["obs"].critic))
        raw = (
            jax.tree.map(lambda x: x[:-1], trajectory.obs.policy),
            jax.tree.map(lambda x: x[:-1], trajectory.obs.critic),
        )
        for ours, given in zip(other_leaves(*seen), other_leaves(*raw), strict=True):
            assert ours.dtype == given.dtype
            np.testing.assert_array_equal(ours, given)
        np.testing.assert_array_equal(row["obs"].mask, trajectory.obs.mask[:-1])
        before = real_leaves(*jax.tree.map(lambda x, k=k: x[: k * T], (data.obs.policy, data.obs.critic)))
        for ours, given, history in zip(real_leaves(*seen), real_leaves(*raw), before, strict=True):
            if k == 0:
                np.testing.assert_array_equal(ours, given)  # no statistics yet: unchanged, not even clipped
                continue
            variance = history.var((0, 1))
            deviation = np.where(variance > 0, np.sqrt(variance + 1e-8), 1.0)
            expected = np.clip((given - history.mean((0, 1))) / deviation, -10, 10)
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
        if k > 0:
            assert not np.asarray(seen[0]["position"])[..., 2].any()  # what never changed is exactly 0


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("name", ["scale", "normalize(scale)", "scale(normalize)"])
def test_rewards_are_divided_by_the_deviation_of_the_return_so_far(name: str, memory: bool) -> None:
    data = stream(5 * T, seed=1)
    _, rows, states, _ = run(TRANSFORMS[name](tiny(memory)), data, 5)
    returns: list[float] = []
    running = np.zeros(B)
    for k in range(5):
        for t in range(k * T + 1, (k + 1) * T + 1):
            running = np.where(data.first[t], 0.0, 0.9 * running + data.reward[t])
            returns += running[~data.first[t]].tolist()
        deviation = np.sqrt(np.var(returns) + 1e-8)
        expected = np.clip(data.reward[k * T + 1 : (k + 1) * T + 1] / deviation, -10, 10)
        np.testing.assert_allclose(rows[k]["reward"], expected, rtol=1e-4)
        stats = states[k + 1].extra["reward_stats"]
        assert counters.value(stats.seen) == len(returns)
        np.testing.assert_allclose(stats.mean, np.mean(returns), rtol=1e-4)


def test_either_order_gives_the_same_and_the_inner_agent_keeps_its_own() -> None:
    data = stream(3 * T)
    one = run(TRANSFORMS["normalize(scale)"](tiny(True)), data, 3)
    other = run(TRANSFORMS["scale(normalize)"](tiny(True)), data, 3)
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    end, other_end = one[2][-1], other[2][-1]
    assert set(end.extra) == set(other_end.extra) == {"mine", "observation_stats", "reward_stats"}
    jax.tree.map(np.testing.assert_array_equal, end, other_end)
    assert counters.value(end.env_steps) == (~data.first[1 : 3 * T + 1]).sum()
    assert counters.value(end.updates) == 3
    # What the inner agent's `observe` was given is what its `batches` was given.
    total = sum(float(np.asarray(r["reward"]).sum()) for r in one[1])
    np.testing.assert_allclose(end.extra["mine"][0], total, rtol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_statistics_are_frozen_until_observe_and_types_stay(name: str) -> None:
    agent = TRANSFORMS[name](tiny())
    trajectories, _, states, updates = run(agent, stream(2 * T), 2)
    state = states[1]
    batch = agent.batches(state, trajectories[1], KEY)
    gradient = agent.grads(state, batch.rows, KEY)
    stepped = agent.apply(state, gradient)
    for owner in ("observation_stats", "reward_stats"):
        if owner in state.extra:
            jax.tree.map(np.testing.assert_array_equal, stepped.extra[owner], state.extra[owner])
    # batches, grads, apply, observe in turn is learn.
    by_hand = agent.observe(stepped, trajectories[1])
    learned = updates[1].state
    for atol, one, two in (
        (0, by_hand._replace(extra={}), learned._replace(extra={})),
        (0.01, by_hand.extra, learned.extra),
    ):  # rounding errors are kept there, too
        jax.tree.map(lambda a, b, atol=atol: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), one, two)
    for old, new in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[-1]), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        assert not old.weak_type
        assert not new.weak_type
    # Acting, which learning must not disturb, takes the frozen ones from the state.
    params = agent.policy(state)
    again = agent.policy(stepped)
    if "normalize" in name:
        inner = params if "observation_stats" in params else params["agent"]
        jax.tree.map(
            np.testing.assert_array_equal,
            inner["observation_stats"],
            (again if "observation_stats" in again else again["agent"])["observation_stats"],
        )


def test_observations_without_a_critic_or_real_numbers_pass() -> None:
    spec = EnvSpec(id="x", observation=Discrete(4), action=Discrete(2))
    agent = normalize_observations(tiny(), spec)
    state = agent.init(KEY)
    assert jax.tree.leaves(state.extra["observation_stats"]) == []
    assert agent.policy(state)["observation_stats"] == {"policy": None}


@pytest.mark.parametrize("cut", [(0, 1), (0, 4), (1, 1), (1, 7)])
def test_merging_in_parts_is_merging_at_once(cut: tuple[int, int]) -> None:
    axis, at = cut
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 8, 2)).astype(np.float32) * [1e-2, 50] + [300, -1]
    weight = (rng.random((9, 8)) < 0.6).astype(np.float32)
    whole = Moments.zero((2,)).merge(values, weight)
    parts = Moments.zero((2,))
    for v, w in zip(np.split(values, [at], axis), np.split(weight, [at], axis), strict=True):
        parts = parts.merge(v, w)
    chosen = values[weight > 0].astype(np.float32).astype(np.float64)
    for moments in (whole, parts):
        assert counters.value(moments.seen) == len(chosen)
        np.testing.assert_allclose(moments.mean, chosen.mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.m2, chosen.var(0) * len(chosen), rtol=2e-3)
        np.testing.assert_allclose(moments.scale, 1 / np.sqrt(chosen.var(0) + 1e-8), rtol=1e-3)


def test_rows_of_weight_0_and_empty_fragments_change_nothing() -> None:
    values = np.asarray([[1.0, 2.0], [1e30, 4.0]], np.float32)
    weight = np.asarray([[1.0, 1.0], [0.0, 1.0]], np.float32)
    moments = Moments.zero(()).merge(values, weight)
    np.testing.assert_allclose(moments.mean, 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(moments.m2, np.var([1, 2, 4]) * 3, rtol=1e-6)
    same = moments.merge(np.full((2, 2), 99.0, np.float32), np.zeros((2, 2), np.float32))
    jax.tree.map(np.testing.assert_array_equal, same, moments)
    empty = Moments.zero(()).merge(values, np.zeros((2, 2), np.float32))
    assert float(empty.scale) == 1.0
    assert counters.value(empty.seen) == 0


def test_statistics_keep_learning_after_a_billion_values() -> None:
    # At 10^9 values a fragment of 16 changes nothing in float32 (16 / 10^9 < 2^-24); thousands must.
    n = 10**9
    start = Moments.zero(())._replace(
        seen=counters.add(counters.zero(), n), mean=jnp.float32(1000.0), m2=jnp.float32(4e9)
    )
    values = (np.random.default_rng(0).normal(size=(20_000, 4, 4)) + 1001).astype(np.float32)
    end = jax.jit(lambda m, v: jax.lax.scan(lambda m, x: (m.merge(x), None), m, v)[0])(start, values)
    many, x = values.size, values.astype(np.float64)
    share = many / (n + many)
    mean = 1000 + (x.mean() - 1000) * share
    m2 = 4e9 + x.var() * many + (x.mean() - 1000) ** 2 * n * share
    assert counters.value(end.seen) == n + many
    np.testing.assert_allclose(float(end.mean) + float(end.mean_low) - 1000, mean - 1000, rtol=1e-3)
    np.testing.assert_allclose(float(end.m2) + float(end.m2_low) - 4e9, m2 - 4e9, rtol=1e-3)


def test_observations_are_clipped() -> None:
    spec = EnvSpec(id="x", observation=Box(()), action=Discrete(2))

    def act(params: Any, carry: Any, obs: Observation, first: Any, acting: Acting) -> tuple[Any, Any, Any]:
        return obs.policy, carry, {}

    inner = tiny()
    plain = Agent(**{**vars(inner), "act": act, "observe": lambda state, trajectory: state})
    agent = normalize_observations(plain, spec, clip=2.0)
    values = np.asarray([[0.0], [2.0], [0.0]], np.float32)
    trajectory = Trajectory(
        Observation(values), np.zeros((3, 1), bool), *(np.zeros((2, 1)),) * 4, extras={}, carry=()
    )
    acting = Acting(np.zeros((3, 2), np.uint32), np.arange(3), np.True_, np.zeros(3))
    show = Observation(np.asarray([100.0, 2.0, -7.0], np.float32))
    state = agent.init(KEY)
    assert agent.act(agent.policy(state), (), show, np.zeros(3, bool), acting)[0].tolist() == [100, 2, -7]
    state = agent.observe(state, trajectory)  # mean 1, deviation 1
    seen = agent.act(agent.policy(state), (), show, np.zeros(3, bool), acting)[0]
    np.testing.assert_allclose(seen, [2, 1, -2], rtol=1e-6)


def test_values_out_of_range_are_one_line() -> None:
    with pytest.raises(ShoalError, match="clip must be positive, not 0"):
        normalize_observations(tiny(), SPEC, clip=0)
    with pytest.raises(ShoalError, match="clip must be positive, not -1"):
        scale_rewards(tiny(), 0.9, clip=-1)
    with pytest.raises(ShoalError, match=r"discount must be between 0 and 1, not 1\.1"):
        scale_rewards(tiny(), 1.1)
