"""An env runner: hosts env groups and collects their fragments, one after another.

Neither JAX nor anything that imports it may be imported before `begin`: a runner must not touch a GPU, and
JAX looks at its settings when it starts.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal.execution.cluster.letters import opened, sealed, together
from shoal.execution.cluster.luggage import Luggage, unpack
from shoal.execution.cluster.orders import Order, Report

if TYPE_CHECKING:
    from shoal.execution.cluster.parcels import Parcel
    from shoal.execution.cluster.shards import Stored
    from shoal.execution.host import Host
    from shoal.recipe import Recipe
    from shoal.types import Params, Trajectory


class Collector:
    """A Host that follows orders. What an env runner does, wherever it is.

    parcel: how fragments are divided that go to replay shards; None hands them to the learner whole.
    """

    def __init__(self, host: Host, parcel: Parcel | None = None) -> None:
        self._host, self._parcel = host, parcel
        self._lease: dict[int, int] = {}
        self._version, self._params = -1, None

    def collect(self, order: Order, params: Any) -> tuple[Report, Trajectory | Stored]:
        import jax

        group, begun = order.group, perf_counter()
        rebuilt = self._lease.get(group) != order.lease
        if rebuilt:
            self._host.open(group, order.saved)
            self._lease[group] = order.lease
        rebuild = perf_counter() - begun
        if order.version != self._version:  # put on the device once, not for every row
            self._version, self._params = order.version, jax.device_put(opened(params))
        trajectory, info, spent = self._host.collect(group, order.fragment, order.version, self._params)
        seen, handed = None, trajectory
        if self._parcel is not None:
            seen, handed = self._parcel(self._params, trajectory)
        saving = perf_counter()
        after = self._host.save(group)
        spent = {**spent, "rebuild": rebuild if rebuilt else 0.0, "save": perf_counter() - saving}
        report = Report(group, order.fragment, order.lease, order.version, after, dict(info), spent, seen)
        return report, handed

    def drop(self, group: int) -> None:
        self._lease.pop(group, None)
        self._host.drop(group)

    def close(self) -> None:
        self._host.close()


class EnvRunner:
    """The Ray actor. It is ready when `begin` has returned: what goes wrong there reaches the driver as it
    is, which the error of a constructor does not."""

    def begin(self, luggage: Luggage, seed: int, size: int, sharded: bool = False) -> Any:
        """Build the agent. luggage: the Recipe, and the form of the parameters that act. sharded: fragments
        go to replay shards. Returns the identity of this process (see `session.process_identity`)."""
        from shoal.execution.cluster.memory import settling

        with settling():
            recipe, form = unpack(luggage)
            self._collector = self._built(recipe, form, seed, size, sharded)
        from shoal.execution.cluster.session import process_identity

        return process_identity()

    def _built(self, recipe: Recipe, form: Params, seed: int, size: int, sharded: bool) -> Collector:
        from shoal.compiling import one_compiles
        from shoal.runtime import configure

        configure(recipe.threads)
        from shoal.execution.host import Host
        from shoal.recipe import Experiment

        experiment, parcel = Experiment.of(recipe, seed), None
        if sharded:
            from shoal.execution.cluster import parcels

            parcel = parcels.parcel(experiment.agent, experiment.source.spec, size)
        host = Host(experiment, size)
        self._sealed = parcel is None  # replay shards take what is theirs as it is
        with one_compiles():
            host.warm(form)  # a group that moves here after a loss shall not wait for the compiler
        return Collector(host, parcel)

    def collect(self, order: Order, *params: Any) -> tuple[Any, Any]:
        """params: as `RayFleet.publish` gave them."""
        report, trajectory = self._collector.collect(order, together(params))
        return sealed(report), sealed(trajectory) if self._sealed else trajectory

    def drop(self, group: int) -> None:
        self._collector.drop(group)
