"""A fragment on its way into replay shards: what the learner must see of it, and what is stored.

    runner: Trajectory -> (leaves for the learner, Stored)      learner: leaves -> agent.observe

The learner sees rewards and episode beginnings, and whatever else `agent.observe` looks at, which for most
algorithms is nothing. All else goes to the shard alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shoal.errors import ShoalError
from shoal.execution.cluster.shards import Stored
from shoal.execution.unroll import fragment_form
from shoal.keys import key_for
from shoal.types import Agent, EnvSpec, Params, Replay, Trajectory

Seen = list[Any]  # the leaves of a Trajectory in JAX's order; None where the learner need not see it
Parcel = Callable[[Params, Trajectory], tuple[Seen, Stored]]


def form_of(agent: Agent, spec: EnvSpec, size: int) -> Trajectory:
    """The shapes and dtypes of a fragment of one group."""
    return fragment_form(agent, spec, size)


def kept(plan: Replay, trajectory: Trajectory) -> Trajectory:
    """What a replay stores of a fragment (or of its form)."""
    if "raw_action" not in trajectory.extras:
        raise ShoalError('a replay stores extras["raw_action"], which this policy\'s `act` does not give')
    extras = {"raw_action": trajectory.extras["raw_action"]}
    carry = trajectory.carry if plan.sequence else ()
    return trajectory._replace(action=(), version=(), extras=extras, carry=carry)


def parcel(agent: Agent, spec: EnvSpec, size: int) -> Parcel:
    """How a runner divides its fragments: (acting parameters, Trajectory) -> (Seen, Stored), NumPy leaves.

    First priorities are found here, where the plan is prioritised and the agent has some.
    """
    plan, form = agent.plan, form_of(agent, spec, size)
    assert isinstance(plan, Replay)
    seen = looked_at(agent, form)
    priority = None
    if plan.prioritized and not plan.sequence and agent.priority is not None:
        priority = jax.jit(agent.priority)

    def divide(params: Params, trajectory: Trajectory) -> tuple[Seen, Stored]:
        leaves = [x if wanted else None for x, wanted in zip(jax.tree.leaves(trajectory), seen, strict=True)]
        first = None if priority is None else np.asarray(priority(params, trajectory))
        return leaves, Stored(kept(plan, trajectory), first)

    return divide


def view(form: Trajectory, seen: Seen) -> Trajectory:
    """What the learner sees, as a Trajectory with None for the rest."""
    return jax.tree.unflatten(jax.tree.structure(form), seen)


def filled(form: Trajectory, seen: Seen) -> Trajectory:
    """What the learner sees, with zeros that take no memory for the rest."""
    shapes, structure = jax.tree.flatten(form)
    nothing = lambda f: np.broadcast_to(np.zeros((), f.dtype), f.shape)  # noqa: E731
    full = [nothing(f) if x is None else x for x, f in zip(seen, shapes, strict=True)]
    return jax.tree.unflatten(structure, full)


def looked_at(agent: Agent, form: Trajectory) -> list[bool]:
    """For each leaf of a Trajectory, whether the learner must see it: rewards, beginnings, and all on which
    what `agent.observe` gives may depend."""
    state = jax.eval_shape(agent.init, key_for(0, "form"))
    program = jax.make_jaxpr(agent.observe)(state, form).jaxpr
    used = {id(v) for equation in program.eqns for v in equation.invars} | {id(v) for v in program.outvars}
    leaves, structure = jax.tree.flatten(form)
    observed = [id(v) in used for v in program.invars[-len(leaves) :]]
    always = jax.tree.unflatten(structure, range(len(leaves)))
    return [use or i in (always.reward, always.first) for i, use in enumerate(observed)]
