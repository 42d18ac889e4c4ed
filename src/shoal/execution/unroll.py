"""How a policy acts in a fragment, and the compiled loop over `env.step` (its twin on the host: `rollout`).

Both give the same `Trajectory` from (parameters, the group's state, the key of the fragment): T rows, and
in each the policy acts, then the environments step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.envs.jax import VectorEnv
from shoal.execution.rollout import ActHost
from shoal.keys import fold
from shoal.memo import remembered
from shoal.spaces import choices, zeros
from shoal.types import (
    Acting,
    Agent,
    Array,
    Carry,
    EnvSpec,
    Key,
    Observation,
    Params,
    Step,
    Trajectory,
)

ActRow = Callable[..., tuple[Any, Carry, Any]]


@remembered
def act_keyed(agent: Agent) -> ActRow:
    """`agent.act` for one row of a fragment: (params, carry, obs, first [B], reward [B], keys [B, 2],
    index [B], explore []) -> (action, carry, extras); reward is the one that led to obs."""

    def act(
        params: Params,
        carry: Carry,
        obs: Observation,
        first: Array,
        reward: Array,
        keys: Key,
        index: Array,
        explore: Array,
    ) -> tuple[Any, Carry, Any]:
        acting = Acting(key=keys, index=index, explore=explore, reward=reward)
        return alone(agent.act, (keys[0, 0] | np.uint32(1)) > 0, params, carry, obs, first, acting)

    return act


@remembered
def act_row(agent: Agent) -> ActRow:
    """As `act_keyed`, to the same bits, with the row's keys made in the same compiled call:
    (..., fragment_key [2], t, index [B], explore []) -> ..."""
    keyed = act_keyed(agent)

    def act(
        params: Params,
        carry: Carry,
        obs: Observation,
        first: Array,
        reward: Array,
        key: Key,
        t: Array,
        index: Array,
        explore: Array,
    ) -> tuple[Any, Carry, Any]:
        keys = row_keys(key, t, index.shape[0])
        return keyed(params, carry, obs, first, reward, keys, index, explore)

    return act


def row_keys(fragment_key: Key, t: Array | np.ndarray, envs: int) -> Key:
    """The keys with which `envs` environments act in row t of a fragment: [..., 2], [...] -> [..., envs, 2].
    NumPy from NumPy."""
    return fold(fold(fragment_key, t)[..., None, :], np.arange(envs, dtype=np.uint32))


def zero_observation(spec: EnvSpec, batch: tuple[int, ...]) -> Observation:
    """An observation of zeros, of all the roles that the environment has: NumPy leaves [*batch, ...]."""
    return Observation(
        policy=zeros(spec.observation, batch),
        critic=None if spec.critic is None else zeros(spec.critic, batch),
        mask=np.zeros((*batch, sum(choices(spec.action))), bool) if spec.masked else None,
    )


@remembered
def params_form(agent: Agent) -> Params:
    """The shapes and dtypes of the parameters that act, as jax.ShapeDtypeStruct."""
    return jax.eval_shape(lambda key: agent.policy(agent.init(key)), np.zeros(2, np.uint32))


@remembered
def fragment_form(agent: Agent, spec: EnvSpec, envs: int) -> Trajectory:
    """The shapes and dtypes of a fragment of `envs` host environments, as jax.ShapeDtypeStruct."""
    rows, size = agent.plan.rows, (envs,)
    obs = zero_observation(spec, size)
    params = params_form(agent)
    keys = np.zeros((envs, 2), np.uint32)
    acting = Acting(keys, np.zeros(size, np.int32), np.ones((), bool), np.zeros(size, np.float32))
    action, carry, extras = jax.eval_shape(
        agent.act, params, agent.begin(envs), obs, np.zeros(size, bool), acting
    )
    form: Any = jax.ShapeDtypeStruct
    times = lambda count: lambda x: form((count, *x.shape), x.dtype)  # noqa: E731
    each = lambda dtype, count=rows: form((count, envs), dtype)  # noqa: E731
    return Trajectory(
        obs=jax.tree.map(times(rows + 1), obs),
        first=each(np.bool_, rows + 1),
        action=jax.tree.map(times(rows), action),
        reward=each(np.float32),
        terminated=each(np.bool_),
        version=each(np.int32),
        extras=jax.tree.map(times(rows), extras),
        carry=carry,
    )


def alone(function: Callable[..., Any], always: Any, *arguments: Any) -> Any:
    """function(*arguments), as a computation that XLA compiles by itself, whatever is around it.

    always: bool [], true, but not known to the compiler. On a CPU, XLA fuses what a function does with what
    is around it and then rounds a product and a sum together where it can, so that the bits would depend on
    that. (On a GPU nothing is promised of bits, and a condition would wait for the device.)
    """
    if jax.default_backend() != "cpu":
        return function(*arguments)
    form = jax.eval_shape(function, *arguments)
    nothing = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), form)  # noqa: E731
    return jax.lax.cond(always, function, nothing, *arguments)


def compiled_unroll(
    agent: Agent,
    env: VectorEnv,
    rows: int,
    params: Params,
    vstate: Any,
    step: Step,
    carry: Carry,
    key: Key,
    index: Array,
    version: Array,
) -> tuple[Trajectory, Any, Step, Carry]:
    """One fragment inside a compiled program: (trajectory, environments' state, present row, memory)."""
    act = act_row(agent)
    explore = jnp.ones((), bool)

    def row(now: tuple[Any, Step, Carry], t: Array) -> tuple[tuple[Any, Step, Carry], tuple[Any, ...]]:
        vstate, step, carry = now
        action, carry, extras = act(params, carry, step.obs, step.first, step.reward, key, t, index, explore)
        vstate, after = env.step(vstate, action)
        return (vstate, after, carry), (step.obs, step.first, action, after.reward, after.terminated, extras)

    (vstate, last, memory), (obs, first, action, reward, terminated, extras) = jax.lax.scan(
        row, (vstate, step, carry), jnp.arange(rows, dtype=jnp.uint32)
    )
    trajectory = Trajectory(
        obs=jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), obs, last.obs),
        first=jnp.concatenate([first, last.first[None]]),
        action=action,
        reward=reward,
        terminated=terminated,
        version=jnp.full(reward.shape, version, jnp.int32),
        extras=extras,
        carry=carry,
    )
    return trajectory, vstate, last, memory


def act_here(act: ActRow, params: Params, keys: np.ndarray, index: Array) -> ActHost:
    """The acting of one fragment for `host_unroll`. act: a compiled `act_keyed`. keys: of all rows, NumPy
    [T, B, 2]. index: best a JAX array."""
    explore = _true()  # on the device once: a NumPy argument costs a copy per call

    def row(obs: Observation, first: Array, reward: Array, t: int, carry: Carry) -> Any:
        raw, carry, extras = act(params, carry, obs, first, reward, keys[t], index, explore)
        action = np.asarray(raw) if isinstance(raw, jax.Array) else jax.tree.map(np.asarray, raw)
        return action, carry, extras

    return row


@cache
def _true() -> jax.Array:
    return jax.device_put(np.True_)


def join(trajectories: list[Trajectory]) -> Trajectory:
    """Fragments of several groups side by side, in group order: NumPy leaves [T, G * B, ...]."""
    if len(trajectories) == 1:
        return trajectories[0]

    def beside(axis: int) -> Callable[..., np.ndarray]:
        return lambda *leaves: np.concatenate(leaves, axis=axis)

    carry = jax.tree.map(beside(0), *[t.carry for t in trajectories])
    bare = [t._replace(carry=()) for t in trajectories]
    return jax.tree.map(beside(1), *bare)._replace(carry=carry)
