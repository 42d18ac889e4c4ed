"""Cluster: env runners as Ray actors, on one machine or many; the learner stays in this process.

orders.py        what driver and runner say to each other
runner.py        the actor: a Host that follows orders
pool.py          the supervisor of runners and groups;  balance.py  who hosts what
fleet.py         runners on Ray;  inline.py  the same in this process
synchronous.py   the bits of Local;  asynchronous.py  nobody waits
session.py       a Ray that is joined or started;  reaper.py  its end, whatever happens to the driver
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError
from shoal.execution import group_size

if TYPE_CHECKING:
    from shoal.execution import Run
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
    is half of the groups. patience, strikes: when a runner is held to be hung and a group to be broken (see
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
    patience: float = 10.0
    strikes: int = 3

    def __post_init__(self) -> None:
        if self.runners < 1:
            raise ShoalError(f"runners must be at least 1, got {self.runners}")
        group_size(self.envs, self.in_groups)
        if self.per_update is not None and not 1 <= self.per_update <= self.in_groups:
            raise ShoalError(
                f"per_update must be between 1 and {self.in_groups}, the number of groups, "
                f"got {self.per_update}"
            )

    @property
    def in_groups(self) -> int:
        return self.runners if self.groups is None else self.groups

    def prepare(self) -> None:
        """Begin to start or join Ray in the background."""
        if not self.inline:
            from shoal.execution.cluster import session

            session.prepare(self.address, **self._needs())

    def start(self, experiment: Experiment) -> Run:
        from shoal.execution.cluster.asynchronous import AsynchronousRun
        from shoal.execution.cluster.synchronous import SynchronousRun

        groups = self.in_groups
        size = group_size(self.envs, groups)
        staleness = experiment.agent.plan.staleness
        pool, close = self._pool(experiment, groups, size, give_up=staleness > 0)
        try:
            if not staleness:
                return SynchronousRun(experiment, pool, groups, size, close)
            per_update = self.per_update or max(1, groups // 2)
            return AsynchronousRun(experiment, pool, groups, size, per_update, close)
        except BaseException:
            close()
            raise

    def _needs(self) -> dict[str, Any]:
        resources = {name: amount * self.runners for name, amount in self.resources.items()}
        return {"cpus": self.cpus * self.runners, "resources": resources}

    def _pool(
        self, experiment: Experiment, groups: int, size: int, *, give_up: bool
    ) -> tuple[Pool, Callable[[], None]]:
        """The runners under supervision, and how to end all of it."""
        from shoal.execution.cluster.pool import Limits, Pool

        limits = Limits(patience=self.patience, strikes=self.strikes, give_up=give_up)
        new = dict.fromkeys(range(groups))
        if self.inline:
            from shoal.execution.cluster.inline import InlineFleet
            from shoal.execution.cluster.runner import Collector
            from shoal.execution.host import Host

            pool = Pool(InlineFleet(lambda: Collector(Host(experiment, size))), new, self.runners, limits)
            return pool, pool.close
        from shoal.execution.cluster import session
        from shoal.execution.cluster.fleet import Placement, RayFleet

        joined = session.join(self.address, **self._needs())
        try:
            placement = Placement(cpus=self.cpus, resources=self.resources, strategy=self.strategy)
            fleet = RayFleet(experiment.recipe, experiment.seed, size, placement)
            pool = Pool(fleet, new, self.runners, limits)
        except BaseException:
            joined.close()
            raise

        def close() -> None:
            pool.close()
            joined.close()

        return pool, close
