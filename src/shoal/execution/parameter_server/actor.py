"""The Ray actor around a worker.

Neither JAX nor anything that imports it may be imported before `begin`, as for an env runner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.execution.cluster.letters import opened, sealed
from shoal.execution.cluster.luggage import Luggage, unpack
from shoal.execution.cluster.orders import Order

if TYPE_CHECKING:
    from shoal.execution.parameter_server.worker import GradientWorker
    from shoal.recipe import Experiment, Recipe


class Manner(NamedTuple):
    """How workers work. size: of a group. shards, compression, keep: see `ParameterServer`. stored,
    whole_norms: see `GradientWorker`."""

    size: int
    shards: int
    compression: str
    keep: float
    stored: bool
    whole_norms: bool


def worker_of(experiment: Experiment, manner: Manner, get: Callable[[Any], Any]) -> GradientWorker:
    """get: see `GradientWorker`."""
    from shoal.execution.parameter_server.compression import Compressor
    from shoal.execution.parameter_server.worker import GradientWorker

    return GradientWorker(
        experiment,
        manner.size,
        manner.shards,
        Compressor(manner.compression, manner.keep),
        stored=manner.stored,
        whole_norms=manner.whole_norms,
        get=get,
    )


class WorkerActor:
    """It is ready when `begin` has returned."""

    def begin(self, luggage: Luggage, seed: int, manner: Manner) -> Any:
        """luggage: the Recipe. Returns the identity of this process (see `session.process_identity`)."""
        from shoal.execution.cluster.memory import settling

        with settling():
            self._worker = self._built(unpack(luggage), seed, manner)
        from shoal.execution.cluster.session import process_identity

        return process_identity()

    def _built(self, recipe: Recipe, seed: int, manner: Manner) -> GradientWorker:
        import ray

        from shoal.compiling import one_compiles
        from shoal.runtime import configure

        configure(recipe.threads)
        from shoal.recipe import Experiment

        worker = worker_of(Experiment.of(recipe, seed), manner, ray.get)
        with one_compiles():
            worker.warm()  # a group that moves here after a loss shall not wait for the compiler
        return worker

    def collect(self, order: Order, params: Any, *what: Any) -> tuple[Any, ...]:
        report, whole, *packed = self._worker.collect(order, params, *map(opened, what))
        return sealed(report), None if whole is None else sealed(whole), *map(sealed, packed)

    def drop(self, group: int) -> None:
        self._worker.drop(group)
