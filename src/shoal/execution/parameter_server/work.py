"""What an asynchronous run has a group do next, and what becomes of what it did.

OwnWork      fragment -> gradient of each of its minibatches -> the next fragment         (A3C)
ReplayWork   fragment -> replay -> gradient of each minibatch that is due -> the next      (Gorila's DQN)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from shoal import replay
from shoal.checkpoint import restore
from shoal.errors import ShoalError
from shoal.execution import Fragment
from shoal.execution.cluster.draws import Draw
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.parcels import Seen, form_of, view
from shoal.execution.cluster.sharded import shards_of
from shoal.execution.learning import LearnKeys, learning_of
from shoal.execution.parameter_server.learner import minibatches_of
from shoal.execution.parameter_server.record import Work
from shoal.execution.parameter_server.shard import Step
from shoal.execution.parameter_server.worker import Collect, Computed, Given, Own, Task
from shoal.keys import fold
from shoal.recipe import Experiment
from shoal.types import Draws, OnPolicy, Replay


class Done(NamedTuple):
    """What an order came to. work: for the shards. computed: of a gradient; None: there was none. fragment:
    that is done with; None: none yet."""

    work: Work
    computed: Computed | None
    fragment: Fragment | None


class Plan(Protocol):
    """Says what each group does."""

    def clock(self, group: int) -> int:
        """Fragments that the group is done with."""
        ...

    def begins(self, group: int) -> bool:
        """Whether the group's next task begins a fragment."""
        ...

    def next(self, group: int) -> Task:
        """What the group does next, from now on its task until `take`."""
        ...

    def take(self, group: int, task: Task, delivery: Delivery) -> Done: ...

    def metrics(self) -> dict[str, Any]: ...

    def save(self) -> dict[str, Any]: ...

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None: ...


def plan_of(experiment: Experiment, groups: int, size: int) -> Plan:
    """Raises ShoalError where fragments of one group of `size` environments cannot be learned from."""
    if isinstance(experiment.agent.plan, OnPolicy):
        return OwnWork(experiment, groups, size)
    return ReplayWork(experiment, groups, size)


class OwnWork:
    """Each gradient is of its group's own fragment."""

    def __init__(self, experiment: Experiment, groups: int, size: int) -> None:
        agent, spec = experiment.agent, experiment.source.spec
        learning_of(agent, spec, size, host=True)  # raises where a group's rows cannot be divided
        self._form = form_of(agent, spec, size)
        form = jax.eval_shape(agent.init, np.zeros(2, np.uint32))._replace(opt=())
        self._each, _ = minibatches_of(agent, form, self._form)
        self._at = np.zeros((groups, 2), np.int64)  # of each group: fragment, minibatch

    def clock(self, group: int) -> int:
        return int(self._at[group, 0])

    def begins(self, group: int) -> bool:
        return not self._at[group, 1]

    def next(self, group: int) -> Task:
        fragment, minibatch = map(int, self._at[group])
        return Own(fragment, minibatch, minibatch + 1 == self._each)

    def take(self, group: int, task: Task, delivery: Delivery) -> Done:
        assert isinstance(task, Own)
        computed: Computed = delivery.report.seen
        work = Work(Step((computed.push,), computed.norms, computed.seen), (delivery.trajectory,))
        if not task.last:
            self._at[group, 1] += 1
            return Done(work, computed, None)
        self._at[group] = task.fragment + 1, 0
        assert computed.seen is not None
        return Done(work, computed, _fragment(self._form, group, computed.seen))

    def metrics(self) -> dict[str, Any]:
        return {}

    def save(self) -> dict[str, Any]:
        return {"at": self._at.copy()}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._at = np.array(saved[f"{prefix}/at"], np.int64)


class ReplayWork:
    """Fragments go into the driver's replay, a ring for each group. As many gradient steps as a fragment has
    earned are its group's next tasks, of minibatches that are drawn from all rings when their turn comes."""

    def __init__(self, experiment: Experiment, groups: int, size: int) -> None:
        agent = experiment.agent
        assert isinstance(agent.plan, Replay)
        self._agent, self._plan = agent, agent.plan
        self._form = form_of(agent, experiment.source.spec, size)
        self._replay = shards_of(experiment, groups, size, 1, on_ray=False)
        self._keys = LearnKeys.of(experiment.seed)
        self._credit = replay.begin(agent.plan)
        self._fragments = np.zeros(groups, np.int64)  # that each group has given
        self._due = np.zeros(groups, np.int64)  # gradient steps of each group
        self._draws: dict[int, Draw] = {}
        self._requests = 0

    def clock(self, group: int) -> int:
        return int(self._fragments[group])

    def begins(self, group: int) -> bool:
        return not self._due[group]

    def next(self, group: int) -> Task:
        if not self._due[group]:
            return Collect(int(self._fragments[group]))
        if group not in self._draws:
            self._replay.request(fold(self._keys.draw, self._requests), 1, self._plan.batch_size)
            self._replay.poll(0.0)
            draw = self._replay.drawn()
            assert draw is not None, "what is due can be drawn, for the replay is in this process"
            self._draws[group] = draw
            self._requests += 1
        draws = Draws(self._draws[group].minibatches(), np.array(1, np.int32))
        return Given(draws, fold(self._keys.learn, self._requests - 1))

    def take(self, group: int, task: Task, delivery: Delivery) -> Done:
        if isinstance(task, Collect):
            return self._stored(group, task, delivery)
        computed: Computed = delivery.report.seen
        draw = self._draws.pop(group)
        self._due[group] -= 1
        if self._plan.prioritized:
            if computed.priorities is None:
                raise ShoalError("the plan of this agent is prioritized, but its grads give no priorities")
            self._replay.give(draw, computed.priorities[None])
        work = Work(Step((computed.push,), computed.norms), (delivery.trajectory,))
        return Done(work, computed, None)

    def _stored(self, group: int, task: Collect, delivery: Delivery) -> Done:
        seen: Seen = delivery.report.seen
        fragment = _fragment(self._form, group, seen)
        self._replay.insert(group, task.fragment, delivery.trajectory)
        self._replay.poll(0.0)
        self._replay.settled()
        steps = (~fragment.first[1:]).sum(dtype=np.int32)
        due, self._credit = replay.due(self._plan, self._credit, steps)
        if self._replay.rows():  # what comes before anything can be drawn is not made up
            self._due[group] += due
        self._fragments[group] += 1
        return Done(Work(Step((), seen=seen)), None, fragment)

    def metrics(self) -> dict[str, Any]:
        return {"replay/rows": np.array(self._replay.rows())}

    def save(self) -> dict[str, Any]:
        """The replay included. Draws that workers are at work on are made again."""
        return {
            "fragments": self._fragments.copy(),
            "due": self._due.copy(),
            "requests": np.int64(self._requests),
            "credit": self._credit._asdict(),
            "replay": self._replay.save(),
        }

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._fragments = np.array(saved[f"{prefix}/fragments"], np.int64)
        self._due = np.array(saved[f"{prefix}/due"], np.int64)
        self._requests = int(saved[f"{prefix}/requests"])
        self._credit = replay.Credit(**restore(self._credit._asdict(), saved, f"{prefix}/credit"))
        self._replay.load(saved, f"{prefix}/replay")


def _fragment(form: Any, group: int, seen: Seen) -> Fragment:
    trajectory = view(form, seen)
    return Fragment(group, np.asarray(trajectory.reward), np.asarray(trajectory.first))
