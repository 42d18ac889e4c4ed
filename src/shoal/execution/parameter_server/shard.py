"""A parameter shard: its share of the State, and the steps that are made on it, in the order in which they
come.

    (gradients, their norms) -> apply -> observe -> what is published: a Slice

It is a state machine: from the same State, the same steps give the same bits. That is how a lost shard is
made again (see servers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal import norms
from shoal.counters import value
from shoal.execution.cluster.letters import opened, sealed
from shoal.execution.cluster.luggage import Luggage, unpack
from shoal.execution.cluster.parcels import Seen, filled, form_of
from shoal.execution.parameter_server.compression import unpacked
from shoal.execution.parameter_server.shares import Shares, Slice
from shoal.memo import remembered
from shoal.recipe import Recipe
from shoal.types import Agent, Array, EnvSpec, Gradient, Metrics, State


class Push(NamedTuple):
    """A gradient without its numbers: `Gradient.weight` and `Gradient.metrics`."""

    weight: Array
    metrics: Metrics


class Step(NamedTuple):
    """A step of the optimizer, with the sum of some gradients, and then what is observed. pushes: of these
    gradients; () makes no step. norms: that `apply` takes, of the whole mean gradient. seen: of a fragment;
    None: nothing is observed."""

    pushes: tuple[Push, ...]
    norms: Sequence[float] = ()
    seen: Seen | None = None


class Told(NamedTuple):
    """How far a shard is. version: steps that it has made. squares: of each step with several gradients, the
    squared norm of its share of their sum."""

    version: int
    env_steps: int
    squares: tuple[float, ...] = ()


class Functions(NamedTuple):
    """What a shard computes, compiled."""

    apply: Callable[[State, np.ndarray, Push, Sequence[np.float32]], State]
    squares: Callable[[State, np.ndarray, Push], list[Array]]
    observe: Callable[[State, Seen], State]
    published: Callable[[State], tuple[Array, list[Array]]]


@remembered
def functions_of(agent: Agent, spec: EnvSpec, envs: int, count: int, number: int) -> Functions:
    shares, form = Shares.of(agent, count), form_of(agent, spec, envs)

    def apply(state: State, vector: Array, push: Push, taken: Sequence[Array]) -> State:
        with norms.given(taken):
            return agent.apply(state, Gradient(shares.sliced(vector, number), *push))

    def squares(state: State, vector: Array, push: Push) -> list[Array]:
        with norms.recorded() as found:
            agent.apply(state, Gradient(shares.sliced(vector, number), *push))
        return found

    def observe(state: State, seen: Seen) -> State:
        return agent.observe(state, filled(form, seen))

    return Functions(jax.jit(apply), jax.jit(squares), jax.jit(observe), jax.jit(shares.published))


class ParameterShard:
    """Shard `number` of `count`. envs: of a fragment that is observed."""

    def __init__(self, agent: Agent, spec: EnvSpec, envs: int, count: int, number: int) -> None:
        self._do = functions_of(agent, spec, envs, count, number)
        self._version, self._state = -1, None

    def load(self, version: int, part: State) -> tuple[Told, Any]:
        """Have this share of a State, after so many steps."""
        self._version, self._state = version, jax.device_put(part)
        return self._told()

    def save(self) -> State:
        """Its share of the State, NumPy leaves."""
        return jax.tree.map(np.asarray, self._state)

    def squares(self, letter: Any, *packed: Any) -> list[float]:
        """The squares of its share of each norm that a step will take; see `advance`."""
        (step,) = opened(letter)
        vector, push = _sum(step.pushes, packed)
        return [float(square) for square in self._do.squares(self._now, vector, push)]

    def advance(self, version: int, letter: Any, *packed: Any) -> tuple[Told, Any]:
        """Make steps, of which the first is number `version`. letter: these Steps. packed: the `Packed` of
        all pushes, in order. All these may be `sealed`, and the Slice that is given is."""
        assert version == self._version, f"step {version} came after {self._version}"
        left, steps, squares = iter(packed), opened(letter), []
        for step in steps:
            if step.pushes:
                vector, push = _sum(step.pushes, [next(left) for _ in step.pushes])
                if len(step.pushes) > 1:  # else the worker knows
                    squares.append(float(vector @ vector))
                taken = [np.float32(norm) for norm in step.norms]
                self._state = self._do.apply(self._now, vector, push, taken)
            if step.seen is not None:
                self._state = self._do.observe(self._now, step.seen)
        self._version += len(steps)
        return self._told(*squares)

    @property
    def _now(self) -> State:
        assert self._state is not None, "a shard begins with `load`"
        return self._state

    def _told(self, *squares: float) -> tuple[Told, Any]:
        vector, rest = self._do.published(self._now)
        told = Told(self._version, value(self._now.env_steps), squares)
        return told, sealed(Slice(self._version, np.asarray(vector), [np.asarray(x) for x in rest]))


def shard_of(luggage: Luggage, spec: EnvSpec, envs: int, count: int, number: int) -> ParameterShard:
    """A shard in a process of its own. luggage: the Recipe."""
    recipe: Recipe = unpack(luggage)
    return ParameterShard(recipe.agent(spec), spec, envs, count, number)


def _sum(pushes: Sequence[Push], packed: Sequence[Any]) -> tuple[np.ndarray, Push]:
    """Gradients added up in order: the bits do not depend on who computed them, or when."""
    vector, (weight, metrics) = unpacked(opened(packed[0])), pushes[0]
    for push, more in zip(pushes[1:], packed[1:], strict=True):
        vector = vector + unpacked(opened(more))
        weight = weight + push.weight
        metrics = {name: metrics[name] + x for name, x in push.metrics.items()}
    return vector, Push(weight, dict(metrics))
