"""What `check_agent` asks of learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shoal import counters
from shoal.keys import fold, key_for
from shoal.testing.trial import Trial, dtype_of, equal, fault, leaves, observations, same_form
from shoal.types import Batch


def learn_has_its_form(trial: Trial) -> None:
    fragment, key = trial.fragment, key_for(0, "check_agent", "learn")
    update = trial.learn(trial.state, fragment, key)
    same_form(trial.state, update.state, "the state, in learn,")
    for name, value in update.metrics.items():
        if np.shape(value) != () or dtype_of(value) != np.float32:
            raise fault(
                f"the metric {name!r} must be one float32, not {dtype_of(value)}{list(np.shape(value))}"
            )
        if not np.isfinite(value):
            raise fault(f"the metric {name!r} is {value} after one update")
        if name.count("/") != 1:
            raise fault(f"the metric {name!r} must be named group/name")
    for path, leaf in leaves(update.state):
        if dtype_of(leaf).kind == "f" and not np.isfinite(leaf).all():
            raise fault(f"the state{path} is not finite after one update")
    steps, real = counters.value(update.state.env_steps), int(fragment.weight.sum())
    if steps != real:
        raise fault(f"learn counts {steps} environment steps where {real} were real (see Trajectory.weight)")
    if counters.value(update.state.updates) < 1:
        raise fault("learn must count its updates")
    path = equal(update, trial.learn(trial.state, fragment, key))
    if path:
        raise fault(
            f"learn gives another result the second time: {path} (everything random must come from its key)"
        )
    restored = jax.tree.map(np.asarray, trial.state)
    if equal(update, trial.learn(restored, fragment, key)):
        raise fault("learn gives another result from a restored state (of NumPy arrays)")


def learn_is_its_parts(trial: Trial) -> None:
    fragment, key = trial.fragment, key_for(0, "check_agent", "learn")
    batch = trial.batches(trial.state, fragment, fold(key, 0))
    _check_batch(batch)
    state, apply = trial.state, jax.jit(trial.agent.apply)
    for k in range(len(batch.index)):
        gradient = trial.grads(state, batch, batch.index[k], fold(key, 1, k))
        same_form(state.params, gradient.sum, "the gradient, against the parameters,")
        if np.shape(gradient.weight) != ():
            raise fault(
                f"the weight of a gradient must be one number, not of shape {np.shape(gradient.weight)}"
            )
        state = apply(state, gradient)
    state = jax.jit(trial.agent.observe)(state, fragment)
    learned = trial.learn(trial.state, fragment, key).state
    moved = _distance(learned.params, trial.state.params)
    if _distance(learned.params, state.params) > 0.02 * moved + 1e-6:
        raise fault("learn is not batches, then grads and apply for each minibatch, then observe")
    for name in ("env_steps", "updates"):
        if equal(getattr(learned, name), getattr(state, name)):
            raise fault(f"learn and its parts count {name} differently")


def _check_batch(batch: Batch) -> None:
    if np.ndim(batch.index) != 2 or dtype_of(batch.index) != np.int32:
        raise fault("the index of a Batch must be int32 [K, N]")
    counts = {np.shape(x)[0] for x in jax.tree.leaves(batch.rows)}
    if len(counts) != 1:
        raise fault(f"the rows of a Batch must all have one first axis, not {sorted(counts)}")
    if np.min(batch.index) < 0 or np.max(batch.index) >= min(counts):
        raise fault(f"the index of a Batch points outside its {min(counts)} rows")


def _distance(one: Any, other: Any) -> float:
    """Of two pytrees, as vectors."""
    parts = [
        np.asarray(a, np.float64) - np.asarray(b)
        for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    ]
    return float(np.sqrt(sum((p**2).sum() for p in parts)))


def _norm(tree: Any) -> float:
    return _distance(tree, jax.tree.map(np.zeros_like, tree))


def reset_rows_teach_nothing(trial: Trial) -> None:
    """Change all that a row which only resets holds; what follows a termination is never looked at either."""
    fragment, key = trial.fragment, key_for(0, "check_agent", "learn")
    idle = np.asarray(fragment.first[1:])
    # An observation before a reset row is V(final observation) where a time limit cut the episode.
    unseen = idle & np.concatenate([np.ones_like(idle[:1]), np.asarray(fragment.terminated[:-1])])
    noise = observations(trial.spec, fragment.first.shape, 12345)

    def where(rows: np.ndarray) -> Callable[[Any, Any], Any]:
        return lambda old, new: np.where(rows.reshape(*rows.shape, *(1,) * (old.ndim - 2)), new, old)

    swapped = jax.tree.map(lambda x: np.roll(x, 1, axis=1), (fragment.action, fragment.extras))
    action, extras = jax.tree.map(where(idle), (fragment.action, fragment.extras), swapped)
    cover = np.concatenate([unseen, np.zeros_like(unseen[:1])])
    changed = fragment._replace(
        obs=fragment.obs._replace(
            policy=jax.tree.map(where(cover), fragment.obs.policy, noise.policy),
            critic=jax.tree.map(where(cover), fragment.obs.critic, noise.critic),
        ),
        action=action,
        extras=extras,
        reward=where(idle)(np.asarray(fragment.reward), np.float32(9.0)),
    )
    for name, other in (
        ("reward, action or extras", changed._replace(obs=fragment.obs)),
        ("observation", changed),
    ):
        one, two = (trial.batches(trial.state, x, fold(key, 0)) for x in (fragment, other))
        for k in range(min(4, len(one.index))):
            a, b = (trial.grads(trial.state, x, x.index[k], fold(key, 1, k)) for x in (one, two))
            if _distance(a.sum, b.sum) > 1e-5 * _norm(a.sum) + 1e-12 or equal(a.weight, b.weight):
                raise fault(f"a gradient depends on the {name} of rows that only reset (weight 0)")


def halves_add_up(trial: Trial) -> None:
    fragment, key = trial.fragment, key_for(0, "check_agent", "learn")
    batch = trial.batches(trial.state, fragment, fold(key, 0))
    index = np.asarray(batch.index[0])
    if len(index) < 2:
        return
    parts = (index, index[: len(index) // 2], index[len(index) // 2 :])
    whole, one, two = (trial.grads(trial.state, batch, i, fold(key, 1, 0)) for i in parts)
    total = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), one.sum, two.sum)
    if abs(float(whole.weight) - float(one.weight) - float(two.weight)) > 1e-4 * abs(float(whole.weight)):
        raise fault("the weights of a minibatch's halves do not add up to its weight")
    if _distance(total, whole.sum) > 1e-3 * _norm(whole.sum) + 1e-9:
        raise fault(
            "the gradients of a minibatch's halves do not add up to its gradient: Gradient.sum must be the "
            "gradient of a sum over rows, not of a mean"
        )
