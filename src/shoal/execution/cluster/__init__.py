"""Cluster: env runners as Ray actors, on one machine or many; the learner stays in this process.

orders.py        what driver and runner say to each other
runner.py        the actor: a Host that follows orders
pool.py          the supervisor of runners and groups;  balance.py  who hosts what
fleet.py         runners on Ray;  inline.py  the same in this process
inference.py     policies that act for all runners;  stepper.py  runners that only step
synchronous.py   the bits of Local;  asynchronous.py  nobody waits;  sharded.py  nor with a replay
flow.py          what is ordered ahead, and where a resumed run goes on
parcels.py       fragments on their way into a replay;  shards.py  its parts
shard_pool.py    the supervisor of these;  shard_fleet.py  where they live
evaluations.py   episodes of evaluations, as tasks beside the runners
session.py       a Ray that is joined or started;  reaper.py  its end, whatever happens to the driver
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError
from shoal.execution import group_size

if TYPE_CHECKING:
    from shoal.execution import Evaluator, Run
    from shoal.execution.cluster.pool import Pool
    from shoal.recipe import Experiment


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Env runners on Ray, the learner in this process.

    runners: how many. envs: environments in all. groups: how many groups they are divided into; None is one
    for each runner. It is part of the experiment, as for Local; the number of runners is not. address: of a
    running Ray ("auto" finds one on this machine); None starts one here. inline: no Ray; everything in this
    process, in order. cpus, resources: what each runner asks Ray for; strategy: "SPREAD" over nodes or
    "DEFAULT". per_update: with a plan that allows staleness, how many fragments an update learns from; None
    is half of the groups. policy_actors: so many actors act for all runners, which then only step
    environments (SEED RL's layout; needs a plan that allows staleness); policy_cpus, policy_gpus: what each
    asks Ray for. replay_shards: with a replay and a plan that allows
    staleness (Ape-X), so many actors keep the replay; 0 keeps it in this process.
    patience, strikes: when a runner is held to be hung and a group to be broken (see
    `pool.Limits`).
    """

    runners: int = 2
    envs: int = 8
    groups: int | None = None
    address: str | None = None
    inline: bool = False
    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: str = "SPREAD"
    per_update: int | None = None
    policy_actors: int = 0
    policy_cpus: float = 1.0
    policy_gpus: float = 0.0
    replay_shards: int = 0
    patience: float = 10.0
    strikes: int = 3

    def __post_init__(self) -> None:
        if self.runners < 1:
            raise ShoalError(f"runners must be at least 1, got {self.runners}")
        group_size(self.envs, self.in_groups)
        if self.policy_actors < 0 or (self.policy_actors and self.inline):
            raise ShoalError("policy_actors must be 0 or more, and is for runners on Ray, not inline")
        if not 0 <= self.replay_shards <= self.in_groups:
            raise ShoalError(
                f"replay_shards must be between 0 and {self.in_groups}, the number of groups, "
                f"got {self.replay_shards}"
            )
        if self.per_update is not None and not 1 <= self.per_update <= self.in_groups:
            raise ShoalError(
                f"per_update must be between 1 and {self.in_groups}, the number of groups, "
                f"got {self.per_update}"
            )

    @property
    def in_groups(self) -> int:
        return self.runners if self.groups is None else self.groups

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Start or join Ray in the background, for the runs that are started in the block; a Ray that none of
        them uses is released at its end."""
        if self.inline:
            yield
            return
        from shoal.execution.cluster import session

        session.prepare(self.address, **self._needs())
        try:
            yield
        finally:
            session.release()

    def start(self, experiment: Experiment) -> Run:
        from shoal.execution.cluster.asynchronous import AsynchronousRun
        from shoal.execution.cluster.synchronous import SynchronousRun
        from shoal.types import Replay

        groups = self.in_groups
        size = group_size(self.envs, groups)
        staleness = experiment.agent.plan.staleness
        if self.policy_actors and not staleness:
            raise ShoalError(
                "policy actors act for several groups at once with whatever policy is newest: they need an "
                "algorithm that allows staleness, such as IMPALA or APPO; leave policy_actors out for this one"
            )
        replayed = staleness > 0 and isinstance(experiment.agent.plan, Replay)
        if self.replay_shards and not replayed:
            raise ShoalError(
                "replay shards are for algorithms with a replay and staleness, such as ApexDQN: leave "
                "replay_shards out for this one"
            )
        if replayed:
            from shoal.execution.cluster.sharded import layout_of

            layout_of(experiment, groups, size)  # a capacity that does not fit is said before anything starts
        pool, close = self._pool(experiment, groups, size, replayed, give_up=staleness > 0)
        try:
            if not staleness:
                return SynchronousRun(experiment, pool, groups, size, close)
            per_update = self.per_update or max(1, groups // 2)
            ahead = 1 if self.policy_actors else 2
            if replayed:
                from shoal.execution.cluster.sharded import ShardedRun, shards_of

                on_ray = self.replay_shards > 0 and not self.inline
                shards = shards_of(experiment, groups, size, max(1, self.replay_shards), on_ray=on_ray)

                def close_all() -> None:
                    shards.close()
                    close()

                return ShardedRun(experiment, pool, shards, groups, size, ahead, close_all)
            return AsynchronousRun(experiment, pool, groups, size, per_update, ahead, close)
        except BaseException:
            close()
            raise

    def evaluator(self, experiment: Experiment) -> Evaluator:
        """At most as many tasks at once as there are runners."""
        from shoal.execution.cluster.evaluations import InlineEvaluator, RayEvaluator

        if self.inline:
            return InlineEvaluator(experiment)
        return RayEvaluator(experiment.recipe, experiment.seed, self.runners)

    def _needs(self) -> dict[str, Any]:
        resources = {name: amount * self.runners for name, amount in self.resources.items()}
        cpus = self.cpus * self.runners + self.policy_cpus * self.policy_actors
        return {"cpus": cpus, "resources": resources}

    def _pool(
        self, experiment: Experiment, groups: int, size: int, replayed: bool, *, give_up: bool
    ) -> tuple[Pool, Callable[[], None]]:
        """The runners under supervision, and how to end all of it."""
        from shoal.execution.cluster.pool import Limits, Pool

        limits = Limits(patience=self.patience, strikes=self.strikes, give_up=give_up)
        new = dict.fromkeys(range(groups))
        if self.inline:
            from shoal.execution.cluster.inline import InlineFleet
            from shoal.execution.cluster.runner import Collector
            from shoal.execution.host import Host

            parcel = None
            if replayed:
                from shoal.execution.cluster.parcels import parcel as parcel_of

                parcel = parcel_of(experiment.agent, experiment.source.spec, size)
            fleet = InlineFleet(lambda: Collector(Host(experiment, size), parcel))
            pool = Pool(fleet, new, self.runners, limits)
            return pool, pool.close
        from shoal.execution.cluster import session
        from shoal.execution.cluster.fleet import Placement, RayFleet, env_runners, steppers

        joined = session.join(self.address, **self._needs())
        try:
            placement = Placement(cpus=self.cpus, resources=self.resources, strategy=self.strategy)
            if self.policy_actors:
                each = self.policy_cpus, self.policy_gpus
                crew = steppers(experiment, groups, size, self.policy_actors, *each)
            else:
                fetch = not (replayed and self.replay_shards)
                how = {"sharded": replayed, "fetch": fetch}
                crew = env_runners(experiment.recipe, experiment.seed, size, **how)
            fleet = RayFleet(crew, placement)
            pool = Pool(fleet, new, self.runners, limits)
        except BaseException:
            joined.close()
            raise

        def close() -> None:
            pool.close()
            joined.close()

        return pool, close
