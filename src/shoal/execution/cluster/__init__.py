"""Cluster: env runners as Ray actors, on one machine or many; the learner here, or in a group of actors.

orders.py        what driver and runner say to each other
runner.py        the actor: a Host that follows orders
build.py         from the settings to a started run
pool.py          the supervisor, with staff.py (runners), homes.py and balance.py (who hosts what),
                 deadlines.py (silence), elastic.py (how many runners) and roster.py (what it keeps)
luggage.py       what the user gave as code, on its way;  letters.py  small things, on theirs
fleet.py         runners on Ray;  inline.py  the same in this process
inference.py     policies that act for all runners;  stepper.py  runners that only step;  line.py  between
synchronous.py   the bits of Local;  asynchronous.py  nobody waits;  sharded.py  nor with a replay
flow.py          what is ordered ahead, and where a resumed run goes on
parcels.py       fragments on their way into a replay;  shards.py  its parts
shard_pool.py    the supervisor of these;  shard_fleet.py  where they live
learners/        learners that share an update
evaluations.py   episodes of evaluations, as tasks beside the runners
session.py       a Ray that is joined or started;  reaper.py  its end, whatever happens to the driver
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shoal.checks import at_least, typed
from shoal.errors import ShoalError, did_you_mean
from shoal.execution import group_size
from shoal.mesh import Mesh

if TYPE_CHECKING:
    from shoal.execution import Evaluator, Run
    from shoal.recipe import Experiment
    from shoal.types import Plan

STRATEGIES = ("SPREAD", "DEFAULT", "PACK", "STRICT_PACK", "STRICT_SPREAD")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Env runners on Ray, the learner in this process or in several.

    runners: how many; "auto" begins with min_runners and follows who waits for whom and what the cluster has,
    up to max_runners (None: as many as there are groups). envs: environments in all. groups: how many groups
    they are divided into; None is one for each runner. It is part of the experiment, as for Local; the number
    of runners is not. address: of a running Ray ("auto" finds one on this machine); None starts one here.
    inline: no Ray; everything in this process, in order. cpus, resources: what each runner asks Ray for.
    strategy: "SPREAD" over nodes or "DEFAULT"; "PACK", "STRICT_PACK" and "STRICT_SPREAD" hold the room of all
    runners as a placement group. per_update: with a plan that allows staleness, how many fragments an update
    learns from; None is half of the groups. policy_actors: so many actors act for all runners, which then
    only step environments (SEED RL's layout; needs a plan that allows staleness); policy_cpus, policy_gpus:
    what each asks Ray for. replay_shards: with a replay and a plan that allows staleness (Ape-X), so many
    actors keep the replay; 0 keeps it in this process. learners: so many processes share each update, with
    one device each, by data and by model; None learns in this process. learner_cpus, learner_gpus: what each
    asks Ray for; with a GPU, that is its device. learner_memory: bytes that each may hold of parameters,
    optimizer and gradients; more is refused. patience, strikes: when a runner is held to be hung and a group
    to be broken (see `roster.Limits`); learners likewise.
    """

    runners: int | Literal["auto"] = 2
    min_runners: int = 1
    max_runners: int | None = None
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
    learners: Mesh | None = None
    learner_cpus: float = 1.0
    learner_gpus: int = 0
    learner_memory: int | None = None
    patience: float = 10.0
    strikes: int = 3

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 0, "cpus", "policy_cpus", "policy_gpus", "learner_cpus")
        at_least(self, 0, "patience", strictly=True)
        at_least(self, 1, "strikes", "max_runners", "per_update", "learner_memory")
        if self.runners == "auto":
            if self.groups is None:
                raise ShoalError("with runners='auto', say how many groups there are: groups=")
            if self.strategy not in ("SPREAD", "DEFAULT"):
                raise ShoalError(
                    "runners='auto' needs strategy='SPREAD' or 'DEFAULT': a placement group has one size"
                )
        elif not isinstance(self.runners, int) or self.runners < 1:
            raise ShoalError(f"runners must be 'auto' or a number of at least 1, got {self.runners!r}")
        if self.strategy not in STRATEGIES:
            raise ShoalError(f"unknown strategy {self.strategy!r}; {did_you_mean(self.strategy, STRATEGIES)}")
        group_size(self.envs, self.in_groups)
        if self.policy_actors < 0 or (self.policy_actors and self.inline):
            raise ShoalError("policy_actors must be 0 or more, and is for runners on Ray, not inline")
        if self.learners is None:
            self._check_no_learners()
        elif self.inline:
            raise ShoalError("learners are processes on Ray, not inline: leave one of the two out")
        if self.learner_gpus not in (0, 1):
            raise ShoalError(f"learner_gpus must be 0 or 1, one device for each, got {self.learner_gpus}")
        for name, number, least, most in (
            ("min_runners", self.min_runners, 1, self.max_runners or self.in_groups),
            ("replay_shards", self.replay_shards, 0, self.in_groups),
            ("per_update", self.per_update or 1, 1, self.in_groups),
        ):
            if not least <= number <= most:
                raise ShoalError(f"{name} must be between {least} and {most}, got {number}")

    def _check_no_learners(self) -> None:
        for name, default in (("learner_cpus", 1.0), ("learner_gpus", 0), ("learner_memory", None)):
            if getattr(self, name) != default:
                raise ShoalError(f"{name} is for learners that are processes: say learners=Mesh(...) too")

    @property
    def members(self) -> int:
        """Learners that are processes of their own."""
        return 0 if self.learners is None else self.learners.size

    @property
    def gpus(self) -> float:
        """What the run asks of Ray in all."""
        return self.policy_gpus * self.policy_actors + self.learner_gpus * self.members

    @property
    def in_groups(self) -> int:
        return self.at_first if self.groups is None else self.groups

    @property
    def at_first(self) -> int:
        """The number of runners to begin with."""
        return self.min_runners if self.runners == "auto" else self.runners

    def at_a_time(self, plan: Plan) -> int:
        """Environments in an update; with a replay and a plan that allows staleness, in an observation."""
        from shoal.types import Replay

        size = group_size(self.envs, self.in_groups)
        if not plan.staleness:
            return size * self.in_groups
        if isinstance(plan, Replay):
            return size
        return size * (self.per_update or max(1, self.in_groups // 2))

    def prepared(self) -> AbstractContextManager[None]:
        """Start or join Ray in the background, for the runs that are started in the block; a Ray that none of
        them uses is released at its end."""
        return begun_for(self.address, self.inline, self.needs())

    def start(self, experiment: Experiment) -> Run:
        from shoal.execution.cluster.build import start

        return start(self, experiment)

    def evaluator(self, experiment: Experiment) -> Evaluator:
        """At most as many tasks at once as there are runners."""
        return evaluator_of(experiment, self.inline, self.at_first)

    def needs(self) -> dict[str, Any]:
        """What the run asks of Ray in all, GPUs excepted: arguments of `session.join`."""
        resources = {name: amount * self.at_first for name, amount in self.resources.items()}
        cpus = self.cpus * self.at_first + self.policy_cpus * self.policy_actors
        cpus += self.learner_cpus * self.members
        return {"cpus": cpus, "resources": resources}


@contextmanager
def begun_for(address: str | None, inline: bool, needs: Mapping[str, Any]) -> Iterator[None]:
    """See `Cluster.prepared`. needs: arguments of `session.join`."""
    if inline:
        yield
        return
    from shoal.execution.cluster import session

    session.prepare(address, **needs)
    try:
        yield
    finally:
        session.release()


def evaluator_of(experiment: Experiment, inline: bool, tasks: int) -> Evaluator:
    """Who plays evaluations: at most so many tasks at once, or this process."""
    from shoal.execution.cluster.evaluations import InlineEvaluator, RayEvaluator

    return InlineEvaluator(experiment) if inline else RayEvaluator(experiment.recipe, experiment.seed, tasks)
