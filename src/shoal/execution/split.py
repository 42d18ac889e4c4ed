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
from shoal.errors import ShoalError
from shoal.sharding import Mesh
from shoal.types import Agent, OnPolicy, Plan, State, Update

if TYPE_CHECKING:
    from shoal.execution.learner import Functions


class Split:
    """A mesh on these devices, for one agent. Where there are several processes, each has the same, and calls
    the same functions in the same order."""

    def __init__(self, mesh: Mesh, devices: Sequence[Any], agent: Agent) -> None:
        self._devices = sharding.on_devices(mesh, devices)
        form = jax.eval_shape(agent.init, np.zeros(2, np.uint32))
        self._state: Any = sharding.named(self._devices, sharding.specs_of(mesh, form))
        self._everywhere: Any = sharding.named(self._devices, PartitionSpec())

    def compiled(self, functions: Functions) -> Functions:
        """The functions, each compiled for all devices. A state that is given to one that returns the next is
        given away: there is no room for two."""
        state, everywhere = self._state, self._everywhere
        update = Update(state, everywhere, everywhere)

        def jitted(function: Callable[..., Any], out: Any, donate: tuple[int, ...] = ()) -> Any:
            def over_devices(*arguments: Any) -> Any:  # a function of its own: what JAX has traced of
                with sharding.over(self._devices):  # the other must not be taken for it
                    return function(*arguments)

            return jax.jit(over_devices, out_shardings=out, donate_argnums=donate)

        return functions._replace(
            init=jitted(functions.init, state),
            policy=jitted(functions.policy, everywhere),
            learn=jitted(functions.learn, update, (0,)),
            observe=jitted(functions.observe, state, (0,)),
            observe_and_learn=jitted(functions.observe_and_learn, update, (0,)),
        )

    def placed_state(self, state: State) -> State:
        """Each device gets its part of it. Leaves: whole arrays of this process, or placed ones already."""
        return jax.tree.map(_put, state, self._state)

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


def _put(x: Any, where: jax.sharding.NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(where, x.ndim):
        return x
    array = np.asarray(x)
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])


def check(mesh: Mesh, plan: Plan, envs: int) -> None:
    """Raises ShoalError, one line, where `envs` environments or a minibatch cannot be divided over "data"."""
    if mesh.data == 1:
        return
    if isinstance(plan, OnPolicy):
        rows = envs if plan.sequences else envs * plan.rows
        part, what = rows // plan.minibatches, "rows of a minibatch"
    else:
        part, what = plan.batch_size, "rows of a minibatch (batch_size)"
    for count, name in ((envs, "environments of an update"), (part, what)):
        if count % mesh.data:
            raise ShoalError(
                f"data={mesh.data} must divide the {count} {name}: choose another data=, or other envs, "
                "minibatches or batch_size"
            )
