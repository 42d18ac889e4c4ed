"""An agent put on trial: compiled, with a made-up fragment that it acted in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.errors import ShoalError
from shoal.keys import fold, key_for
from shoal.testing.tiny import sample, sample_mask
from shoal.types import (
    Acting,
    Agent,
    Batch,
    Draws,
    EnvSpec,
    Gradient,
    Observation,
    OnPolicy,
    Replay,
    State,
    Trajectory,
)


class Inputs(NamedTuple):
    """What `act` gets for each environment: leaves [B, ...]."""

    carry: Any
    obs: Observation
    first: Any
    key: Any
    index: Any
    reward: Any


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An agent with its functions compiled, its first state, and a fragment that it acted in."""

    agent: Agent
    spec: EnvSpec
    envs: int
    act: Callable[..., Any]
    learn: Callable[..., Any]
    batches: Callable[..., Batch]
    grads: Callable[..., Gradient]  # (state, rows of one minibatch, key)
    state: State
    params: Any
    obs: Observation  # [T + 1, B, ...]
    first: np.ndarray
    reward: np.ndarray  # [T + 1, B]: reward[t] led to row t
    terminated: np.ndarray

    def inputs(self, t: int, carry: Any = None) -> Inputs:
        """What `act` gets in row t; the carry of fresh episodes if none is given."""
        keys = fold(key_for(0, "check_agent", "act", t), np.arange(self.envs))
        return Inputs(
            carry=self.agent.begin(self.envs) if carry is None else carry,
            obs=jax.tree.map(lambda x: x[t], self.obs),
            first=self.first[t],
            key=keys,
            index=np.arange(self.envs, dtype=np.int32),
            reward=self.reward[t],
        )

    def act_on(self, inputs: Inputs, explore: bool = True) -> tuple[Any, Any, Any]:
        """(action, carry, extras)."""
        carry, obs, first, key, index, reward = inputs
        acting = Acting(key, index, np.asarray(explore), reward)
        return self.act(self.params, carry, obs, first, acting)

    @cached_property
    def fragment(self) -> Trajectory:
        """The whole fragment, acted in row by row."""
        rows, carry = self.agent.plan.rows, self.agent.begin(self.envs)
        start, actions, extras = carry, [], []
        for t in range(rows):
            action, carry, extra = self.act_on(self.inputs(t, carry))
            actions.append(action)
            extras.append(extra)
        stack = lambda *x: np.stack([np.asarray(v) for v in x])  # noqa: E731
        return Trajectory(
            obs=self.obs,
            first=self.first,
            action=jax.tree.map(stack, *actions),
            reward=self.reward[1:],
            terminated=self.terminated,
            version=np.zeros((rows, self.envs), np.int32),
            extras=jax.tree.map(stack, *extras),
            carry=jax.tree.map(np.asarray, start),
        )

    @cached_property
    def experience(self) -> Any:
        """What `learn` takes: the fragment, or what a replay draws that holds it."""
        plan = self.agent.plan
        return self.fragment if isinstance(plan, OnPolicy) else drawn(plan, self.spec, self.fragment)


def drawn(plan: Replay, spec: EnvSpec, fragment: Trajectory) -> Draws:
    """Three minibatches, of which two are to be used, from a replay that holds the fragment so many times
    that the longest stretch can be drawn. One row in eight is made to weigh nothing."""
    from shoal import replay

    envs = fragment.reward.shape[1]
    layout = replay.Layout.of(plan, spec, envs)
    first = np.array(fragment.first)
    first[0] = first[-1]  # each copy goes on where the one before it ended
    fragment = fragment._replace(first=first)
    memory = replay.empty(layout, fragment, np)
    for _ in range(2 + plan.sequence // plan.rows):
        memory = replay.insert(layout, memory, fragment)
    rows = replay.draw(layout, memory, key_for(0, "check_agent", "draw"), 3, plan.batch_size)
    idle = np.broadcast_to(np.arange(plan.batch_size) % 8 == 1, rows.weight.shape)
    return Draws(rows._replace(weight=np.where(idle, np.float32(0.0), rows.weight)), np.asarray(2, np.int32))


def rows_of(batch: Batch, k: int) -> Any:
    """The rows of minibatch k: leaves [N, ...]."""
    if batch.index is None:
        return jax.tree.map(lambda x: np.asarray(x)[k], batch.rows)
    index = batch.index[k]
    return jax.tree.map(lambda x: np.asarray(x)[index], batch.rows)


def used(batch: Batch) -> int:
    """How many minibatches of the batch are to be used."""
    if batch.count is not None:
        return int(batch.count)
    return len(jax.tree.leaves(batch.rows if batch.index is None else batch.index)[0])


def make_trial(agent: Agent, spec: EnvSpec, envs: int, seed: int) -> Trial:
    rows, rng = agent.plan.rows, np.random.default_rng(seed)
    state = jax.jit(agent.init)(key_for(seed, "check_agent", "init"))
    first, terminated = _flags(rows, envs, rng)
    reward = np.where(first, 0.0, rng.normal(size=first.shape)).astype(np.float32)
    return Trial(
        agent=agent,
        spec=spec,
        envs=envs,
        act=jax.jit(agent.act),
        learn=jax.jit(agent.learn),
        batches=jax.jit(agent.batches),
        grads=jax.jit(agent.grads),
        state=state,
        params=jax.jit(agent.policy)(state),
        obs=observations(spec, (rows + 1, envs), seed),
        first=first,
        reward=reward,
        terminated=terminated,
    )


def _flags(rows: int, envs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(first [T + 1, B], terminated [T, B]); of every four environments the first rows are: a termination, a
    time limit, a row that only resets, and nothing of the kind."""
    first, terminated = np.zeros((rows + 1, envs), bool), np.zeros((rows, envs), bool)
    for b in range(envs):
        ended = b % 4 == 2
        first[0, b] = not ended and rng.random() < 0.5
        for t in range(rows):
            first[t + 1, b] = ended
            if ended:
                ended = False
                continue
            terminated[t, b] = rng.random() < 0.1 if t else b % 4 == 0
            ended = bool(terminated[t, b]) or (rng.random() < 0.1 if t else b % 4 == 1)
    return first, terminated


def observations(spec: EnvSpec, shape: tuple[int, ...], seed: int) -> Observation:
    """Random observations [*shape, ...] of all roles."""

    def keys(role: str) -> Any:
        return fold(key_for(seed, "check_agent", role), *np.ix_(*map(np.arange, shape)))

    return Observation(
        sample(spec.observation, keys("policy")),
        None if spec.critic is None else sample(spec.critic, keys("critic")),
        sample_mask(spec.action, keys("mask")) if spec.masked else None,
    )


def fault(text: str) -> ShoalError:
    return ShoalError(f"check_agent: {text}")


def leaves(tree: Any) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def dtype_of(x: Any) -> np.dtype:
    return np.asarray(x).dtype


def same_form(one: Any, other: Any, what: str) -> None:
    """Raise where two pytrees differ in structure, shapes, dtypes or weakness of types."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        raise fault(
            f"{what} changes its structure: {jax.tree.structure(one)} becomes {jax.tree.structure(other)}"
        )
    for (path, a), b in zip(leaves(one), jax.tree.leaves(other), strict=True):
        if (np.shape(a), dtype_of(a)) != (np.shape(b), dtype_of(b)):
            raise fault(
                f"{what} changes its form: {path} was {dtype_of(a)}{list(np.shape(a))} and becomes "
                f"{dtype_of(b)}{list(np.shape(b))}"
            )
        if getattr(b, "weak_type", False):
            raise fault(f"{what}: {path} is of a weak type (made from a bare Python number): give it a dtype")


def equal(one: Any, other: Any) -> str:
    """The path of the first leaf that differs, or ""."""
    for (path, a), b in zip(leaves(one), jax.tree.leaves(other), strict=True):
        if not np.array_equal(a, b, equal_nan=dtype_of(a).kind == "f"):
            return path or "it"
    return ""
