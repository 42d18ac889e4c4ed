"""Environments written in JAX: the vectorised core, against one environment at a time, and its host group."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import spaces
from shoal.envs import JaxGroup, resolve, vectorize
from shoal.envs.jax import TimeLimited
from shoal.errors import ShoalError
from shoal.keys import fold, key_for, uniform
from shoal.types import EnvSpec, Observation

WALK = EnvSpec(
    id="Walk", observation=spaces.Box((1,)), action=spaces.Discrete(2), critic=spaces.Box((2,)), masked=True
)


class WalkState(NamedTuple):
    place: jax.Array
    noise: jax.Array


@dataclass(frozen=True)
class Walk:
    """A noisy walk from a random place: ends beyond 1, is cut after 6 steps; masked, with a critic's view."""

    spec: EnvSpec = WALK

    def reset(self, key):
        place = uniform(key, 1)
        # Weak types and Python numbers, as users write them.
        state = {"walk": WalkState(place, jnp.zeros(1)), "t": 0}
        return state, self.shown(state)

    def step(self, state, action, key):
        noise = 0.5 * uniform(key, 1) - 0.25
        place = state["walk"].place + 0.2 * (2 * action - 1) + noise
        state = {"walk": WalkState(place, noise), "t": state["t"] + 1}
        return state, self.shown(state), place[0], jnp.abs(place[0]) > 1, state["t"] >= 6

    def shown(self, state):
        walk = state["walk"]
        mask = jnp.stack([walk.place[0] > -0.5, jnp.bool_(True)])
        return Observation(walk.place, jnp.concatenate([walk.place, walk.noise]), mask)


def by_hand(env, group_key, index, actions):
    """The rows (obs, reward, terminated, first) of one environment, resets and keys as documented."""
    env_key = fold(group_key, index)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    episode, t, done = 0, 0, False
    state, obs = reset(fold(fold(env_key, 0), 0))
    rows = [(obs, 0.0, False, True)]
    for action in actions:
        if done:
            episode, t, done = episode + 1, 0, False
            state, obs = reset(fold(fold(env_key, episode), 0))
            rows.append((obs, 0.0, False, True))
        else:
            state, obs, reward, terminated, truncated = step(
                state, action, fold(fold(env_key, episode), t + 1)
            )
            t, done = t + 1, bool(terminated | truncated)
            rows.append((obs, reward, terminated, False))
    return rows


def scanned(env, size, group_key, actions):
    """All rows [T + 1, B, ...] in one program."""
    vector = vectorize(env, size)

    @jax.jit
    def program(key, actions):
        vstate, row = vector.start(key)
        _, rows = jax.lax.scan(vector.step, vstate, actions)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), row, rows)

    return program(group_key, actions)


ENVS = [
    (Walk(), 2),
    (resolve("jax:CartPole-v1").jax_env, 2),
    (resolve("jax:GridWorld", env_kwargs={"slip": 0.3}).jax_env, 4),
]


@pytest.mark.as_in_use
@pytest.mark.parametrize(("env", "choices"), ENVS)
def test_the_compiled_core_the_host_group_and_single_environments_agree(env, choices):
    """Core and group bit for bit; the environment stepped alone, another program, but for rounding."""
    size, seed, number = 3, 5, 2
    actions = np.random.default_rng(1).integers(0, choices, (60, size)).astype(np.int32)
    rows = jax.tree.map(np.asarray, scanned(env, size, key_for(seed, "env", number), actions))
    assert rows.first[1:].sum() > 0
    group = JaxGroup(env, seed, number, size)
    for t, row in enumerate([group.current()] + [group.step(action) for action in actions]):
        for a, b in zip(jax.tree.leaves(row), jax.tree.leaves(rows), strict=True):
            assert isinstance(a, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b[t])
    assert group.info() == {} and group.lost == 0
    for b in range(size):
        alone = by_hand(env, key_for(seed, "env", number), b, actions[:, b])
        for t, (obs, reward, terminated, first) in enumerate(alone):
            shown = jax.tree.map(lambda x, t=t, b=b: x[t, b], rows)
            assert bool(shown.first) == first and bool(shown.terminated) == bool(terminated)
            np.testing.assert_allclose(shown.reward, reward, rtol=1e-6)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), shown.obs, obs)


@pytest.mark.parametrize(("env", "choices"), ENVS)
def test_the_state_keeps_its_types(env, choices):
    vector = vectorize(env, 3)
    vstate, row = jax.eval_shape(vector.start, key_for(0, "env", 0))
    after, row_after = jax.eval_shape(vector.step, vstate, np.zeros(3, np.int32))
    types = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves((vstate, row))]
    assert types == [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves((after, row_after))]
    assert not any(weak for _, _, weak in types)
    assert jax.tree.structure((vstate, row)) == jax.tree.structure((after, row_after))
    assert (row.reward.dtype, row.terminated.dtype, row.first.dtype) == (np.float32, bool, bool)
    assert {k: (v.shape, v.dtype) for k, v in vstate.items() if k in ("done", "episode", "t", "keys")} == {
        "done": ((3,), bool),
        "episode": ((3,), np.uint32),
        "t": ((3,), np.uint32),
        "keys": ((3, 2), np.uint32),
    }


def test_a_group_continues_bit_for_bit():
    source = resolve(Walk)
    actions = np.random.default_rng(0).integers(0, 2, (60, 3)).astype(np.int32)
    group, other = source.make_group(0, 1, 3), source.make_group(0, 1, 3)
    for action in actions[:33]:
        group.step(action)
    saved = group.save()
    assert all(isinstance(leaf, np.ndarray) for leaf in saved.values()) and "env.walk.place" in saved
    other.load(saved)
    for action in actions[33:]:
        jax.tree.map(np.testing.assert_array_equal, group.current(), other.current())
        group.step(action), other.step(action)


def test_a_state_of_another_environment_is_refused():
    saved = resolve("jax:CartPole-v1").make_group(0, 0, 3).save()
    with pytest.raises(
        ShoalError, match=r"jax:CartPole-v1 does not fit: done is bool\[3\], should be bool\[2\]"
    ):
        resolve("jax:CartPole-v1").make_group(0, 0, 2).load(saved)
    with pytest.raises(ShoalError, match="absent"):
        resolve("jax:GridWorld").make_group(0, 0, 3).load(saved)


def test_a_time_limit_around_any_environment():
    source = resolve(Walk(), time_limit=2)
    assert isinstance(source.jax_env, TimeLimited) and source.spec.max_episode_steps == 2
    rows = scanned(source.jax_env, 8, key_for(0, "env", 0), np.zeros((30, 8), np.int32))
    reset = np.flatnonzero(np.asarray(rows.first).any(1))
    assert np.diff(reset).max() <= 3 and not np.asarray(rows.terminated).all()


def test_a_limit_of_its_own_stays():
    limited = TimeLimited(Walk(), 5)
    assert resolve(limited, time_limit=3).spec.max_episode_steps == 3
    with pytest.raises(ShoalError, match="after 5 steps itself: time_limit=6 cannot change that"):
        resolve(limited, time_limit=6)


def test_a_state_that_changes_its_structure_is_refused():
    @dataclass(frozen=True)
    class Grows(Walk):
        def step(self, state, action, key):
            state, *rest = super().step({"walk": state["walk"], "t": state["t"]}, action, key)
            return {**state, "more": jnp.zeros(())}, *rest

    with pytest.raises(ShoalError, match="another structure"):
        JaxGroup(Grows(), 0, 0, 2).step(np.zeros(2, np.int32))
