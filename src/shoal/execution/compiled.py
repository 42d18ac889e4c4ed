"""Compiled: acting, stepping and learning are one XLA program, for environments written in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.checkpoint import restore
from shoal.checks import typed
from shoal.envs.jax import VectorEnv, vectorize
from shoal.errors import ShoalError
from shoal.execution import Fragment, Iteration, group_size
from shoal.execution.learner import Functions, LearnerHere
from shoal.execution.learning import Learning, LearnKeys, described, learning_of
from shoal.execution.split import Split, split_here
from shoal.execution.unroll import alone, compiled_unroll
from shoal.keys import fold, key_for
from shoal.mesh import Mesh
from shoal.recipe import Experiment
from shoal.types import Agent, Array, Carry, State, Step, Trajectory
from shoal.unbroken import Unbroken


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One compiled program, for environments written in JAX.

    envs: environments in all. groups: how many groups they are divided into, run one after another;
    1 is fastest, and more of them are what Local runs with the same number. mesh: run on so many devices of
    this process; None is one. Over "data" each steps and acts for its own environments (Hessel et al. 2021,
    "Podracer architectures", section 3). Another mesh is the same experiment, to rounding.
    """

    envs: int = 64
    groups: int = 1
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        typed(self)
        group_size(self.envs, self.groups)

    def prepared(self) -> AbstractContextManager[None]:
        return nullcontext()

    def start(self, experiment: Experiment) -> CompiledRun:
        return CompiledRun(experiment, self.envs, self.groups, self.mesh)

    def evaluator(self, experiment: Experiment) -> None:
        return None


class Loop(NamedTuple):
    """All that an iteration changes but the learner's state and store; arrays of the groups have a leading
    axis [G, ...]."""

    env: Any
    step: Step
    carry: Carry
    iteration: Array  # uint32 []


class Keys(NamedTuple):
    """The keys of one experiment: act and env have one for each group, uint32 [G, 2]."""

    init: Array
    act: Array
    env: Array
    learning: LearnKeys

    @staticmethod
    def of(seed: int, groups: int) -> Keys:
        per_group = lambda role: np.stack([key_for(seed, role, g) for g in range(groups)])  # noqa: E731
        return Keys(key_for(seed, "init"), per_group("act"), per_group("env"), LearnKeys.of(seed))


def begin(agent: Agent, env: VectorEnv, size: int, keys: Keys) -> Loop:
    """The loop before its first iteration. Pure."""
    env_state, step = each_group(env.start, keys.env)
    groups = keys.act.shape[0]
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, *x.shape)), agent.begin(size))
    return Loop(env_state, step, carry, jnp.zeros((), jnp.uint32))


class Seen(NamedTuple):
    """What an iteration shows: the update's metrics and its number of gradient steps (None where it is
    always the same), and each group's rewards [G, T, B] and first flags [G, T + 1, B]."""

    metrics: Any
    updates: Any
    reward: Array
    first: Array


def collect(
    agent: Agent, env: VectorEnv, size: int, keys: Keys, state: State, loop: Loop
) -> tuple[Trajectory, Loop]:
    """One fragment of every group, [G, T, ...], and the loop after it. Pure."""
    params = agent.policy(state)
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
    return trajectory, Loop(env_state, step, carry, loop.iteration + 1)


def iterate(
    agent: Agent,
    learning: Learning,
    env: VectorEnv,
    size: int,
    keys: Keys,
    state: State,
    loop: Loop,
    store: Any,
) -> tuple[State, Loop, Any, Seen]:
    """One fragment of every group, then what is to be learned: (state, loop, store, what was seen). Pure."""
    trajectory, after = collect(agent, env, size, keys, state, loop)
    joined = _beside(trajectory)
    if (
        keys.act.shape[0] > 1
    ):  # else XLA reads it in the groups' order, and adds it up in another one than Local
        joined = alone(_beside, loop.iteration < np.uint32(2**32 - 1), trajectory)
    learner = LearnerHere(agent.plan, Functions.of(agent), state)
    store, metrics, updates = learning.take(learner, store, joined, keys.learning, loop.iteration)
    return learner.state, after, store, Seen(metrics, updates, trajectory.reward, trajectory.first)


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
    """A started Compiled executor. program(keys, state, loop, store) is one iteration as a pure function."""

    def __init__(self, experiment: Experiment, envs: int, groups: int, mesh: Mesh | None = None) -> None:
        agent, source = experiment.agent, experiment.source
        if source.jax_env is None:
            raise ShoalError(
                f"{source.spec.id!r} is not written in JAX, so it cannot be compiled: use Local "
                "(--on local), or an environment such as 'jax:CartPole-v1'"
            )
        self._unbroken = Unbroken()
        size = group_size(envs, groups)
        env = vectorize(source.jax_env, size)
        # The keys are arguments, not constants: one compiled program serves every seed.
        self.keys = Keys.of(experiment.seed, groups)
        self._learning = learning_of(agent, source.spec, envs, host=False)
        self.program = partial(iterate, agent, self._learning, env, size)
        start = lambda keys: begin(agent, env, size, keys)  # noqa: E731
        split = None if mesh is None else split_here(mesh, agent, envs, groups)
        self.learner = LearnerHere.new(agent, self.keys.init, split)
        # The store is given away: a replay must not be copied, and nobody else holds its arrays.
        if split is None:
            self._iterate = jax.jit(self.program, donate_argnums=3)
            self.loop: Loop = jax.jit(start)(self.keys)
        else:
            self._iterate, loop = _over_devices(split, self.program)
            self.loop = split.jit(start, loop)(self.keys)
        form, _ = jax.eval_shape(partial(collect, agent, env, size), self.keys, self.learner.state, self.loop)
        empty = partial(self._learning.begin, jax.eval_shape(_beside, form))
        self.store: Any = empty() if split is None else split.jit(empty, split.everywhere)()

    def iterate(self) -> Iteration:
        """One fragment of every group, then what is to be learned, in one call."""
        begun = perf_counter()
        with self._unbroken.step():
            self.learner.state, self.loop, self.store, seen = self._iterate(
                self.keys, self.learner.state, self.loop, self.store
            )
            shown = jax.device_get(seen)  # waits for the program to end
        return iteration_of(shown, perf_counter() - begun)

    def save(self) -> dict[str, Any]:
        self._unbroken.check()
        return jax.device_get(self.loop._asdict()) | {"store": self._learning.save(self.store)}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        arrays = {path: x for path, x in saved.items() if not path.startswith(f"{prefix}/store/")}
        self.loop = Loop(**restore(self.loop._asdict(), arrays, prefix))
        self.store = self._learning.load(self.store, saved, f"{prefix}/store")

    def close(self) -> None:
        pass


def _over_devices(split: Split, program: Any) -> tuple[Any, Loop]:
    """The program compiled for all devices, and where its loop lies. Environments and what they show lie over
    "data". The store is on every device: each inserts the whole fragment and draws for its own rows, where
    a divided one would be gathered for every draw."""
    environments, everywhere = split.over_data(1), split.everywhere
    loop = Loop(environments, environments, environments, everywhere)
    seen = Seen(everywhere, everywhere, split.over_data(2), split.over_data(2))
    gives = (split.state, loop, everywhere, seen)
    takes = (everywhere, split.state, loop, everywhere)
    return split.jit(program, gives, (1, 3), takes), loop


def iteration_of(seen: Seen, seconds: float) -> Iteration:
    """What the trainer gets: `seen` in NumPy arrays, of one seed."""
    return Iteration(
        metrics=described(seen.metrics, seen.updates),
        fragments=[Fragment(g, *rows) for g, rows in enumerate(zip(seen.reward, seen.first, strict=True))],
        info={},
        spent={"compiled": seconds},
    )
