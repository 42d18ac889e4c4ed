"""What `check_agent` asks of learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shoal import counters
from shoal.keys import fold, key_for
from shoal.testing.trial import (
    Trial,
    drawn,
    dtype_of,
    equal,
    fault,
    leaves,
    observations,
    rows_of,
    same_form,
    used,
)
from shoal.types import Batch, Draws, OnPolicy, Replay, Transitions


def learn_has_its_form(trial: Trial) -> None:
    fragment, key = trial.experience, key_for(0, "check_agent", "learn")
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
    _check_priorities(trial, update.priorities)
    stored = isinstance(trial.agent.plan, Replay)
    counted = jax.jit(trial.agent.observe)(trial.state, trial.fragment) if stored else update.state
    steps, real = counters.value(counted.env_steps), int(trial.fragment.weight.sum())
    if steps != real:
        who = "observe" if stored else "learn"
        raise fault(f"{who} counts {steps} environment steps where {real} were real (see Trajectory.weight)")
    if stored and counters.value(update.state.env_steps):
        raise fault("learn counts environment steps, which with a Replay plan observe alone must do")
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


def _check_priorities(trial: Trial, priorities: Any) -> None:
    """One positive number for each row of the minibatches that were used, where the plan wants any."""
    plan = trial.agent.plan
    if not isinstance(plan, Replay) or not plan.prioritized:
        return
    if priorities is None:
        raise fault("the plan is prioritized, but grads gives no priorities")
    count = int(trial.experience.count)
    if np.shape(priorities)[1:] != (plan.batch_size,):
        raise fault(f"priorities have shape {np.shape(priorities)[1:]}, a minibatch {plan.batch_size} rows")
    if not (np.isfinite(priorities[:count]) & (np.asarray(priorities[:count]) > 0)).all():
        raise fault("priorities must be positive and finite")


def learn_is_its_parts(trial: Trial) -> None:
    fragment, key = trial.experience, key_for(0, "check_agent", "learn")
    batch = trial.batches(trial.state, fragment, fold(key, 0))
    _check_batch(batch)
    state, apply = trial.state, jax.jit(trial.agent.apply)
    for k in range(used(batch)):
        gradient = trial.grads(state, rows_of(batch, k), fold(key, 1, k))
        same_form(state.params, gradient.sum, "the gradient, against the parameters,")
        if np.shape(gradient.weight) != ():
            raise fault(
                f"the weight of a gradient must be one number, not of shape {np.shape(gradient.weight)}"
            )
        state = apply(state, gradient)
    if isinstance(trial.agent.plan, OnPolicy):
        state = jax.jit(trial.agent.observe)(state, fragment)
    learned = trial.learn(trial.state, fragment, key).state
    moved = _distance(learned.params, trial.state.params)
    if _distance(learned.params, state.params) > 0.02 * moved + 1e-6:
        raise fault("learn is not batches, then grads and apply for each minibatch, then observe")
    for name in ("env_steps", "updates"):
        if equal(getattr(learned, name), getattr(state, name)):
            raise fault(f"learn and its parts count {name} differently")


def _check_batch(batch: Batch) -> None:
    if batch.index is None:
        counts = {np.shape(x)[:2] for x in jax.tree.leaves(batch.rows)}
        if len(counts) != 1:
            raise fault(f"the rows of a Batch without index must all begin with K, N, not {sorted(counts)}")
        return
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
    key = key_for(0, "check_agent", "learn")
    plan = trial.agent.plan
    changes = _unused_transitions if isinstance(plan, Replay) and not plan.sequence else _unused_rows
    for name, other in changes(trial).items():
        one, two = (trial.batches(trial.state, x, fold(key, 0)) for x in (trial.experience, other))
        for k in range(min(4, used(one))):
            a, b = (trial.grads(trial.state, rows_of(x, k), fold(key, 1, k)) for x in (one, two))
            if _distance(a.sum, b.sum) > 1e-5 * _norm(a.sum) + 1e-12 or equal(a.weight, b.weight):
                raise fault(f"a gradient depends on the {name} of rows that only reset (weight 0)")


def _where(rows: np.ndarray) -> Callable[[Any, Any], Any]:
    return lambda old, new: np.where(rows.reshape(*rows.shape, *(1,) * (np.ndim(old) - rows.ndim)), new, old)


def _unused_transitions(trial: Trial) -> dict[str, Draws]:
    """The draws with what must not matter changed."""
    draws = trial.experience
    rows: Transitions = draws.minibatches
    idle, ended = np.asarray(rows.weight) == 0, np.asarray(rows.terminated)
    beyond = np.arange(rows.reward.shape[-1]) >= np.asarray(rows.steps)[..., None]
    noise = observations(trial.spec, idle.shape, 12345)._replace(mask=rows.obs.mask)
    swapped = jax.tree.map(lambda x: np.roll(x, 1, axis=1), rows.action)
    changed = rows._replace(
        action=jax.tree.map(_where(idle), rows.action, swapped),
        reward=_where(idle[..., None] | beyond)(rows.reward, np.float32(9.0)),
    )
    unseen = changed._replace(
        obs=jax.tree.map(_where(idle), rows.obs, noise),
        next_obs=jax.tree.map(_where(idle | ended), rows.next_obs, noise._replace(mask=rows.next_obs.mask)),
    )
    return {
        "reward or action": draws._replace(minibatches=changed),
        "observation": draws._replace(minibatches=unseen),
    }


def _unused_rows(trial: Trial) -> dict[str, Any]:
    """The fragment with what must not matter changed; or the draws of sequences."""
    plan, fragment = trial.agent.plan, trial.fragment
    idle = np.asarray(fragment.first[1:])
    # An observation before a reset row is V(final observation) where a time limit cut the episode.
    # Before row 0 there is nothing; in a replay there is the last row of the same fragment.
    ended = np.asarray(fragment.terminated)
    before = ended[-1:] if isinstance(plan, Replay) else np.ones_like(ended[:1])
    unseen = idle & np.concatenate([before, ended[:-1]])
    noise = observations(trial.spec, fragment.first.shape, 12345)
    swapped = jax.tree.map(lambda x: np.roll(x, 1, axis=1), (fragment.action, fragment.extras))
    action, extras = jax.tree.map(_where(idle), (fragment.action, fragment.extras), swapped)
    cover = np.concatenate([unseen, np.zeros_like(unseen[:1])])
    changed = fragment._replace(
        obs=fragment.obs._replace(
            policy=jax.tree.map(_where(cover), fragment.obs.policy, noise.policy),
            critic=jax.tree.map(_where(cover), fragment.obs.critic, noise.critic),
        ),
        action=action,
        extras=extras,
        reward=_where(idle)(np.asarray(fragment.reward), np.float32(9.0)),
    )
    variants = {
        "reward, action or extras": changed._replace(obs=fragment.obs),
        "observation": changed,
    }
    if isinstance(plan, OnPolicy):
        return dict(variants)
    return {name: drawn(plan, trial.spec, fragment) for name, fragment in variants.items()}


def halves_add_up(trial: Trial) -> None:
    key = key_for(0, "check_agent", "learn")
    rows = rows_of(trial.batches(trial.state, trial.experience, fold(key, 0)), 0)
    count = len(jax.tree.leaves(rows)[0])
    if count < 2:
        return
    parts = (slice(None), slice(0, count // 2), slice(count // 2, None))
    whole, one, two = (
        trial.grads(trial.state, jax.tree.map(lambda x, part=part: x[part], rows), fold(key, 1, 0))
        for part in parts
    )
    total = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), one.sum, two.sum)
    if abs(float(whole.weight) - float(one.weight) - float(two.weight)) > 1e-4 * abs(float(whole.weight)):
        raise fault("the weights of a minibatch's halves do not add up to its weight")
    if _distance(total, whole.sum) > 1e-3 * _norm(whole.sum) + 1e-9:
        raise fault(
            "the gradients of a minibatch's halves do not add up to its gradient: Gradient.sum must be the "
            "gradient of a sum over rows, not of a mean"
        )
