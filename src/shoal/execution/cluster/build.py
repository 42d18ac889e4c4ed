"""From the settings of a Cluster to a started run: Ray, runners under supervision, policy actors, shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.execution import Run, group_size
from shoal.execution.cluster import learners
from shoal.execution.cluster.asynchronous import AsynchronousRun
from shoal.execution.cluster.elastic import Bounds, Elastic, room_for
from shoal.execution.cluster.flow import AHEAD
from shoal.execution.cluster.inline import InlineFleet
from shoal.execution.cluster.memory import give_back
from shoal.execution.cluster.parcels import parcel
from shoal.execution.cluster.pool import Limits, Pool
from shoal.execution.cluster.runner import Collector
from shoal.execution.cluster.sharded import ShardedRun, layout_of, shards_of
from shoal.execution.cluster.synchronous import SynchronousRun
from shoal.execution.host import Host
from shoal.execution.learner import Learner, LearnerHere
from shoal.execution.unroll import fragment_form
from shoal.keys import key_for
from shoal.recipe import Experiment
from shoal.types import Replay

if TYPE_CHECKING:
    from shoal.execution.cluster import Cluster


def start(on: Cluster, experiment: Experiment) -> Run:
    """Raises ShoalError where the settings, the algorithm and the cluster do not fit together; nothing is
    left running then."""
    groups, plan = on.in_groups, experiment.agent.plan
    size = group_size(on.envs, groups)
    replayed = plan.staleness > 0 and isinstance(plan, Replay)
    _check(on, waits=not plan.staleness, replayed=replayed)
    if replayed:
        layout_of(experiment, groups, size)  # a capacity that does not fit is said before anything starts
    at_a_time = on.at_a_time(plan)
    if on.learners is not None:
        learners.check(on, experiment, at_a_time)
    undo = ExitStack()
    try:
        learner = _learner(on, experiment, undo)
        with _warming(learner, experiment, 0 if replayed else at_a_time):
            pool = _pool(on, experiment, groups, size, replayed, undo)
        ahead = 1 if on.policy_actors else AHEAD  # a stepper follows one order of a group at a time
        if replayed:
            on_ray = on.replay_shards > 0 and not on.inline
            shards = shards_of(experiment, groups, size, max(1, on.replay_shards), on_ray=on_ray)
            undo.callback(shards.close)
            return ShardedRun(experiment, learner, pool, shards, groups, size, ahead, undo.close)
        if plan.staleness:
            return AsynchronousRun(
                experiment, learner, pool, groups, size, at_a_time // size, ahead, undo.close
            )
        return SynchronousRun(experiment, learner, pool, groups, size, undo.close)
    except BaseException:
        undo.close()
        raise


def _learner(on: Cluster, experiment: Experiment, undo: ExitStack) -> Learner:
    """What ends it, and its hold on Ray, is put into `undo`."""
    if on.learners is None:
        return LearnerHere.new(experiment.agent, key_for(experiment.seed, "init"))
    from shoal.execution.cluster import session

    undo.callback(session.join(on.address, **on.needs(), gpus=on.gpus).close)
    learner = learners.begin(on, experiment)
    undo.callback(learner.close)
    return learner


@contextmanager
def _warming(learner: Learner, experiment: Experiment, envs: int) -> Iterator[None]:
    """The learner compiles what fragments of `envs` environments need while the block waits for Ray and has
    runners started. envs: 0 where it learns from a replay, and compiles when that can be drawn from."""

    def warm() -> None:
        if envs:
            learner.warm(fragment_form(experiment.agent, experiment.source.spec, envs))

    with ThreadPoolExecutor(1, "shoal-warm") as beside:
        warmed = beside.submit(warm)
        yield
        warmed.result()
    give_back()


def _check(on: Cluster, *, waits: bool, replayed: bool) -> None:
    if on.policy_actors and (waits or replayed):
        raise ShoalError(
            "policy actors act for several groups at once with whatever policy is newest: they need an "
            "algorithm that allows staleness and has no replay, such as IMPALA or APPO; leave policy_actors "
            "out for this one"
        )
    if on.replay_shards and not replayed:
        raise ShoalError(
            "replay shards are for algorithms with a replay and staleness, such as ApexDQN: leave "
            "replay_shards out for this one"
        )


def _pool(
    on: Cluster, experiment: Experiment, groups: int, size: int, replayed: bool, undo: ExitStack
) -> Pool:
    """The runners under supervision; what ends them and their Ray is put into `undo`."""
    staleness = experiment.agent.plan.staleness
    limits = Limits(patience=on.patience, strikes=on.strikes, give_up=staleness > 0)
    new = dict.fromkeys(range(groups))
    if on.inline:
        cut = parcel(experiment.agent, experiment.source.spec, size) if replayed else None
        fleet = InlineFleet(lambda: Collector(Host(experiment, size), cut))
        undo.callback(fleet.close)
        return Pool(fleet, new, on.at_first, limits)
    from shoal.execution.cluster import session
    from shoal.execution.cluster.fleet import Placement, RayFleet, env_runners, steppers

    joined = session.join(on.address, **on.needs(), gpus=on.gpus)
    undo.callback(joined.close)
    each = {"CPU": on.cpus, **on.resources}
    joined.check_room("runner", each)
    if on.policy_actors:
        crew = steppers(experiment, size, on.policy_actors, on.policy_cpus, on.policy_gpus)
    else:
        fetch = not (replayed and on.replay_shards)
        crew = env_runners(experiment, size, sharded=replayed, fetch=fetch)
    placement = Placement(runners=on.at_first, cpus=on.cpus, resources=on.resources, strategy=on.strategy)
    fleet = RayFleet(crew, placement)
    undo.callback(fleet.close)
    # What starts takes a core, as does the learner, which compiles: on a small machine the first result comes
    # sooner if the other runners begin after the first.
    at_once = max(1, (os.cpu_count() or 1) - 1) if joined.ours else None
    if on.runners != "auto":
        return Pool(fleet, new, on.at_first, limits, at_once=at_once)
    bounds = Bounds(least=on.min_runners, most=min(groups, on.max_runners or groups))
    beside = {"CPU": on.policy_cpus * on.policy_actors + on.learner_cpus * on.members}
    elastic = Elastic(bounds, lambda: room_for(joined.totals(), beside, each))
    return Pool(fleet, new, on.at_first, limits, elastic=elastic.look, at_once=at_once)
