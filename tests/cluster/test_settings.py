"""What a Cluster refuses before anything starts, and what its settings mean."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shoal import DQN, PPO, Cluster, Local, ShoalError
from shoal.execution.cluster.elastic import Decision
from shoal.execution.cluster.inline import InlineFleet
from shoal.execution.cluster.luggage import pack, unpack
from shoal.execution.cluster.pool import Limits, Pool
from shoal.execution.cluster.runner import Collector
from shoal.execution.cluster.synchronous import SynchronousRun
from shoal.execution.host import Host
from shoal.execution.learner import LearnerHere
from shoal.fingerprint import fingerprint
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runners": 0}, "runners must be 'auto' or a number of at least 1, got 0"),
        ({"runners": "many"}, "runners must be 'auto' or a number of at least 1, got 'many'"),
        ({"runners": "auto"}, "say how many groups there are: groups="),
        ({"runners": "auto", "groups": 4, "strategy": "PACK"}, "a placement group has one size"),
        ({"runners": "auto", "groups": 4, "min_runners": 3, "max_runners": 2}, "between 1 and 2, got 3"),
        ({"strategy": "PAKC"}, "did you mean 'PACK'?"),
        ({"envs": 6, "groups": 4}, "groups=4 must divide envs=6"),
        ({"groups": 2, "replay_shards": 3}, "replay_shards must be between 0 and 2, got 3"),
        ({"groups": 2, "per_update": 3}, "per_update must be between 1 and 2, got 3"),
        ({"policy_actors": 1, "inline": True}, "not inline"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError) as refused:
        Cluster(**settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def experiment(algorithm: Any) -> Experiment:
    return Experiment.of(Recipe(algorithm=algorithm, env={"env": "CartPole-v1", "journal": "journal"}), 0)


@pytest.mark.parametrize(
    ("settings", "algorithm", "message"),
    [
        ({"policy_actors": 1}, PPO(), "policy actors act for several groups at once"),
        ({"policy_actors": 1}, DQN(staleness=4), "has no replay"),
        ({"replay_shards": 1}, DQN(), "replay shards are for algorithms with a replay and staleness"),
    ],
)
def test_what_does_not_fit_the_algorithm_is_refused(
    settings: dict[str, Any], algorithm: Any, message: str
) -> None:
    with pytest.raises(ShoalError, match=message):
        Cluster(**settings).start(experiment(algorithm))


def test_the_number_of_runners_may_change_in_mid_training() -> None:
    """And the bits stay."""
    # As in test_trainer_cluster: compiled once for both.
    made = experiment(PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,)))
    wanted = iter([2, 3, 3, 1, 4, 2])

    def look(runners: int, seconds: float, waiting: float, idle: float) -> Decision | None:
        return Decision(next(wanted), "so it is wanted")

    fleet = InlineFleet(lambda: Collector(Host(made, 1)))
    pool = Pool(fleet, dict.fromkeys(range(4)), 1, Limits(), elastic=look)
    run = SynchronousRun(
        made, LearnerHere.new(made.agent, key_for(made.seed, "init")), pool, 4, 1, pool.close
    )
    there = [run.iterate() for _ in range(6)]
    assert [int(iteration.spent["runners"]) for iteration in there] == [1, 2, 3, 3, 1, 4]
    assert "runners 1 -> 2: so it is wanted" in [event for i in there for event in i.events]
    local = Local(envs=4, groups=4).start(made)
    for _ in there:
        local.iterate()
    assert fingerprint(local.learner.state) == fingerprint(run.learner.state)
    run.close()


def test_code_travels_with_its_places_or_is_refused() -> None:
    thing = pack({"add": lambda x: x + 1})
    assert unpack(thing, gpu=True)["add"](1) == 2
    with pytest.raises(ShoalError, match="cannot be sent to env runners"):
        pack({"lock": threading.Lock()})
