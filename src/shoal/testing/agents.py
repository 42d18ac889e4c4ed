"""`check_agent`: does an agent keep what every executor relies on?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from shoal import counters
from shoal.keys import key_for
from shoal.spaces import Box, Dict, Space, Tuple, choices, zeros
from shoal.testing.groups import limits
from shoal.testing.trial import Trial, equal, fault, leaves, make_trial, same_form
from shoal.testing.updates import (
    halves_add_up,
    learn_has_its_form,
    learn_is_its_parts,
    reset_rows_teach_nothing,
)
from shoal.types import Agent, EnvSpec, State


@dataclass(frozen=True, kw_only=True)
class AgentReport:
    """The names of the checks that an agent passed."""

    passed: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{len(self.passed)} checks passed", *(f"  ok  {name}" for name in self.passed)])


def check_agent(
    agent: Agent, spec: EnvSpec, *, envs: int = 4, seed: int = 0, additive: bool = True
) -> AgentReport:
    """Let an agent act and learn on made-up data and look for what would break an executor's promises.

    The fragment has `agent.plan.rows` rows of `envs` random environments, with terminations, time limits
    and rows that only reset. Checked are, in this order: the form of the state, of `begin` and of `act`; that
    a row of `act` depends on that row and its key alone, forgets what was before a reset, and takes no notice
    of the key when it does not explore; the form of `learn`, which must keep every shape and dtype (else it
    would be compiled anew), count the real steps and give the same result twice; that learn is batches,
    grads, apply and observe; that rows of weight 0 change no gradient; and that the gradients of two halves
    of a minibatch add up to the gradient of the whole.

    additive=False leaves the last one out, for a loss that is no sum over rows (one that ranks or contrasts
    the rows of a minibatch); such an agent can't be split over learners.
    Returns a report; raises ShoalError, one line, at the first fault.
    """
    trial = make_trial(agent, spec, envs, seed)
    passed = []
    for name, check in _CHECKS.items():
        if check is halves_add_up and not additive:
            continue
        check(trial)
        passed.append(name)
    return AgentReport(passed=tuple(passed))


def _state_has_its_form(trial: Trial) -> None:
    if not isinstance(trial.state, State):
        raise fault(f"init must give a State, not {type(trial.state).__name__}")
    same_form(trial.state, trial.state, "init")
    again = jax.jit(trial.agent.init)(key_for(0, "check_agent", "init"))
    if jax.tree.structure(again) != jax.tree.structure(trial.state):
        raise fault("init gives another structure the second time")
    if counters.value(trial.state.env_steps) or counters.value(trial.state.updates):
        raise fault("init must begin with counts of 0")


def _act_has_its_form(trial: Trial) -> None:
    carry = trial.agent.begin(trial.envs)
    for path, leaf in leaves(carry):
        if np.shape(leaf)[:1] != (trial.envs,):
            raise fault(
                f"begin({trial.envs}): {path} has shape {np.shape(leaf)}; the first axis is the environments"
            )
    action, after, extras = trial.act_on(trial.inputs(0))
    same_form(carry, after, "the carry of act")
    _check_action(trial.spec.action, action, trial.envs)
    if not isinstance(extras, dict):
        raise fault(f"the extras of act must be a dict, not {type(extras).__name__}")
    for path, leaf in leaves(extras):
        if np.shape(leaf)[:1] != (trial.envs,):
            raise fault(f"extras{path} has shape {np.shape(leaf)}; the first axis is the environments")
    if trial.spec.masked:
        for t in range(trial.agent.plan.rows):
            inputs = trial.inputs(t, carry)
            action, carry, _ = trial.act_on(inputs)
            _check_allowed(trial.spec.action, action, inputs.obs.mask)
    single = jax.tree.map(lambda x: x[:1], trial.inputs(0, ()))._replace(carry=trial.agent.begin(1))
    _check_action(trial.spec.action, trial.act_on(single)[0], 1)


def _check_action(space: Space, action: Any, envs: int) -> None:
    wanted = zeros(space, (envs,))
    if jax.tree.structure(action) != jax.tree.structure(wanted):
        raise fault(f"an action has the structure {jax.tree.structure(action)}, its space says {space}")
    for (path, a), w in zip(leaves(action), jax.tree.leaves(wanted), strict=True):
        kind = w.dtype.kind
        right = a.dtype == np.float32 if kind == "f" else a.dtype.kind in "iu"
        if a.shape != w.shape or not right:
            name = "float32" if kind == "f" else "integers"
            raise fault(f"the action{path} is {a.dtype}{list(a.shape)}, it should be {name}{list(w.shape)}")
    _check_bounds(space, action)


def _check_bounds(space: Space, action: Any) -> None:
    match space:
        case Tuple():
            for s, a in zip(space.spaces, action, strict=True):
                _check_bounds(s, a)
        case Dict():
            for name, s in space.spaces:
                _check_bounds(s, action[name])
        case _:
            low, high = limits(space)
            a = np.asarray(action)
            if not ((a >= low) & (a <= high)).all():
                what = "box" if isinstance(space, Box) else "space"
                raise fault(f"act leaves the action {what} {space}: {a.min()} to {a.max()}")


def _check_allowed(space: Space, action: Any, mask: np.ndarray) -> None:
    widths = choices(space)
    start = np.asarray(getattr(space, "start", 0) or 0)
    flat = (np.asarray(action).reshape(len(mask), -1).astype(np.int64)) - start
    for k, (n, end) in enumerate(zip(widths, np.cumsum(widths), strict=True)):
        if not np.take_along_axis(mask[:, end - n : end], flat[:, k : k + 1], 1).all():
            raise fault("act takes an action that the mask forbids")


def _rows_are_alone(trial: Trial) -> None:
    """Row 0 must not change when all other rows do, and the last must not when the others do."""
    last = trial.agent.plan.rows
    carry = trial.act_on(trial.inputs(0))[1]
    here = trial.inputs(0, carry)
    there = trial.inputs(last, jax.tree.map(lambda x: x + 1, carry))._replace(index=here.index + 7)
    expected = trial.act_on(here)
    for kept in (0, trial.envs - 1):
        rows = np.arange(trial.envs) == kept

        def mixed(one: Any, other: Any, rows: np.ndarray = rows) -> Any:
            return np.where(rows.reshape(-1, *(1,) * (np.ndim(one) - 1)), one, other)

        path = equal(
            *(
                jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], out)
                for out in (expected, trial.act_on(jax.tree.map(mixed, here, there)))
            )
        )
        if path:
            raise fault(
                f"a row of act changes when only other rows do (output {path}): each must depend on its own "
                "observation, carry and key alone"
            )


def _memory_ends_with_the_episode(trial: Trial) -> None:
    carry = trial.agent.begin(trial.envs)
    if not jax.tree.leaves(carry):
        return
    dirty = jax.tree.map(lambda x: (np.asarray(x) + 3).astype(np.asarray(x).dtype), carry)
    reset = trial.inputs(0, carry)._replace(first=np.ones(trial.envs, bool))
    one, other = trial.act_on(reset), trial.act_on(reset._replace(carry=dirty))
    if equal(one, other):
        raise fault("act must forget its carry where `first` is true: it depends on the episode before")


def _mode_needs_no_key(trial: Trial) -> None:
    quiet = trial.inputs(0)
    one, memory, _ = trial.act_on(quiet, explore=False)
    for t in range(1, 4):
        other, again, _ = trial.act_on(quiet._replace(key=trial.inputs(t).key), explore=False)
        if equal((one, memory), (other, again)):
            raise fault("with explore=False, act still depends on its key")
    _check_action(trial.spec.action, one, trial.envs)


_CHECKS: dict[str, Callable[[Trial], None]] = {
    "the state has its form": _state_has_its_form,
    "act has its form, in bounds and allowed": _act_has_its_form,
    "a row of act depends on that row alone": _rows_are_alone,
    "memory ends with the episode": _memory_ends_with_the_episode,
    "explore=False needs no key": _mode_needs_no_key,
    "learn keeps every form, counts steps and repeats itself": learn_has_its_form,
    "learn is batches, grads, apply and observe": learn_is_its_parts,
    "rows that only reset teach nothing": reset_rows_teach_nothing,
    "the gradients of halves add up": halves_add_up,
}
