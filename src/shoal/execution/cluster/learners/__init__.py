"""Learners that share an update: a group of processes on Ray, each with one device of a mesh.

member.py   the actor: a learner over the devices of all members, of which this process has one
parts.py    what travels: parts of a state, and experience without what repeats itself
crew.py     the members' processes: started, asked and ended together
group.py    the `Learner` in the driver: brings back what a member that is lost takes with it
record.py   what it keeps for that
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.execution.cluster import Cluster
    from shoal.execution.cluster.learners.group import LearnerGroup
    from shoal.mesh import Mesh
    from shoal.recipe import Experiment

MOST_PARTS = 1024  # into which a model is thought to be split, where one is asked for that fits


def check(on: Cluster, experiment: Experiment, envs: int) -> None:
    """Raises ShoalError, one line, for what can be refused before anything starts: a batch or a model that
    cannot be divided so, and a model that does not fit. envs: environments in an update."""
    import jax
    import numpy as np

    from shoal import sharding
    from shoal.execution import split
    from shoal.mesh import Mesh

    assert on.learners is not None
    agent = experiment.agent
    split.check(on.learners, agent.plan, envs)
    form = jax.eval_shape(agent.init, np.zeros(2, np.uint32))
    sharding.check_rules(on.learners, form)
    if on.learner_memory is None:
        return
    nothing = form._replace(params={}, opt=(), extra={})

    def held(mesh: Mesh) -> dict[str, int]:
        parts = {"parameters": "params", "optimizer": "opt", "targets": "extra", "gradients": "params"}
        only = {name: nothing._replace(**{part: getattr(form, part)}) for name, part in parts.items()}
        return {name: sharding.bytes_per_device(mesh, part) for name, part in only.items()}

    needs = held(on.learners)
    if sum(needs.values()) <= on.learner_memory:
        return
    counts = (1 << n for n in range(1, MOST_PARTS.bit_length()))
    larger = (Mesh(data=on.learners.data, model=count, rules=on.learners.rules) for count in counts)
    fits = next((mesh for mesh in larger if sum(held(mesh).values()) <= on.learner_memory), None)
    least = f"model={fits.model} would fit" if fits else f"not even model={MOST_PARTS} would fit"
    what = ", ".join(f"{name} {_mb(count)}" for name, count in needs.items() if count > 100)
    raise ShoalError(
        f"each learner would hold {_mb(sum(needs.values()))} ({what}), more than learner_memory="
        f"{on.learner_memory} ({_mb(on.learner_memory)}) allows: {least}"
    )


def begin(on: Cluster, experiment: Experiment) -> LearnerGroup:
    """The group, on a Ray that this process has joined. Raises ShoalError where there is no room for it."""
    from shoal.execution.cluster.learners.crew import RayCrew, Room
    from shoal.execution.cluster.learners.group import LearnerGroup
    from shoal.execution.cluster.learners.member import Task
    from shoal.execution.cluster.roster import Limits

    assert on.learners is not None
    task = Task(
        recipe=experiment.recipe,
        spec=experiment.source.spec,
        seed=experiment.seed,
        mesh=on.learners,
        gpu=on.learner_gpus > 0,
    )
    crew = RayCrew(task, Room(cpus=on.learner_cpus, gpus=on.learner_gpus))
    limits = Limits(patience=on.patience, strikes=on.strikes)
    try:
        return LearnerGroup(crew, experiment.agent, limits)
    except BaseException:
        crew.close()
        raise


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
