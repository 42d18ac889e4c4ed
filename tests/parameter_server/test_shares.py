"""A State divided among shards: put together it is the same, and a step on shares is a step on the whole."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import A2C, DQN, PPO, SAC, TD3, ShoalError, norms
from shoal.execution.parameter_server.shares import Shares, Slice, check, norms_taken
from shoal.recipe import Recipe
from shoal.types import Agent, Gradient, State

QUICK = settings(deadline=None, derandomize=True, max_examples=25)
CASES = {
    "a2c": (A2C(hidden=(8,)), "CartPole-v1"),
    "ppo": (PPO(hidden=(8,), target_kl=0.1), "CartPole-v1"),
    "ppo with memory": (PPO(hidden=(8,), memory=4), "CartPole-v1"),
    "dqn": (DQN(hidden=(8,), max_grad_norm=1.0, dueling=True, noisy=True), "CartPole-v1"),
    "sac": (SAC(hidden=(8,), max_grad_norm=0.01), "Pendulum-v1"),
    "td3": (TD3(hidden=(8,), max_grad_norm=0.01), "Pendulum-v1"),
}
NORMS = {"a2c": 1, "ppo": 1, "ppo with memory": 1, "dqn": 1, "sac": 3, "td3": 2}


@cache
def agent_of(name: str) -> Agent:
    algorithm, env = CASES[name]
    recipe = Recipe(algorithm=algorithm, env={"env": env}, normalize=True, scale=True)
    return recipe.agent(recipe.source().spec)


def random_like(tree: Any, seed: int) -> Any:
    draw = np.random.default_rng(seed)

    def leaf(x: Any) -> Any:
        if np.issubdtype(x.dtype, np.floating):
            return np.abs(draw.normal(size=x.shape)).astype(x.dtype)
        return draw.integers(0, 2, x.shape).astype(x.dtype)

    return jax.tree.map(leaf, tree)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@QUICK
@given(st.sampled_from(sorted(CASES)), st.integers(1, 7), st.integers(0, 99))
def test_cut_and_joined_it_is_the_same(name: str, count: int, seed: int) -> None:
    shares = Shares.of(agent_of(name), count)
    state: State = random_like(shares.form, seed)
    parts = [shares.cut(state, s) for s in range(count)]
    same(shares.join(parts), state)
    sizes = [sum(x.size for x in jax.tree.leaves(part.params)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == shares.size
    slices = []
    for part in parts:
        vector, rest = shares.published(part)
        slices.append(Slice(0, np.asarray(vector), [np.asarray(x) for x in rest]))
    same(shares.received(slices), state._replace(opt=()))
    vectors = shares.vectors(state.params)
    same(shares.whole(vectors), state.params)
    for s, part in enumerate(parts):
        same(shares.sliced(vectors[s], s), part.params)


@pytest.mark.parametrize("name", CASES)
def test_what_belongs_to_a_parameter_lies_with_it(name: str) -> None:
    agent = agent_of(name)
    shares = Shares.of(agent, 2)
    large = [
        jax.tree_util.keystr(path)
        for (path, leaf), owner in zip(
            jax.tree_util.tree_leaves_with_path(shares.form), shares.follows, strict=True
        )
        if owner is None and leaf.size > 4
    ]
    assert not large
    assert not any("stats" in jax.tree_util.keystr(p) for p in followed_paths(shares))


def followed_paths(shares: Shares) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(shares.form)
    return [path for (path, _), owner in zip(leaves, shares.follows, strict=True) if owner is not None]


@pytest.mark.parametrize("name", CASES)
def test_steps_on_shares_are_steps_on_the_whole(name: str) -> None:
    agent = agent_of(name)
    shares = Shares.of(agent, 3)
    assert norms_taken(agent, shares) == NORMS[name]
    check(agent, shares, random_like(shares.form, 0))


def test_what_the_norm_is_can_be_said() -> None:
    tree = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    assert norms.global_norm(tree) == optax.tree.norm(tree) == 3.0
    with norms.recorded() as squares:
        norms.global_norm(tree)
        norms.global_norm(tree["b"])
    assert squares == [9.0, 4.0]
    with norms.given([7.0, 8.0]):
        assert [norms.global_norm(tree), norms.global_norm(tree)] == [7.0, 8.0]
    assert norms.global_norm(tree) == 3.0


def checked(agent: Agent, count: int) -> None:
    shares = Shares.of(agent, count)
    check(agent, shares, random_like(shares.form, 0))


def altered(apply: Any) -> Agent:
    agent = agent_of("a2c")
    fields = {name: getattr(agent, name) for name in agent.__dataclass_fields__}
    return Agent(**{**fields, "apply": lambda state, gradient: apply(agent, state, gradient)})


def test_an_optimizer_that_mixes_numbers_is_refused() -> None:
    def normalised(agent: Agent, state: State, gradient: Gradient) -> State:
        return agent.apply(
            state, gradient._replace(sum=jax.tree.map(lambda g: g / (1 + g.sum()), gradient.sum))
        )

    agent = altered(normalised)
    with pytest.raises(ShoalError, match=r"cannot be divided among parameter shards.*use shards=1"):
        checked(agent, 2)
    checked(agent, 1)


def test_a_clip_within_a_branch_is_refused() -> None:
    def sometimes(agent: Agent, state: State, gradient: Gradient) -> State:
        due = state.updates.low % 2 == 0
        return jax.lax.cond(due, lambda: agent.apply(state, gradient), lambda: state)

    agent = altered(sometimes)
    for count in (1, 2):
        with pytest.raises(ShoalError, match="clips within a branch"):
            checked(agent, count)


def test_more_shards_than_parameters_are_refused() -> None:
    with pytest.raises(ShoalError, match="cannot be divided among shards=100000"):
        Shares.of(agent_of("a2c"), 100_000)
