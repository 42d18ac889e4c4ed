"""A parameter server: parameters lie with shards, workers compute gradients (Li et al. 2014, "Scaling
distributed machine learning with the parameter server").

shares.py        how a State is divided            compression.py  gradients made smaller
shard.py         one shard: a state machine        worker.py, actor.py  hosts groups, computes gradients
servers.py, record.py  the supervisor of shards    tasks.py        what orders are for
work.py          what a group does next            asynchronous.py nobody waits, or nobody runs far ahead
learner.py       the single process's steps, divided
build.py         from the settings to a started run

Workers are supervised by a Cluster's `Pool`. This process says what happens in which order; gradients and
parameters go from workers to shards and back without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shoal.checks import at_least, typed
from shoal.errors import ShoalError, did_you_mean
from shoal.execution import group_size
from shoal.execution.cluster import STRATEGIES, begun_for, evaluator_of

if TYPE_CHECKING:
    from shoal.execution import Evaluator, Run
    from shoal.recipe import Experiment

MODES = ("async", "stale", "sync")
COMPRESSIONS = ("none", "bfloat16", "top-k")


@dataclass(frozen=True, kw_only=True)
class ParameterServer:
    """Workers on Ray that compute gradients, and shards of parameters that they go to.

    workers: how many; not part of the experiment. shards: into how many parts parameters and optimizer are
    divided. mode: "async" applies each gradient when it comes (A3C, Gorila); "stale" likewise, but a group
    begins a fragment only while it is done with at most `staleness` more than the slowest; "sync" makes the
    single process's updates. envs, groups: as for Cluster; groups=None is one for each worker. compression:
    "none", "bfloat16", or "top-k", of which only the share `keep` of the numbers travels, the largest.
    address, inline, cpus, resources, strategy, patience, strikes: as for Cluster, of workers.
    """

    workers: int = 2
    shards: int = 1
    mode: Literal["async", "stale", "sync"] = "async"
    staleness: int = 1
    envs: int = 8
    groups: int | None = None
    compression: Literal["none", "bfloat16", "top-k"] = "none"
    keep: float = 0.01
    address: str | None = None
    inline: bool = False
    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: str = "SPREAD"
    patience: float = 10.0
    strikes: int = 3

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 1, "workers", "shards", "strikes")
        at_least(self, 0, "staleness", "cpus")
        at_least(self, 0, "patience", strictly=True)
        for name, known in (("mode", MODES), ("compression", COMPRESSIONS), ("strategy", STRATEGIES)):
            value = getattr(self, name)
            if value not in known:
                raise ShoalError(f"unknown {name} {value!r}; {did_you_mean(value, known)}")
        if not 0 < self.keep <= 1:
            raise ShoalError(f"keep must be greater than 0 and at most 1, got {self.keep}")
        if self.mode != "stale" and self.staleness != ParameterServer.staleness:
            raise ShoalError(f"staleness={self.staleness} is for mode='stale', and mode is {self.mode!r}")
        if self.mode == "sync" and self.compression == "top-k":
            raise ShoalError(
                "compression='top-k' leaves to a worker what to send later, which mode='sync' cannot: use "
                "'bfloat16' or 'none', or another mode"
            )
        group_size(self.envs, self.in_groups)

    @property
    def in_groups(self) -> int:
        return self.workers if self.groups is None else self.groups

    def prepared(self) -> AbstractContextManager[None]:
        """See `Cluster.prepared`."""
        return begun_for(self.address, self.inline, self.needs())

    def start(self, experiment: Experiment) -> Run:
        from shoal.execution.parameter_server.build import start

        return start(self, experiment)

    def evaluator(self, experiment: Experiment) -> Evaluator:
        """At most as many tasks at once as there are workers."""
        return evaluator_of(experiment, self.inline, self.workers)

    def needs(self) -> dict[str, Any]:
        """What the run asks of Ray in all: arguments of `session.join`."""
        resources = {name: amount * self.workers for name, amount in self.resources.items()}
        return {"cpus": self.cpus * self.workers, "resources": resources}
