"""Minibatch descent: from an agent's three parts of an update to one `learn`.

Experience -> batches (K minibatches) -> [grads -> apply] K times -> observe.

One definition of an update serves everywhere: here the parts run in one compiled scan; an executor
that splits an update adds up the `Gradient`s of several devices or workers before `apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shoal.checks import divides
from shoal.counters import add, zero
from shoal.keys import fold, permutations
from shoal.norms import global_norm
from shoal.sharding import added_up, split, whole
from shoal.types import Array, Batch, Gradient, Key, Metrics, Params, State, Trajectory, Update

NORM = "loss/gradient_norm"
# Of a loss: its sum over rows, (their total weight, the metrics as sums over rows).
Sums = tuple[jax.Array, tuple[jax.Array, Metrics]]


def learner(
    batches: Callable[[State, Any, Key], Batch],
    grads: Callable[[State, Any, Key], Gradient],
    apply: Callable[[State, Gradient], State],
    observe: Callable[[State, Trajectory], State] | None = None,
) -> Callable[[State, Any, Key], Update]:
    """`learn` of an Agent, made of its parts. Metrics are means over all rows of all minibatches.

    observe: with an OnPolicy plan, whose experience is observed once it is learned from; None with a
    Replay plan, whose fragments are observed when they are stored.
    """

    def learn(state: State, experience: Any, key: Key) -> Update:
        batch = batches(state, experience, fold(key, 0))
        rows = split(batch.rows, 1) if batch.index is None else whole(batch.rows)

        names: list[str] = []  # of the metrics, noted when `step` is traced

        def step(state: State, number: Array) -> tuple[State, tuple[Array, Array | None]]:
            minibatch = rows_of(batch._replace(rows=rows), number)
            gradient = with_norm(added_up(grads, state, minibatch, fold(key, 1, number)))
            names[:] = gradient.metrics
            sums = jnp.stack([gradient.weight, *gradient.metrics.values()])  # one array to keep, not ten
            return apply(state, gradient), (sums, gradient.priorities)

        state, (sums, priorities) = _each(step, state, batch)
        weight, *totals = sums.sum(0)
        metrics = {name: x / jnp.maximum(weight, 1e-8) for name, x in zip(names, totals, strict=True)}
        after = state if observe is None else observe(state, experience)
        return Update(after, metrics, priorities)

    return learn


def rows_of(batch: Batch, number: Array) -> Any:
    """The rows [N, ...] of minibatch `number`."""
    if batch.index is None:
        take = lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False)  # noqa: E731
    else:
        index = split(jax.lax.dynamic_index_in_dim(batch.index, number, keepdims=False), 0)
        take = lambda x: jnp.asarray(x).at[index].get(mode="promise_in_bounds")  # noqa: E731
    return split(jax.tree.map(take, batch.rows), 0)


def _each(step: Callable[[State, Array], tuple[State, Any]], state: State, batch: Batch) -> Any:
    """`step` of the minibatches 0, 1, ... in turn: the state after, and what they gave, [K, ...] each.
    Where `batch.count` says that fewer are to be used, the rest gives zeros and costs nothing."""
    total = jax.tree.leaves(batch.rows if batch.index is None else batch.index)[0].shape[0]
    numbers = jnp.arange(total, dtype=jnp.uint32)
    if batch.count is None:
        return jax.lax.scan(step, state, numbers)
    _, form = jax.eval_shape(step, state, numbers[0])
    given = jax.tree.map(lambda x: jnp.zeros((total, *x.shape), x.dtype), form)

    def one(number: Array, done: tuple[State, Any]) -> tuple[State, Any]:
        state, given = done
        state, new = step(state, number)
        return state, jax.tree.map(lambda x, y: x.at[number].set(y), given, new)

    return jax.lax.fori_loop(jnp.uint32(0), batch.count.astype(jnp.uint32), one, (state, given))


def minibatches(key: Key, rows: int, epochs: int, count: int) -> jax.Array:
    """The rows of `epochs` passes of `count` minibatches, shuffled anew in each: int32 [epochs * count, N].

    `minibatches(key, 8, 1, 1)` is the whole batch in order. ShoalError where count does not divide rows.
    """
    divides(count, rows, "minibatches", "rows")
    if count == 1:  # one minibatch takes every row whatever the order: spare the shuffle and keep the order
        return jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), (epochs, rows))
    return permutations(key, epochs, rows).reshape(epochs * count, rows // count)


def gradient_of(loss: Callable[[Params, Any], Sums], params: Params, minibatch: Any) -> Gradient:
    """The Gradient of a loss.

    Adds "loss/gradient_norm", the norm of this minibatch's mean gradient before clipping.
    """
    total, (weight, metrics) = jax.grad(loss, has_aux=True)(params, minibatch)
    return with_norm(Gradient(total, weight, {**metrics, NORM: jnp.float32(0)}))


def over_all_rows(loss: Array, metrics: Mapping[str, Array], weight: Array) -> Sums:
    """From loss, metrics and weight per row, [N] or [N, T] (a metric may be one number for all). The metrics
    are summed in one pass: XLA compiles and runs each sum apart."""
    beside = jnp.stack([jnp.broadcast_to(x, weight.shape) for x in metrics.values()])
    sums = (beside * weight).sum(range(1, beside.ndim))
    return (loss * weight).sum(), (weight.sum(), dict(zip(metrics, sums, strict=True)))


def with_norm(gradient: Gradient) -> Gradient:
    """With its norm, where its metrics tell of one: that of added parts is not the sum of theirs."""
    if NORM not in gradient.metrics:
        return gradient
    norm = optax.tree.norm(gradient.sum)  # of the sum, so already a sum over the weight
    return gradient._replace(metrics={**gradient.metrics, NORM: norm})


def mean_gradient(total: Params, weight: Array, max_norm: float | None = None) -> Params:
    """The gradient of the mean loss, sum / weight (zeros where no row weighs anything), scaled down to a
    global L2 norm of at most max_norm (Pascanu et al. 2013).

    Of `gradient.sum`, or of a part of it that has a norm of its own. The norm is taken of the sum, because
    "loss/gradient_norm" is that too: once compiled it is taken once.
    """
    scale = 1.0 / jnp.maximum(weight, 1e-8)
    if max_norm is not None:
        scale = scale * jnp.minimum(1.0, max_norm / jnp.maximum(global_norm(total) * scale, 1e-12))
    return jax.tree.map(lambda g: g * scale, total)


def linear_decay(start: float, steps: int | None, env_steps: Array) -> Array:
    """`start`, falling linearly to 0 after `steps` environment steps (None: constant). float32 []."""
    if steps is None:
        return jnp.float32(start)
    return start * jnp.clip(1.0 - env_steps / steps, 0.0, 1.0)


def count_steps(state: State, experience: Trajectory) -> State:
    """The state with the experience's real environment steps counted."""
    return state._replace(env_steps=add(state.env_steps, experience.weight.sum().astype(jnp.uint32)))


def new_state(params: Params, optimizer: optax.GradientTransformation, extra: dict[str, Any]) -> State:
    """The state before the first update."""
    return State(params, optimizer.init(params), extra, zero(), zero())


def descend(
    state: State,
    gradient: Params,
    optimizer: optax.GradientTransformation,
    learning_rate: Array,
) -> State:
    """One optimizer step. `optimizer` gives the direction (e.g. `optax.scale_by_adam`); the learning rate
    is applied here, because it may follow the count of environment steps, which optax does not know."""
    direction, opt = optimizer.update(gradient, state.opt, state.params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    return state._replace(params=params, opt=opt, updates=add(state.updates, 1))
