"""Compiled: acting, stepping and learning are one XLA program, for environments written in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.checkpoint import restore
from shoal.envs import Source
from shoal.envs.jax import VectorEnv, vectorize
from shoal.errors import ShoalError
from shoal.execution import Iteration, check_plan, group_size
from shoal.execution.unroll import compiled_unroll
from shoal.keys import fold, key_for
from shoal.types import Agent, Array, Carry, Metrics, State, Step, Trajectory


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One compiled program, for environments written in JAX.

    envs: environments in all. groups: how many groups they are divided into, run one after another;
    1 is fastest, and more of them are what Local runs with the same number.
    """

    envs: int = 64
    groups: int = 1

    def __post_init__(self) -> None:
        group_size(self.envs, self.groups)

    def start(self, agent: Agent, source: Source, seed: int) -> CompiledRun:
        return CompiledRun(agent, source, seed, self.envs, self.groups)


class Loop(NamedTuple):
    """All that an iteration changes; arrays of the groups have a leading axis [G, ...]."""

    learner: State
    env: Any
    step: Step
    carry: Carry
    iteration: Array  # uint32 []


class Keys(NamedTuple):
    """The keys of one experiment: act and env have one for each group, uint32 [G, 2]."""

    init: Array
    act: Array
    env: Array
    learn: Array

    @staticmethod
    def of(seed: int, groups: int) -> Keys:
        per_group = lambda role: np.stack([key_for(seed, role, g) for g in range(groups)])  # noqa: E731
        return Keys(key_for(seed, "init"), per_group("act"), per_group("env"), key_for(seed, "learn"))


def begin(agent: Agent, env: VectorEnv, size: int, keys: Keys) -> Loop:
    """The loop before its first iteration. Pure."""
    env_state, step = each_group(env.start, keys.env)
    groups = keys.act.shape[0]
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, *x.shape)), agent.begin(size))
    return Loop(agent.init(keys.init), env_state, step, carry, jnp.zeros((), jnp.uint32))


def iterate(agent: Agent, env: VectorEnv, size: int, keys: Keys, loop: Loop) -> tuple[Loop, Metrics, Any]:
    """One fragment of every group, then one update. Pure; also gives each group's (reward, first)."""
    params = agent.policy(loop.learner)
    groups = keys.act.shape[0]

    def fragment(group: Any) -> Any:
        number, key, env_state, step, carry = group
        index = number * size + jnp.arange(size, dtype=jnp.int32)
        return compiled_unroll(
            agent,
            env,
            agent.plan.rows,
            params,
            env_state,
            step,
            carry,
            fold(key, loop.iteration),
            index,
            loop.iteration,
        )

    numbers = jnp.arange(groups, dtype=jnp.int32)
    trajectory, env_state, step, carry = each_group(
        fragment, (numbers, keys.act, loop.env, loop.step, loop.carry)
    )
    update = agent.learn(loop.learner, _beside(trajectory), fold(keys.learn, loop.iteration))
    after = Loop(update.state, env_state, step, carry, loop.iteration + 1)
    return after, update.metrics, (trajectory.reward, trajectory.first)


def each_group(function: Any, arguments: Any) -> Any:
    """`function` of each group in turn: never batched, because another batch shape gives other bits."""
    groups = jax.tree.leaves(arguments)[0].shape[0]
    if groups > 1:
        return jax.lax.map(function, arguments)
    result = function(jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)


def _beside(trajectory: Trajectory) -> Trajectory:
    """[G, T, B, ...] -> [T, G * B, ...], in group order; the carry [G, B, ...] -> [G * B, ...]."""
    rows = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])  # noqa: E731
    flat = jax.tree.map(rows, trajectory._replace(carry=()))
    return flat._replace(carry=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory.carry))


class CompiledRun:
    """A started Compiled executor. program(keys, loop) is one iteration as a pure function."""

    def __init__(self, agent: Agent, source: Source, seed: int, envs: int, groups: int) -> None:
        if source.jax_env is None:
            raise ShoalError(
                f"{source.spec.id!r} is not written in JAX, so it cannot be compiled: use Local "
                "(--on local), or an environment such as 'jax:CartPole-v1'"
            )
        size = group_size(envs, groups)
        check_plan(agent.plan, envs)
        env = vectorize(source.jax_env, size)
        # The keys are arguments, not constants: one compiled program serves every seed.
        self.keys = Keys.of(seed, groups)
        self.program = partial(iterate, agent, env, size)
        self._iterate = jax.jit(self.program)
        self.loop: Loop = jax.jit(lambda keys: begin(agent, env, size, keys))(self.keys)

    @property
    def state(self) -> State:
        return self.loop.learner

    @state.setter
    def state(self, state: State) -> None:
        self.loop = self.loop._replace(learner=state)

    def iterate(self) -> Iteration:
        """One fragment of every group, then one update, in one call."""
        begun = perf_counter()
        self.loop, metrics, (reward, first) = self._iterate(self.keys, self.loop)
        metrics, reward, first = jax.device_get((metrics, reward, first))
        return Iteration(
            metrics=metrics,
            fragments=list(zip(reward, first, strict=True)),
            info={},
            spent={"compiled": perf_counter() - begun},
        )

    def save(self) -> dict[str, Any]:
        return jax.device_get(self.loop._replace(learner=())._asdict())

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        template = self.loop._replace(learner=())._asdict()
        self.loop = Loop(**restore(template, saved, prefix))._replace(learner=self.loop.learner)

    def close(self) -> None:
        pass
