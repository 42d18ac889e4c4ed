"""A worker: hosts env groups, and computes gradients with the parameters that came with the order.

    slices of all shards -> State -> fragment -> minibatches -> gradient -> a part for each shard

A task says what an order is for. A worker keeps nothing that cannot be made again: the minibatches of a
fragment (or of an update) that is under way are made again where an order finds them missing, from the state
of the group before that fragment, or from what all workers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import norms
from shoal.execution.cluster.letters import opened
from shoal.execution.cluster.orders import Order, Report
from shoal.execution.cluster.parcels import Seen, form_of, looked_at, parcel
from shoal.execution.cluster.runner import Collector
from shoal.execution.host import Host
from shoal.execution.parameter_server.compression import Compressor, Packed, bytes_of, unpacked
from shoal.execution.parameter_server.shard import Push
from shoal.execution.parameter_server.shares import Shares, Slice
from shoal.keys import fold, key_for
from shoal.memo import remembered
from shoal.recipe import Experiment
from shoal.sgd import rows_of, with_norm
from shoal.types import Agent, Array, Batch, Draws, Gradient, Key, Params, State


class Own(NamedTuple):
    """The gradient of a minibatch of the group's fragment; the fragment is collected for the first of them.
    last: the group goes on after it."""

    fragment: int
    minibatch: int
    last: bool


class Collect(NamedTuple):
    """A fragment, for a replay."""

    fragment: int


class Given(NamedTuple):
    """The gradient of a minibatch that a replay has drawn."""

    draws: Draws
    key: Key


class Part(NamedTuple):
    """The gradient of a part of a minibatch, of an update that all workers share. update: its number. source:
    a handle of its `Source`; it is fetched by a worker that has not made the minibatches."""

    update: int
    minibatch: int
    part: int
    parts: int
    source: tuple[Any, ...]


class Source(NamedTuple):
    """What an update's minibatches are made of: handles of experience and Slices."""

    experience: Any
    slices: tuple[Any, ...]
    key: Key


Task = Own | Collect | Given | Part | None  # None: a fragment, with the parameters that come with the order


class Computed(NamedTuple):
    """What a gradient order gives beside the gradient (as `Report.seen`). norms: that `apply` takes of it.
    priorities: of drawn rows. seen: of a fragment, what shards and driver must see, with its last gradient.
    bytes: that travel."""

    push: Push
    norms: list[float]
    priorities: np.ndarray | None
    seen: Seen | None
    bytes: int


class _Kept(NamedTuple):
    """A group's state, as the driver knows it too."""

    lease: int
    saved: Any


class _Fragment(NamedTuple):
    """A fragment under way. before, after: the group's state."""

    number: int
    lease: int
    batch: Batch
    before: Any
    after: Any
    seen: Seen
    info: dict[str, float]


class GradientWorker:
    """Follows orders, as a `Collector` does; beside the report it gives a fragment or None, and a gradient's
    part for each shard, or None.

    stored: fragments go into a replay by group (see `parcels`). whole_norms: gradients come with the norms
    that `apply` takes. get: fetches what a handle within a task is for.
    """

    def __init__(
        self,
        experiment: Experiment,
        size: int,
        shards: int,
        compressor: Compressor,
        *,
        stored: bool,
        whole_norms: bool,
        get: Callable[[Any], Any],
    ) -> None:
        agent, spec = experiment.agent, experiment.source.spec
        self._host = Host(experiment, size)
        self._collector = Collector(self._host, parcel(agent, spec, size) if stored else None)
        self._shares, self._do = Shares.of(agent, shards), functions_of(agent, shards)
        self._pack, self._get, self._whole_norms = compressor, get, whole_norms
        self._looked_at = looked_at(agent, form_of(agent, spec, size))
        self._key = key_for(experiment.seed, "learn")
        self._version, self._state = -1, None
        self._kept: dict[int, _Kept] = {}
        self._under_way: dict[int, _Fragment] = {}
        self._update: tuple[int, Batch, Key] | None = None

    def warm(self) -> None:
        """Compile what acts."""
        self._host.warm()

    def collect(
        self, order: Order, params: Any, task: Any = None, *slices: Any
    ) -> tuple[Report, Any, *tuple[Packed | None, ...]]:
        """task: a Task. It and the slices may be `sealed`."""
        # A group that has come here may collect long after: only its first order brings its state.
        kept = self._kept.get(order.group)
        if kept is None or kept.lease != order.lease:
            kept = _Kept(order.lease, order.saved)
        report, *parts = self._follow(order._replace(saved=kept.saved), params, opened(task), slices)
        self._kept[order.group] = kept._replace(saved=report.after)
        return report, *parts

    def _follow(self, order: Order, params: Any, task: Task, slices: Sequence[Any]) -> tuple[Any, ...]:
        nothing = (None,) * self._shares.count
        if task is None:
            return *self._collector.collect(order, params), *nothing
        state = self._received([opened(one) for one in slices])
        if isinstance(task, Collect):
            collect = order._replace(fragment=task.fragment)
            report, stored = self._collector.collect(collect, self._do.policy(state))
            return report._replace(fragment=order.fragment), stored, *nothing
        if isinstance(task, Own):
            report, packed = self._own(order, task, state)
            return report, None, *packed
        begun = perf_counter()
        if isinstance(task, Given):
            batch = self._do.batches(state, task.draws, fold(task.key, 0))
            computed, packed = self._computed(state, batch, 0, fold(task.key, 1, 0))
        else:
            batch, key = self._shared(task)
            key = fold(key, 1, task.minibatch)
            computed, packed = self._computed(state, batch, task.minibatch, key, task.part, task.parts)
        spent = {"gradient": perf_counter() - begun}
        return self._report(order, order.saved, computed, spent), None, *packed

    def drop(self, group: int) -> None:
        self._kept.pop(group, None)
        self._under_way.pop(group, None)
        self._collector.drop(group)

    def close(self) -> None:
        self._collector.close()

    # -- gradients ---------------------------------------------------------------------------------------

    def _own(self, order: Order, task: Own, state: State) -> tuple[Report, list[Packed]]:
        spent, fragment = {}, self._under_way.get(order.group)
        if fragment is None or (fragment.number, fragment.lease) != (task.fragment, order.lease):
            fragment, spent = self._collected(order, task.fragment, state)
        begun = perf_counter()
        key = fold(self._key, order.group, task.fragment)
        computed, packed = self._computed(state, fragment.batch, task.minibatch, fold(key, 1, task.minibatch))
        after = fragment.before
        if task.last:
            computed, after = computed._replace(seen=fragment.seen), fragment.after
        spent["gradient"] = perf_counter() - begun
        report = self._report(order, after, computed, spent)
        return report._replace(info=fragment.info if task.last else {}), packed

    def _collected(self, order: Order, number: int, state: State) -> tuple[_Fragment, dict[str, float]]:
        report, trajectory = self._collector.collect(order._replace(fragment=number), self._do.policy(state))
        begun = perf_counter()
        batch = self._do.batches(state, trajectory, fold(self._key, order.group, number, 0))
        leaves = jax.tree.leaves(trajectory)
        seen = [x if wanted else None for x, wanted in zip(leaves, self._looked_at, strict=True)]
        fragment = _Fragment(number, order.lease, batch, order.saved, report.after, seen, report.info)
        self._under_way[order.group] = fragment
        return fragment, {**report.spent, "batches": perf_counter() - begun}

    def _shared(self, task: Part) -> tuple[Batch, Key]:
        """The minibatches of an update, made once."""
        if self._update is None or self._update[0] != task.update:
            source: Source = self._get(task.source[0])
            state = jax.device_put(self._shares.received([opened(self._get(one)) for one in source.slices]))
            experience = opened(self._get(source.experience))
            self._update = task.update, self._do.batches(state, experience, fold(source.key, 0)), source.key
        return self._update[1], self._update[2]

    def _computed(
        self, state: State, batch: Batch, minibatch: int, key: Key, part: int = 0, parts: int = 1
    ) -> tuple[Computed, list[Packed]]:
        vectors, push, priorities = self._do.gradient(
            state, batch, np.int32(minibatch), key, np.int32(part), parts=parts
        )
        packed = self._pack([np.asarray(vector) for vector in vectors])
        push = jax.tree.map(np.asarray, push)
        taken = []
        if self._whole_norms:  # of what arrives
            taken = [float(x) for x in self._do.norms(state, [unpacked(one) for one in packed], push)]
        if priorities is not None:
            priorities = np.asarray(priorities)
        return Computed(push, taken, priorities, None, sum(map(bytes_of, packed))), packed

    def _received(self, slices: Sequence[Slice]) -> State:
        version = slices[0].version
        if version != self._version:
            self._version, self._state = version, jax.device_put(self._shares.received(slices))
        assert self._state is not None
        return self._state

    def _report(self, order: Order, after: Any, computed: Computed, spent: dict[str, float]) -> Report:
        return Report(order.group, order.fragment, order.lease, order.version, after, {}, spent, computed)


class Functions(NamedTuple):
    """What a worker computes, compiled: see `gradient_of` and `norms_of`."""

    policy: Callable[[State], Params]
    batches: Callable[[State, Any, Key], Batch]
    gradient: Callable[..., tuple[list[Array], Push, Array | None]]
    norms: Callable[[State, list[Array], Push], list[Array]]


@remembered
def functions_of(agent: Agent, shards: int) -> Functions:
    shares = Shares.of(agent, shards)
    gradient = jax.jit(gradient_of(agent, shares), static_argnames="parts")
    return Functions(
        jax.jit(agent.policy), jax.jit(agent.batches), gradient, jax.jit(norms_of(agent, shares))
    )


def gradient_of(agent: Agent, shares: Shares) -> Callable[..., tuple[list[Array], Push, Array | None]]:
    """(state, batch, minibatch, key, part, parts) -> (vectors by shard, Push, priorities), of one of `parts`
    equal parts of a minibatch's rows."""

    def compute(state: State, batch: Batch, minibatch: Array, key: Key, part: Array, parts: int) -> Any:
        rows = rows_of(batch, minibatch)
        if parts > 1:

            def share(x: Array) -> Array:
                size = x.shape[0] // parts
                return jax.lax.dynamic_slice_in_dim(x, part * size, size)

            rows = jax.tree.map(share, rows)
        gradient = with_norm(agent.grads(state, rows, key))
        push = Push(gradient.weight, gradient.metrics)
        return shares.vectors(gradient.sum), push, gradient.priorities

    return compute


def norms_of(agent: Agent, shares: Shares) -> Callable[[State, list[Array], Push], list[Array]]:
    """(state without its optimizer's, vectors by shard, Push) -> the norms that `apply` takes."""

    def compute(state: State, vectors: list[Array], push: Push) -> list[Array]:
        opt = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shares.form.opt)
        with norms.recorded() as squares:
            agent.apply(state._replace(opt=opt), Gradient(shares.whole(vectors), *push))
        return [jnp.sqrt(square) for square in squares]

    return compute
