"""What Q-learning and SARSA share: a table of action values, epsilon-greedy acting, and its update.

A fragment's rows are learned from in time order: the B environments' steps of one row are one minibatch, so
that each row sees what the rows before it have taught. What a minibatch says is a sum over its rows, cell by
cell of the table (of errors, and of visits), so that parts of it add up wherever they were computed.

The steps of one minibatch that meet in the same cell are taken for what they would be in turn: c steps at
rate alpha towards their mean target move the cell by 1 - (1 - alpha)^c of the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from shoal.checks import at_least, between
from shoal.choices import masked_argmax, some_allowed
from shoal.counters import add, as_float, zero
from shoal.errors import ShoalError
from shoal.keys import bits, uniform
from shoal.sgd import count_steps, learner, linear_decay
from shoal.spaces import Discrete
from shoal.types import (
    Acting,
    Action,
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Extras,
    Gradient,
    Key,
    Observation,
    OnPolicy,
    Params,
    State,
    Trajectory,
)


class Settings(Protocol):
    """The fields that Q-learning and SARSA have in common; see there."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def visit_exponent(self) -> float: ...
    @property
    def rollout_length(self) -> int: ...
    @property
    def discount(self) -> float: ...
    @property
    def initial_value(self) -> float: ...
    @property
    def epsilon_start(self) -> float: ...
    @property
    def epsilon_end(self) -> float: ...
    @property
    def epsilon_steps(self) -> int: ...


class Steps(NamedTuple):
    """Steps of N environments, as a row of a fragment gives them. Leaves [N].

    state, action, next_state: int32, counted from 0. next_mask: bool [N, A], or None. next_action: int32,
    what was done next; it is known where `followed` is true, neither at the fragment's last row nor where
    an episode ended. table: int32, which of the tables learns. weight: 0 where a row only reset.
    """

    state: Array
    action: Array
    reward: Array
    terminated: Array
    next_state: Array
    next_mask: Array | None
    next_action: Array
    followed: Array
    table: Array
    weight: Array


After = Callable[[jax.Array, Steps, jax.Array], jax.Array]


def check_settings(settings: Settings) -> None:
    """Raises ShoalError for a value out of range."""
    at_least(settings, 1, "rollout_length", "epsilon_steps")
    at_least(settings, 0, "learning_rate", strictly=True)
    between(settings, 0, 1, "learning_rate", "visit_exponent", "discount", "epsilon_start", "epsilon_end")


def table_agent(spec: EnvSpec, settings: Settings, after: After, tables: int = 1) -> Agent:
    """An Agent that learns `tables` tables of action values, [S, A] each, and acts on their mean.

    after: (tables [n, S, A], Steps, epsilon) -> [N], the value of what follows each step where it did not
    end the episode: all in which the algorithms differ.
    params: {"q": float32 [n, S, A], "visits": float32 [n, S, A], how often each cell was learned}.
    Raises ShoalError where observations or actions are not Discrete.
    """
    cfg, name = settings, type(settings).__name__
    seen, actions = spec.observation, spec.action
    if not isinstance(seen, Discrete) or not isinstance(actions, Discrete):
        what = "observations" if not isinstance(seen, Discrete) else "actions"
        raise ShoalError(
            f"{name} keeps a table, so it needs Discrete observations and actions; the {what} of {spec.id} "
            f"are {type(seen if what == 'observations' else actions).__name__}: take DQN or PPO"
        )
    shape = (tables, seen.n, actions.n)

    def init(key: Key) -> State:
        del key
        params = {
            "q": jnp.full(shape, cfg.initial_value, jnp.float32),
            "visits": jnp.zeros(shape, jnp.float32),
        }
        return State(params, (), {}, zero(), zero())

    def epsilon(state: State) -> jax.Array:
        left = linear_decay(1.0, cfg.epsilon_steps, as_float(state.env_steps))
        return jnp.asarray(cfg.epsilon_end + (cfg.epsilon_start - cfg.epsilon_end) * left)

    def act(
        params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
    ) -> tuple[Action, Carry, Extras]:
        q = params["q"][obs.policy - np.int32(seen.start)]
        u = uniform(jnp.asarray(acting.key), actions.n + 1)
        # While it explores, the same numbers break ties: an untouched table must not mean "always the first".
        best = masked_argmax(q, obs.mask)
        tied = masked_argmax(jnp.where(q == _taken(q, best)[..., None], u[..., 1:], -1.0), obs.mask)
        anything = masked_argmax(u[..., 1:], obs.mask)
        raw = jnp.where(u[..., 0] < params["epsilon"], anything, tied)
        raw = jnp.where(acting.explore, raw, best)
        return raw + np.int32(actions.start), carry, {"raw_action": raw}

    def batches(state: State, experience: Trajectory, key: Key) -> Batch:
        exp, action = experience, experience.extras["raw_action"]
        rows, envs = exp.reward.shape
        state_number = exp.obs.policy - np.int32(seen.start)
        never = jnp.zeros((1, envs), bool)
        steps = Steps(
            state=state_number[:-1],
            action=action,
            reward=exp.reward,
            terminated=exp.terminated,
            next_state=state_number[1:],
            next_mask=None if exp.obs.mask is None else exp.obs.mask[1:],
            next_action=jnp.concatenate([action[1:], action[:1]]),
            followed=jnp.concatenate([~exp.first[2:], never]),
            table=(bits(key, rows * envs).reshape(rows, envs) % np.uint32(tables)).astype(jnp.int32),
            weight=exp.weight,
        )
        flat = jax.tree.map(lambda x: x.reshape(rows * envs, *x.shape[2:]), steps)
        return Batch(flat, jnp.arange(rows * envs, dtype=jnp.int32).reshape(rows, envs))

    def grads(state: State, minibatch: Steps, key: Key) -> Gradient:
        del key
        steps, q = minibatch, state.params["q"]
        known = q[steps.table, steps.state, steps.action]
        follows = jnp.where(steps.terminated, 0.0, after(q, steps, epsilon(state)))
        real = steps.weight > 0
        error = jnp.where(real, steps.reward + cfg.discount * follows - known, 0.0)
        cell = (steps.table, steps.state, steps.action)
        summed = {
            "q": jnp.zeros(shape, jnp.float32).at[cell].add(-error),
            "visits": jnp.zeros(shape, jnp.float32).at[cell].add(steps.weight),
        }
        count = steps.weight.sum()
        metrics = {
            "loss/squared_td_error": jnp.square(error).sum(),
            "value/q": jnp.where(real, known, 0.0).sum(),
            "policy/epsilon": epsilon(state) * count,
        }
        return Gradient(summed, count, metrics)

    def apply(state: State, gradient: Gradient) -> State:
        count = gradient.sum["visits"]
        visits = state.params["visits"] + count
        if cfg.visit_exponent:
            share = share_in_turn(cfg, state.params["visits"], count)
        else:
            share = 1.0 - (1.0 - cfg.learning_rate) ** count
        share = jnp.where(count == 1.0, _rate(cfg, visits), share)
        q = state.params["q"] - share * gradient.sum["q"] / jnp.maximum(count, 1.0)
        return state._replace(params={"q": q, "visits": visits}, updates=add(state.updates, 1))

    return Agent(
        plan=OnPolicy(rows=cfg.rollout_length),
        init=init,
        policy=lambda state: {"q": state.params["q"].mean(axis=0), "epsilon": epsilon(state)},
        begin=lambda envs: (),
        act=act,
        batches=batches,
        grads=grads,
        apply=apply,
        observe=count_steps,
        learn=learner(batches, grads, apply, count_steps),
    )


def _rate(settings: Settings, visits: jax.Array) -> jax.Array:
    """What a cell's visit number `visits` changes it by, of the way to what was seen."""
    return settings.learning_rate * jnp.maximum(visits, 1.0) ** -settings.visit_exponent


def share_in_turn(settings: Settings, before: jax.Array, count: jax.Array) -> jax.Array:
    """What `count` visits in turn, after those before, would change a cell by: 1 less what each leaves."""

    def visit(number: jax.Array, left: jax.Array) -> jax.Array:
        rate = _rate(settings, before + number + 1.0)
        return jnp.where(number < count, left * (1.0 - rate), left)

    return 1.0 - jax.lax.fori_loop(0, count.max().astype(jnp.int32), visit, jnp.ones(count.shape))


def _taken(q: jax.Array, action: Array) -> jax.Array:
    return jnp.take_along_axis(q, jnp.asarray(action)[..., None], axis=-1)[..., 0]


def greedy_value(choice: jax.Array, value: jax.Array, mask: Array | None) -> jax.Array:
    """value [N, A] of the action that is best by `choice` [N, A], among those that the mask allows: [N]."""
    return _taken(value, masked_argmax(choice, mask))


def mean_value(q: jax.Array, mask: Array | None, epsilon: jax.Array) -> jax.Array:
    """The mean of q [N, A] over the epsilon-greedy policy, ties split evenly: [N]."""
    allowed = jnp.ones(q.shape, bool) if mask is None else some_allowed(jnp.asarray(mask).astype(bool))
    best = allowed & (q == _taken(q, masked_argmax(q, mask))[..., None])
    share = lambda rows: rows / rows.sum(axis=-1, keepdims=True)  # noqa: E731
    policy = epsilon * share(allowed) + (1.0 - epsilon) * share(best)
    return (policy * q).sum(axis=-1)
