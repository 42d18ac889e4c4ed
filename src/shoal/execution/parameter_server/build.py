"""From the settings of a ParameterServer to a started run: Ray, workers and shards, all supervised."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import jax

from shoal.compiling import jit_once
from shoal.execution import Run, group_size
from shoal.execution.cluster.inline import InlineFleet
from shoal.execution.cluster.memory import give_back
from shoal.execution.cluster.parcels import form_of
from shoal.execution.cluster.pool import Limits, Pool
from shoal.execution.cluster.shard_fleet import InlineShards, RayShards, ShardFleet
from shoal.execution.cluster.sharded import layout_of
from shoal.execution.cluster.synchronous import SynchronousRun
from shoal.execution.learning import learning_of
from shoal.execution.parameter_server import shard as shards
from shoal.execution.parameter_server.actor import Manner, WorkerActor, worker_of
from shoal.execution.parameter_server.asynchronous import AsynchronousRun
from shoal.execution.parameter_server.learner import ServerLearner, check_parts, minibatches_of
from shoal.execution.parameter_server.servers import Servers
from shoal.execution.parameter_server.shares import Shares, check, norms_taken
from shoal.execution.parameter_server.tasks import Tasks
from shoal.execution.parameter_server.work import plan_of
from shoal.keys import key_for
from shoal.recipe import Experiment
from shoal.types import OnPolicy, Replay

if TYPE_CHECKING:
    from shoal.execution.parameter_server import ParameterServer


def start(on: ParameterServer, experiment: Experiment) -> Run:
    """Raises ShoalError where the settings, the algorithm and the cluster do not fit together; nothing is
    left running then."""
    agent, spec, groups = experiment.agent, experiment.source.spec, on.in_groups
    size, waits = group_size(on.envs, groups), on.mode == "sync"
    shares = Shares.of(agent, on.shards)
    norms = norms_taken(agent, shares)
    _fits(on, experiment, shares, size)
    replayed = isinstance(agent.plan, Replay)
    manner = Manner(
        size=size,
        shards=on.shards,
        compression=on.compression,
        keep=on.keep,
        stored=replayed and not waits,
        whole_norms=norms > 0 and not waits,
    )
    tasks, undo = Tasks(), ExitStack()
    try:
        pool, fleet = _started(on, experiment, manner, tasks, undo)
        undo.callback(fleet.close)
        state = jit_once(agent.init)(key_for(experiment.seed, "init"))
        servers = Servers(fleet, shares, norms if waits else 0, jax.device_get(state), on.strikes)
        tasks.serve(servers)
        check(agent, shares, state, numbers_alone=on.compression == "top-k")  # while workers and shards start
        give_back()
        form = form_of(agent, spec, on.envs if waits else size)
        learner = ServerLearner(agent, shares, servers, pool, tasks, form, groups)
        if waits:
            return SynchronousRun(experiment, learner, pool, groups, size, undo.close)
        bound = on.staleness if on.mode == "stale" else None
        plan, carry = plan_of(experiment, groups, size), agent.begin(size)
        return AsynchronousRun(learner, pool, servers, tasks, plan, groups, bound, carry, undo.close)
    except BaseException:
        undo.close()
        raise


def _fits(on: ParameterServer, experiment: Experiment, shares: Shares, size: int) -> None:
    """Raises ShoalError for what cannot be divided as it must be, before anything starts."""
    agent, spec, groups = experiment.agent, experiment.source.spec, on.in_groups
    if on.mode != "sync":
        if isinstance(agent.plan, Replay):
            layout_of(experiment, groups, size)
        else:
            learning_of(agent, spec, size, host=True)
        return
    learning_of(agent, spec, on.envs, host=True)
    if isinstance(agent.plan, OnPolicy):
        form = shares.form._replace(opt=())
        _, rows = minibatches_of(agent, form, form_of(agent, spec, on.envs))
    else:
        rows = agent.plan.batch_size
    check_parts(rows, groups)


def _started(
    on: ParameterServer,
    experiment: Experiment,
    manner: Manner,
    tasks: Tasks,
    undo: ExitStack,
) -> tuple[Pool, ShardFleet]:
    """Workers under supervision, and where shards will live; what ends them and their Ray is put into
    `undo`."""
    agent, spec, recipe = experiment.agent, experiment.source.spec, experiment.recipe
    limits = Limits(patience=on.patience, strikes=on.strikes, give_up=on.mode != "sync")
    new = dict.fromkeys(range(on.in_groups))
    envs = on.envs if on.mode == "sync" else manner.size
    parts = 1 + on.shards
    if on.inline:
        here = InlineFleet(lambda: worker_of(experiment, manner, lambda put: put), parts, tasks.attached)
        undo.callback(here.close)
        made = InlineShards(lambda number: shards.ParameterShard(agent, spec, envs, on.shards, number))
        return Pool(here, new, on.workers, limits), made
    from shoal.execution.cluster import session
    from shoal.execution.cluster.fleet import Crew, Placement, RayFleet
    from shoal.execution.cluster.luggage import pack

    joined = session.join(on.address, **on.needs())
    undo.callback(joined.close)
    joined.check_room("worker", {"CPU": on.cpus, **on.resources})
    luggage = pack(recipe)
    crew = Crew(
        actor=WorkerActor,
        arguments=lambda worker: (luggage, experiment.seed, manner),
        fetch=False,
        parts=parts,
        attached=tasks.attached,
    )
    placement = Placement(runners=on.workers, cpus=on.cpus, resources=on.resources, strategy=on.strategy)
    fleet = RayFleet(crew, placement)
    undo.callback(fleet.close)
    make = f"{shards.__name__}:{shards.shard_of.__name__}"
    what = lambda number: (luggage, spec, envs, on.shards, number)  # noqa: E731
    return Pool(fleet, new, on.workers, limits), RayShards(make, what, recipe.threads)
