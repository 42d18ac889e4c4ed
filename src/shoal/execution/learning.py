"""What becomes of an iteration's fragments: they are learned from at once, or stored and drawn from.

    OnPolicy:  trajectory -> learn
    Replay:    trajectory -> observe, insert -> draw the gradient steps that are due -> learn -> reprioritize

Both as a `Learning`, on the host (arrays of NumPy, a few compiled calls) and traceable (all within one
compiled program), to the same bits. What an executor keeps for it between iterations is the `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import replay
from shoal.checkpoint import restore
from shoal.checks import divides
from shoal.errors import ShoalError
from shoal.execution.learner import Learner
from shoal.keys import fold, key_for
from shoal.types import Agent, Array, Draws, EnvSpec, Metrics, Replay, Trajectory


class LearnKeys(NamedTuple):
    """The keys of an experiment's updates: uint32 [2] each."""

    learn: Array
    draw: Array

    @staticmethod
    def of(seed: int) -> LearnKeys:
        return LearnKeys(key_for(seed, "learn"), key_for(seed, "draw"))


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a learner takes in an iteration's experience.

    begin: the first store, from a Trajectory of anything with shape and dtype. take: (learner, store,
    trajectory, keys, iteration) -> (store, metrics, number of gradient steps or None where it is always the
    same). save, load: the store as arrays for a checkpoint, and from one.
    """

    begin: Callable[[Trajectory], Any]
    take: Callable[[Learner, Any, Trajectory, LearnKeys, Any], tuple[Any, Metrics, Any]]
    save: Callable[[Any], Any]
    load: Callable[[Any, Mapping[str, np.ndarray], str], Any]


def learning_of(agent: Agent, spec: EnvSpec, envs: int, *, host: bool) -> Learning:
    """How this agent learns from fragments of `envs` environments. Raises ShoalError, one line, where an
    update cannot be divided as the plan wants, or the replay cannot hold what it must."""
    plan = agent.plan
    if isinstance(plan, Replay):
        return _replayed(agent, plan, spec, envs, host)
    count, what = (envs, "environments' fragments") if plan.sequences else (envs * plan.rows, "rows")
    divides(plan.minibatches, count, "minibatches", what)

    def take(learner: Learner, store: Any, trajectory: Trajectory, keys: LearnKeys, iteration: Any) -> Any:
        learned = learner.learn(trajectory, fold(keys.learn, iteration))
        return store, learned.metrics, None

    return Learning(
        begin=lambda form: (),
        take=take,
        save=lambda store: (),
        load=lambda store, saved, prefix: (),
    )


def described(metrics: Metrics, updates: Any) -> dict[str, Any]:
    """The metrics of an iteration, in which perhaps no gradient step was due: those of none are left out."""
    if updates is None:
        return dict(metrics)
    return {**(metrics if updates else {}), "replay/gradient_steps": updates}


class Store(NamedTuple):
    """The replay, and how many gradient steps its data have earned."""

    memory: replay.Memory
    credit: replay.Credit


def _replayed(agent: Agent, plan: Replay, spec: EnvSpec, envs: int, host: bool) -> Learning:
    layout = replay.Layout.of(plan, spec, envs)
    most = replay.most_updates(plan, envs)

    def begin(form: Trajectory) -> Store:
        store = Store(replay.empty(layout, form, np if host else jnp), replay.begin(plan))
        return store if host else jax.tree.map(jnp.asarray, store)

    def take(learner: Learner, store: Store, trajectory: Trajectory, keys: LearnKeys, iteration: Any) -> Any:
        memory = replay.insert(layout, store.memory, trajectory)
        steps = (~trajectory.first[1:]).sum(dtype=np.int32)
        count, credit = replay.due(plan, store.credit, steps)
        count = count * replay.ready(layout, memory)  # what comes before anything can be drawn is not made up
        if host and not count:
            learner.observe(trajectory)
            return Store(memory, credit), {}, 0
        drawn = replay.draw(layout, memory, fold(keys.draw, iteration), most, plan.batch_size)
        learned = learner.observe_and_learn(trajectory, Draws(drawn, count), fold(keys.learn, iteration))
        if plan.prioritized:
            if learned.priorities is None:
                raise ShoalError("the plan of this agent is prioritized, but its grads give no priorities")
            new = np.asarray(learned.priorities) if host else learned.priorities
            memory = replay.reprioritize(layout, memory, drawn.index, new, count)
        return Store(memory, credit), learned.metrics, count

    def save(store: Store) -> dict[str, Any]:
        return {"memory": replay.save(layout, store.memory), "credit": store.credit._asdict()}

    def load(store: Store, saved: Mapping[str, np.ndarray], prefix: str) -> Store:
        credit = restore(store.credit._asdict(), saved, f"{prefix}/credit")
        memory = replay.load(layout, store.memory, saved, f"{prefix}/memory")
        return Store(memory, replay.Credit(**credit))

    return Learning(begin=begin, take=take, save=save, load=load)
