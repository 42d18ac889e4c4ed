"""The learner whose state lies with parameter shards, and whose gradients are computed by workers.

    experience, once into the object store -> minibatch by minibatch: every group's worker computes the
    gradient of an equal part of its rows -> shards add the parts up, in order, and make the step

The parts are as many as there are groups, so that the bits do not depend on how many workers there are, or on
who computed what. To rounding they are those of a learner that has the whole minibatch.
"""

from __future__ import annotations

from itertools import count
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.errors import ShoalError
from shoal.execution.cluster.letters import sealed
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.parcels import Seen, looked_at
from shoal.execution.cluster.pool import Pool
from shoal.execution.cluster.synchronous import WAIT_SECONDS
from shoal.execution.learner import Learned, News
from shoal.execution.parameter_server.servers import Servers, Work
from shoal.execution.parameter_server.shard import Step
from shoal.execution.parameter_server.shares import Shares
from shoal.execution.parameter_server.tasks import Tasks
from shoal.execution.parameter_server.worker import Computed, Part, Source
from shoal.sgd import NORM
from shoal.types import Agent, Batch, Draws, Key, OnPolicy, Params, State, Trajectory


class _Update(NamedTuple):
    """An update under way. source: a handle. found: of each minibatch with which a step was made. norms: of
    their gradients' sums; none where a minibatch is one part."""

    key: np.ndarray
    number: int
    source: Any
    found: list[list[Computed]]
    norms: list[float]


class ServerLearner:
    """form: of the fragments of an iteration. groups: how many, and so parts of a minibatch. An asynchronous
    run takes steps by itself, and needs of this what a state, checkpoints and evaluations need."""

    def __init__(
        self,
        agent: Agent,
        shares: Shares,
        servers: Servers,
        pool: Pool,
        tasks: Tasks,
        form: Trajectory,
        groups: int,
    ) -> None:
        self._agent, self._servers, self._pool, self._tasks = agent, servers, pool, tasks
        self._groups = range(groups)
        self._policy = jax.jit(agent.policy)
        self._looked_at = looked_at(agent, form)
        self._form = shares.form._replace(opt=())
        self._updates, self._numbers = count(), count(1)
        self._update: _Update | None = None
        self._told = 0.0  # seconds of the shards that were told

    @property
    def state(self) -> State:
        return self._servers.state

    @state.setter
    def state(self, state: State) -> None:
        self._servers.load(jax.device_get(state))

    @property
    def env_steps(self) -> int:
        return self._servers.env_steps

    def acting(self) -> Params:
        return self._policy(self._servers.published())

    def warm(self, form: Trajectory) -> None:
        pass  # workers and shards compile, each for itself, when they come to it

    def learn(self, experience: Any, key: Key) -> Learned:
        """Where that was interrupted, and is called again with the same key, it goes on."""
        seen = self._seen(experience) if isinstance(self._agent.plan, OnPolicy) else None
        total, rows = minibatches_of(self._agent, self._form, experience)
        steps = int(experience.count) if isinstance(experience, Draws) else total
        if not self._is_under_way(key):
            put = self._servers.put
            source = put(Source(put(sealed(experience)), self._servers.slices, np.asarray(key)))
            self._update = _Update(np.asarray(key), next(self._updates), source, [], [])
        assert self._update is not None
        _, update, source, found, norms = self._update
        for k in range(len(found), steps):
            parts = self._computed(update, k, source)
            computed: list[Computed] = [part.report.seen for part in parts]
            step = Step(tuple(one.push for one in computed), seen=seen if k + 1 == steps else None)
            norms += self._servers.advance([Work(step, tuple(part.trajectory for part in parts))])
            found.append(computed)
        self._update = None
        means = _means([one for step in found for one in step], norms)
        return Learned(means, _priorities(found, total, rows))

    def observe(self, trajectory: Trajectory) -> None:
        self._servers.advance([Work(Step((), seen=self._seen(trajectory)))])

    def observe_and_learn(self, trajectory: Trajectory, draws: Draws, key: Key) -> Learned:
        if not self._is_under_way(key):
            self.observe(trajectory)
        return self.learn(draws, key)

    def news(self) -> News:
        """Of the shards. apply: seconds until steps were made."""
        spent, self._told = self._servers.spent - self._told, self._servers.spent
        return News({"apply": spent, **self._servers.figures()}, self._servers.take_events())

    def close(self) -> None:
        pass  # what is behind it ends with the run

    def _is_under_way(self, key: Key) -> bool:
        return self._update is not None and np.array_equal(self._update.key, np.asarray(key))

    def _computed(self, update: int, minibatch: int, source: Any) -> list[Delivery]:
        """The gradients of all parts of a minibatch, in order."""
        numbers = {g: -next(self._numbers) for g in self._groups}  # fragments have the others
        for g, number in numbers.items():
            self._tasks.put(g, number, Part(update, minibatch, g, len(self._groups), (source,)))
            self._pool.order(g, number)
        arrived: dict[int, Delivery] = {}
        while len(arrived) < len(self._groups):
            for delivery in self._pool.deliveries(WAIT_SECONDS):
                group, number = delivery.report.group, delivery.report.fragment
                self._tasks.take(group, number)
                if number == numbers[group]:  # else it was ordered before an interruption
                    arrived[group] = delivery
        return [arrived[g] for g in self._groups]

    def _seen(self, trajectory: Trajectory) -> Seen:
        leaves = jax.tree.leaves(trajectory)
        return [np.asarray(x) if wanted else None for x, wanted in zip(leaves, self._looked_at, strict=True)]


def minibatches_of(agent: Agent, form: State, experience: Any) -> tuple[int, int]:
    """(how many minibatches an update has, how many rows each of them). form: of a State less its
    optimizer's."""
    batch: Batch = jax.eval_shape(agent.batches, form, experience, np.zeros(2, np.uint32))
    shape = jax.tree.leaves(batch.rows if batch.index is None else batch.index)[0].shape
    return shape[0], shape[1]


def check_parts(rows: int, groups: int) -> None:
    """Raises ShoalError unless minibatches of so many rows can be divided by groups."""
    if rows % groups:
        raise ShoalError(
            f"with mode='sync' every group has an equal part of each minibatch, and groups={groups} does not "
            f"divide its {rows} rows: choose other groups, envs, minibatches or batch_size"
        )


def _means(computed: list[Computed], norms: list[float]) -> dict[str, np.ndarray]:
    """Metrics of all rows, and what a gradient took on its way. norms: instead of those of the parts."""
    weight = max(sum(float(one.push.weight) for one in computed), 1e-8)
    names = computed[0].push.metrics if computed else ()
    sums = {name: sum(float(one.push.metrics[name]) for one in computed) for name in names}
    if norms and NORM in sums:
        sums[NORM] = sum(norms)
    means = {name: value / weight for name, value in sums.items()}
    means["gradients/bytes"] = sum(one.bytes for one in computed) / max(len(computed), 1)
    return {name: np.array(value, np.float32) for name, value in means.items()}


def _priorities(found: list[list[Computed]], total: int, rows: int) -> np.ndarray | None:
    """[K, N], 0 for minibatches that were not used; None without any."""
    if not found or found[0][0].priorities is None:
        return None
    priorities = np.zeros((total, rows), np.float32)
    for k, parts in enumerate(found):
        priorities[k] = np.concatenate([part.priorities for part in parts if part.priorities is not None])
    return priorities
