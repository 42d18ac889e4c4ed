"""A learner's functions over the devices of a mesh: what lies where, before and after each call.

The state is placed by the mesh's rules and stays so; experience is divided by environments or by rows; keys,
metrics, priorities and what acts are on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from shoal import sharding
from shoal.compiling import one_blas_thread
from shoal.errors import ShoalError
from shoal.mesh import Mesh
from shoal.types import Agent, Key, OnPolicy, Plan, State, Update

if TYPE_CHECKING:
    from shoal.execution.learner import Functions


AT_ONCE = 32 << 20  # bytes of parameters that are made in one program, unless that makes more programs than
MOST_TURNS = 8


class Split:
    """A mesh on these devices, for one agent. Where there are several processes, each has the same, and calls
    the same functions in the same order.

    state: where each leaf of a State lies. everywhere: a copy on every device. Raises ShoalError, one line,
    where the devices are too few or a rule does not fit the agent's model.
    """

    def __init__(self, mesh: Mesh, devices: Sequence[Any], agent: Agent) -> None:
        self._devices = sharding.on_devices(mesh, devices)
        form = self._form = jax.eval_shape(agent.init, np.zeros(2, np.uint32))
        sharding.check_rules(mesh, form)
        self.state: Any = sharding.named(self._devices, sharding.specs_of(mesh, form))
        self.everywhere: Any = sharding.named(self._devices, PartitionSpec())

    def compiled(self, functions: Functions) -> Functions:
        """The functions, each compiled for all devices. A state that is given to one that returns the next is
        given away: there is no room for two."""
        update = Update(self.state, self.everywhere, self.everywhere)
        return functions._replace(
            init=self._made_in_turn(functions.init),
            policy=self.jit(functions.policy, self.everywhere),
            learn=self.jit(functions.learn, update, (0,)),
            observe=self.jit(functions.observe, self.state, (0,)),
            observe_and_learn=self.jit(functions.observe_and_learn, update, (0,)),
        )

    def _made_in_turn(self, init: Callable[[Key], State]) -> Callable[[Key], State]:
        """`init`, in a large model a few leaves at a time: an orthogonal matrix is whole on each device while
        it is made, and all at once they would be the whole model and more. (An optimizer begins as zeros.)"""
        structure, where = jax.tree.structure(self._form), jax.tree.leaves(self.state)
        weighed = self._form._replace(opt=jax.tree.map(lambda x: np.zeros(0), self._form.opt))
        sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(weighed)]
        turns = _in_turns(sizes)
        some = lambda turn: lambda key: [jax.tree.leaves(init(key))[i] for i in turn]  # noqa: E731
        programs = [self.jit(some(turn), [where[i] for i in turn]) for turn in turns]

        def made(key: Key) -> State:
            compiled = [make.lower(key).compile() for make in programs]
            with one_blas_thread():
                return structure.unflatten([x for run in compiled for x in jax.block_until_ready(run(key))])

        return made

    def jit(
        self, function: Callable[..., Any], gives: Any, donated: tuple[int, ...] = (), takes: Any = None
    ) -> Any:
        """The function, compiled for all devices. gives: shardings of its results. takes: those
        of its arguments; None: wherever they lie."""

        def over_devices(*arguments: Any) -> Any:  # a function of its own: what JAX has traced of
            with sharding.over(self._devices):  # the other must not be taken for it
                return function(*arguments)

        where = {} if takes is None else {"in_shardings": takes}
        return jax.jit(over_devices, out_shardings=gives, donate_argnums=donated, **where)

    def over_data(self, axis: int) -> Any:
        """Arrays whose `axis` counts environments, each device with its own."""
        return sharding.named(self._devices, PartitionSpec(*(None,) * axis, sharding.DATA))

    def placed_state(self, state: State) -> State:
        """Each device gets its part of it. Leaves: whole arrays of this process, or placed ones already."""
        return jax.tree.map(_put, state, self.state)

    def placed(self, experience: Any) -> Any:
        """Each device gets its part. experience: a Trajectory or Draws, NumPy leaves."""
        shardings = sharding.named(self._devices, sharding.experience_specs(experience))
        return jax.tree.map(_put, experience, shardings)

    def form(self, experience: Any) -> Any:
        """The experience's shapes and dtypes, placed."""
        shardings = sharding.named(self._devices, sharding.experience_specs(experience))
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), experience, shardings
        )

    def here(self, tree: Any) -> Any:
        """What is on every device, as arrays of one device of this process."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def _in_turns(sizes: Sequence[int]) -> list[range]:
    """Numbers of leaves that are made at a time: at most MOST_TURNS runs of about the same bytes."""
    enough = max(AT_ONCE, sum(sizes) // MOST_TURNS)
    turns, begun, held = [], 0, 0
    for i, size in enumerate(sizes):
        held += size
        if held >= enough or i == len(sizes) - 1:
            turns.append(range(begun, i + 1))
            begun, held = i + 1, 0
    return turns


def _put(x: Any, where: jax.sharding.NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(where, x.ndim):
        return x
    array = np.asarray(x)
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])


def check(mesh: Mesh, plan: Plan, envs: int, groups: int = 1) -> None:
    """Raises ShoalError, one line, where the environments of an update or of a group (in a compiled program;
    else there is one) or a minibatch cannot be divided over "data"."""
    rows, what = minibatch_rows(plan, envs)
    other = "minibatches" if isinstance(plan, OnPolicy) else "batch_size"
    part = (rows, f"{what} of a minibatch", f"other {other}")
    each = (envs // groups, "environments of a group", "other envs or groups")
    for count, what, remedy in ((envs, "environments of an update", "other envs"), each, part):
        if count % mesh.data:
            raise ShoalError(
                f"data={mesh.data} must divide the {count} {what}: choose another data=, or {remedy}"
            )


def minibatch_rows(plan: Plan, envs: int) -> tuple[int, str]:
    """How many rows a minibatch has of `envs` environments, and what a row is."""
    if isinstance(plan, OnPolicy):
        rows = envs if plan.sequences else envs * plan.rows
        return rows // plan.minibatches, "environments' fragments" if plan.sequences else "rows"
    return plan.batch_size, "sequences" if plan.sequence else "transitions"


def split_here(mesh: Mesh, agent: Agent, envs: int, groups: int = 1) -> Split:
    """A mesh of this process's devices, for an agent that learns from so many environments. Raises
    ShoalError, one line, where it does not fit."""
    check(mesh, agent.plan, envs, groups)
    return Split(mesh, jax.local_devices(), agent)
