"""A run with its replay in shards (Ape-X: Horgan et al. 2018, "Distributed prioritized experience replay").

    runners --fragments, first priorities--> replay shards --minibatches--> learner --parameters--> runners
                                                           <--priorities---

Runners collect all the time, the learner learns all the time, and neither waits for the other, but where one
is so far ahead that the plan's sample-to-insert ratio would be left: then orders, or learning, wait. The next
minibatches are drawn while the learner is at work. The learner's process sees of a fragment only what it must
(see parcels.py); the rest goes from the runner to its shard.

An update is one call of `learn`: as many gradient steps as one fragment earns. A fragment's staleness is how
many updates were made between the parameters that acted in it and its insertion; what exceeds the plan's
bound is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import jax
import numpy as np

from shoal import replay
from shoal.checkpoint import restore
from shoal.errors import ShoalError
from shoal.execution import Fragment, Iteration
from shoal.execution.cluster import parcels
from shoal.execution.cluster.draws import Draw
from shoal.execution.cluster.flow import Flow
from shoal.execution.cluster.orders import Delivery
from shoal.execution.cluster.pool import Pool
from shoal.execution.cluster.shard_fleet import InlineShards, RayShards
from shoal.execution.cluster.shard_pool import ShardPool
from shoal.execution.cluster.shards import Shard
from shoal.execution.cluster.synchronous import WAIT_SECONDS
from shoal.execution.host import mean_info
from shoal.execution.learner import Learner, news_of
from shoal.execution.learning import LearnKeys
from shoal.keys import fold
from shoal.recipe import Experiment
from shoal.replay import ratio
from shoal.types import Draws, Replay

PREFETCH = 2  # draws that are requested before they are learned from: one in hand, one on its way
ANSWER_SECONDS = 0.02  # to wait for a shard before looking at the runners again


@dataclass
class Account:
    """Fragments since the run began here. Always: delivered = inserted + dropped + lost + in flight.

    lost: that were with a shard, or on their way to it, and could not be brought back.
    """

    delivered: int = 0
    inserted: int = 0
    dropped: int = 0
    lost: int = 0


class ShardedRun:
    """A started Cluster executor, for a Replay plan with staleness.

    pool: its runners hand over what `parcels.parcel` makes, or whole trajectories, to be divided here.
    shards: as `shards_of` makes them. groups: how many, of `size` environments each. ahead: as for `Flow`.
    """

    def __init__(
        self,
        experiment: Experiment,
        learner: Learner,
        pool: Pool,
        shards: ShardPool,
        groups: int,
        size: int,
        ahead: int,
        close: Callable[[], None],
    ) -> None:
        agent, spec, seed = experiment.agent, experiment.source.spec, experiment.seed
        plan = agent.plan
        assert isinstance(plan, Replay)
        self.learner = learner
        self._plan, self._pool, self._shards, self._close = plan, pool, shards, close
        self._steps = plan.rows * size  # at most, in a fragment
        self._updates = replay.most_updates(plan, size)  # gradient steps of one call of `learn`
        # As much as may be on the way without learning being behind, and a fragment more.
        self._tolerance = (ahead * groups + 1) * ratio.least_tolerance(plan, self._steps, self._updates)
        self._form = parcels.form_of(agent, spec, size)
        self._keys = LearnKeys.of(seed)
        self._flow = Flow(pool, groups, agent.begin(size), ahead)
        self._parcel = parcels.parcel(agent, spec, size)
        self._groups = range(groups)
        self._credit = replay.begin(plan)
        self._earned: dict[
            tuple[int, int], int
        ] = {}  # environment steps of the fragments in flight to shards
        self._version = 0  # updates made
        self._published = False
        self._requests = 0
        self.account = Account()

    def iterate(self) -> Iteration:
        """Go on until as many fragments as there are groups have been given to the shards or dropped."""
        before, begun, learning = self.account.delivered, perf_counter(), 0.0
        taken: list[Delivery] = []
        stale: list[int] = []
        metrics: list[Any] = []
        while len(taken) < len(self._groups):
            if not self._published:
                self._acting = jax.device_get(self.learner.acting())
                self._pool.publish(self._version, self._acting)
                self._published = True
            draw = self._next_draw()
            if draw is not None:
                at = perf_counter()
                metrics.append(self._learn_from(draw))
                learning += perf_counter() - at
            self._flow.order(self._room(), self._on_the_way)
            busy = draw is not None or self._shards.waiting
            arrived = [self._divided(d) for d in self._pool.deliveries(0.0 if busy else WAIT_SECONDS)]
            for delivery in arrived:
                stale += self._hand_over(delivery)
            taken += arrived
            self._shards.poll(0.0 if draw is not None or arrived else ANSWER_SECONDS)
            self._note_settled()
        seconds = perf_counter() - begun
        news = news_of(self.learner)
        figures = {**self._pool.figures(), **self._shards.figures(), **news.figures}
        figures["fragments_per_second"] = (self.account.delivered - before) / seconds
        return Iteration(
            metrics={
                **{name: np.array(np.mean([m[name] for m in metrics])) for name in (metrics or [{}])[0]},
                **{name: np.array(number) for name, number in self._counts(stale).items()},
                "replay/gradient_steps": np.array(len(metrics) * self._updates),
            },
            fragments=[self._fragment(d) for d in taken],
            info=mean_info([d.report.info for d in taken]),
            spent={"collect": seconds - learning, "learn": learning, **figures},
            events=[*self._pool.take_events(), *self._shards.take_events(), *news.events],
        )

    # -- fragments ---------------------------------------------------------------------------------------

    def _on_the_way(self, group: int) -> int:
        """Fragments of a group that were ordered and are neither inserted nor dropped."""
        return self._pool.owed(group) + self._shards.in_flight(group)

    def _room(self) -> int:
        """How many more fragments may be ordered: so many that learning does not fall behind by more than the
        tolerance, and that those on the way can be inserted before they are too stale."""
        on_the_way = sum(map(self._on_the_way, self._groups))
        earned = ratio.room(self._plan, self._credit, self._tolerance) // self._steps
        owed = int(self._credit.steps) // (self._updates * self._plan.train_every)  # updates
        return min(earned, self._plan.staleness - owed) - on_the_way

    def _divided(self, delivery: Delivery) -> Delivery:
        """A runner without JAX hands its trajectory over whole."""
        if delivery.report.seen is not None:
            return delivery
        seen, stored = self._parcel(self._acting, delivery.trajectory)
        return delivery._replace(report=delivery.report._replace(seen=seen), trajectory=stored)

    def _hand_over(self, delivery: Delivery) -> list[int]:
        """Let a fragment's shard have it, and give its staleness; nothing where it is dropped."""
        report = delivery.report
        self.account.delivered += 1
        self._flow.settle([report])
        staleness = self._version - report.version
        if staleness > self._plan.staleness:
            self.account.dropped += 1
            return []
        first = parcels.view(self._form, report.seen).first
        self._earned[report.group, report.fragment] = int((~np.asarray(first)[1:]).sum())
        self.learner.observe(parcels.filled(self._form, report.seen))
        self._shards.insert(report.group, report.fragment, delivery.trajectory)
        return [staleness]

    def _note_settled(self) -> None:
        """Keep the accounts of what the shards have taken in, and of what was lost on the way."""
        for one in self._shards.settled():
            if one.lost:
                self.account.lost += 1
                self.account.inserted -= one.before
            else:
                self.account.inserted += 1
            steps = self._earned.pop((one.group, one.fragment), 0)
            if not one.lost:
                self._credit = ratio.inserted(self._plan, self._credit, steps)
                if not self._shards.rows():  # what comes before anything can be drawn is not made up
                    self._credit = self._credit._replace(steps=np.int32(0))

    def _fragment(self, delivery: Delivery) -> Fragment:
        seen = parcels.view(self._form, delivery.report.seen)
        return Fragment(delivery.report.group, np.asarray(seen.reward), np.asarray(seen.first))

    # -- learning ----------------------------------------------------------------------------------------

    def _next_draw(self) -> Draw | None:
        """Minibatches that may be learned from now. Others are requested, so that they are there in time."""
        due = bool(ratio.may_learn(self._plan, self._credit, 0, self._updates))
        draw = self._shards.drawn() if due else None
        while not self._credit.waiting and self._shards.draws < PREFETCH:
            key = fold(self._keys.draw, self._requests)
            if not self._shards.request(key, self._updates, self._plan.batch_size):
                break
            self._requests += 1
        return draw

    def _learn_from(self, draw: Draw) -> Any:
        key = fold(self._keys.learn, self._version)
        learned = self.learner.learn(Draws(draw.minibatches(), np.array(self._updates, np.int32)), key)
        if self._plan.prioritized:
            if learned.priorities is None:
                raise ShoalError("the plan of this agent is prioritized, but its grads give no priorities")
            self._shards.give(draw, np.asarray(learned.priorities))
        self._version += 1
        self._published = False
        self._credit = ratio.learned(self._plan, self._credit, self._updates)
        return jax.device_get(learned.metrics)

    def _counts(self, stale: list[int]) -> dict[str, float]:
        account = self.account
        return {
            "staleness/mean": float(np.mean(stale or [0])),
            "staleness/max": max(stale, default=0),
            "fragments/delivered": account.delivered,
            "fragments/inserted": account.inserted,
            "fragments/dropped": account.dropped,
            "fragments/lost": account.lost,
            "fragments/in_flight": self.in_flight,
            "replay/rows": self._shards.rows(),
        }

    @property
    def in_flight(self) -> int:
        """Fragments that were given to shards and of which it is not known what became."""
        return sum(map(self._shards.in_flight, self._groups))

    # -- checkpoints -------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """The shards' rings included. Fragments that runners are at work on are not: they are collected
        again."""
        rings = self._shards.save()
        self._note_settled()
        return {
            "iteration": np.int64(self._version),
            "requests": np.int64(self._requests),
            "flow": self._flow.save(),
            "credit": self._credit._asdict(),
            "replay": rings,
        }

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self._version = int(saved[f"{prefix}/iteration"])
        self._requests = int(saved[f"{prefix}/requests"])
        self._flow.load(saved, f"{prefix}/flow")
        self._credit = replay.Credit(**restore(self._credit._asdict(), saved, f"{prefix}/credit"))
        self._shards.load(saved, f"{prefix}/replay")
        self._published = False

    def close(self) -> None:
        self._close()


def layout_of(experiment: Experiment, groups: int, size: int) -> replay.Layout:
    """The layout of one group's ring. ShoalError, one line, where the capacity does not suffice."""
    plan, spec = experiment.agent.plan, experiment.source.spec
    assert isinstance(plan, Replay)
    replay.Layout.of(plan, spec, groups * size)
    return replay.Layout.of(replace(plan, capacity=-(-plan.capacity // groups)), spec, size)


def shards_of(experiment: Experiment, groups: int, size: int, shards: int, *, on_ray: bool) -> ShardPool:
    """The replay: so many shards, on a Ray that is joined, or in this process."""
    agent, layout = experiment.agent, layout_of(experiment, groups, size)
    assert isinstance(agent.plan, Replay)
    form = parcels.kept(agent.plan, parcels.form_of(agent, experiment.source.spec, size))
    if on_ray:
        make = f"{Shard.__module__}:{Shard.__qualname__}"
        fleet = RayShards(make, lambda number: (layout, form), experiment.recipe.threads)
    else:
        fleet = InlineShards(lambda number: Shard(layout, form))
    return ShardPool(fleet, shards, groups, layout.rows // layout.fragment)
