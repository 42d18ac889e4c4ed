"""The learner whose state lies with parameter shards, and whose gradients are computed by workers.

    experience, once into the object store -> minibatch by minibatch: every group's worker computes the
    gradient of an equal part of its rows -> shards add the parts up, in order, and make the step

The parts are as many as there are groups, so that the bits do not depend on how many workers there are, or on
who computed what. To rounding they are those of a learner that has the whole minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import jax
import numpy as np

from shoal.errors import ShoalError
from shoal.execution.cluster.letters import sealed
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.parcels import Seen, looked_at
from shoal.execution.cluster.pool import Pool
from shoal.execution.cluster.synchronous import WAIT_SECONDS
from shoal.execution.learner import Learned, News
from shoal.execution.parameter_server.record import Mark, Work
from shoal.execution.parameter_server.servers import Servers
from shoal.execution.parameter_server.shard import Step
from shoal.execution.parameter_server.shares import Shares
from shoal.execution.parameter_server.tasks import Tasks
from shoal.execution.parameter_server.worker import Computed, Part, Source
from shoal.sgd import NORM
from shoal.types import Agent, Batch, Draws, Key, OnPolicy, Params, State, Trajectory


@dataclass
class _Update:
    """An update, or an observation, under way. key: None of an observation. before: where the servers stood.
    source: a handle, once the experience is put. at_hand: a minibatch, and the gradients of its parts. found:
    of each minibatch with which a step was made, what was computed and the norm of its gradients' sum; none
    where it is one part. undone: the servers are to stand again where they stood."""

    key: np.ndarray | None
    number: int
    before: Mark
    source: Any = None
    at_hand: tuple[int, list[Delivery]] = (-1, [])
    found: list[tuple[list[Computed], list[float]]] = field(default_factory=list)
    undone: bool = False


class ServerLearner:
    """form: of the fragments of an iteration. groups: how many, and so parts of a minibatch. An asynchronous
    run takes steps by itself, and needs of this what a state, checkpoints and evaluations need."""

    repeats = True

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
        self._answered: tuple[np.ndarray, Learned] | None = None  # of the last update
        self._told = 0.0  # seconds of the shards that were told
        self.settle: Callable[[], None] = lambda: None  # what comes before the state is looked at

    @property
    def state(self) -> State:
        """Between updates: of one that was interrupted it has nothing, for who goes on from here makes it."""
        self.settle()
        self._undo()
        return self._servers.state

    @state.setter
    def state(self, state: State) -> None:
        self._update = self._answered = None
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
        return self._learned(None, experience, key)

    def observe(self, trajectory: Trajectory) -> None:
        """Where that was interrupted, and is called again, it goes on."""
        update = self._under_way(None)
        self._observe(trajectory, update)
        self._update = None

    def observe_and_learn(self, trajectory: Trajectory, draws: Draws, key: Key) -> Learned:
        return self._learned(trajectory, draws, key)

    def _learned(self, observed: Trajectory | None, experience: Any, key: Key) -> Learned:
        if self._answered is not None and np.array_equal(self._answered[0], np.asarray(key)):
            return self._answered[1]  # the interruption came when all was done
        update = self._under_way(np.asarray(key))
        if observed is not None:
            self._observe(observed, update)
        seen = self._seen(experience) if isinstance(self._agent.plan, OnPolicy) else None
        total, rows = minibatches_of(self._agent, self._form, experience)
        steps = int(experience.count) if isinstance(experience, Draws) else total
        if update.source is None:
            put = self._servers.put
            update.source = put(Source(put(sealed(experience)), self._servers.slices, np.asarray(key)))
        first = update.before.version + (observed is not None)
        for k in range(len(update.found), steps):
            if update.at_hand[0] != k:
                update.at_hand = k, self._computed(update.number, k, update.source)
            parts = update.at_hand[1]
            computed: list[Computed] = [part.report.seen for part in parts]
            step = Step(tuple(one.push for one in computed), seen=seen if k + 1 == steps else None)
            work = Work(step, tuple(part.trajectory for part in parts))
            update.found.append((computed, self._servers.advance([work], first + k)))
        means = _means(update.found)
        learned = Learned(means, _priorities([computed for computed, _ in update.found], total, rows))
        self._answered, self._update = (np.asarray(key), learned), None
        return learned

    def _observe(self, trajectory: Trajectory, update: _Update) -> None:
        """The first step of an update, if it is not made."""
        if update.source is None:
            self._servers.advance([Work(Step((), seen=self._seen(trajectory)))], update.before.version)

    def news(self) -> News:
        """Of the shards. apply: seconds until steps were made."""
        spent, self._told = self._servers.spent - self._told, self._servers.spent
        return News({"apply": spent, **self._servers.figures()}, self._servers.take_events())

    def close(self) -> None:
        pass  # what is behind it ends with the run

    def _under_way(self, key: np.ndarray | None) -> _Update:
        """The update that was interrupted, if it is this one; else a new one."""
        update = self._update
        if update is not None and update.undone:
            self._undo()
        elif update is not None and np.array_equal(update.key, key):  # type: ignore[arg-type]
            return update
        self._update = _Update(key, next(self._updates), self._servers.mark())
        return self._update

    def _undo(self) -> None:
        """Stand where nothing of an interrupted update is made. Interrupted itself, it is done again."""
        if self._update is not None:
            self._update.undone = True
            self._servers.back(self._update.before)
            self._update = None

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


def _means(found: list[tuple[list[Computed], list[float]]]) -> dict[str, np.ndarray]:
    """Metrics of all rows, and what a gradient took on its way. Norms that are told count instead of those of
    the parts."""
    computed = [one for of_step, _ in found for one in of_step]
    weight = max(sum(float(one.push.weight) for one in computed), 1e-8)
    names = computed[0].push.metrics if computed else ()
    sums = {name: sum(float(one.push.metrics[name]) for one in computed) for name in names}
    norms = [norm for _, of_step in found for norm in of_step]
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
