"""Policy actors act for runners that only step: the same fragments, also when an actor dies or hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from shoal import Cluster, ShoalError
from shoal.algorithms.impala import IMPALA
from shoal.execution.cluster.inference import Answer, Ask, Batcher
from shoal.execution.cluster.orders import Order
from shoal.execution.cluster.runner import Collector
from shoal.execution.cluster.stepper import Stepper
from shoal.execution.host import Host
from shoal.execution.learner import LearnerHere
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe
from shoal.types import Observation

SIZE = 2


def experiment(**settings: Any) -> Experiment:
    algorithm = IMPALA(rollout_length=8, hidden=(16,), **settings)
    return Experiment.of(Recipe(algorithm=algorithm, env={"env": "CartPole-v1", "journal": "journal"}), 0)


def stepper(made: Experiment, ask: Callable[[Ask, Any], Answer]) -> Stepper:
    made_here = Stepper()
    made_here.prepare(dict(made.recipe.env), 8, jax.device_get(made.agent.begin(SIZE)), 0, SIZE, ask)
    return made_here


@pytest.mark.parametrize("memory", [0, 8])
def test_a_stepper_collects_what_an_env_runner_collects(memory: int) -> None:
    """Alone in its batch, a group gets the very bits; also after it moved with its state."""
    made = experiment(memory=memory)
    params = made.agent.policy(made.agent.init(key_for(0, "init")))
    batcher = Batcher(made.agent, SIZE)
    runner = Collector(Host(made, SIZE))
    other = stepper(made, lambda ask, _: Answer(*batcher(params, [ask])[0], ask.version))
    state: Any = None
    for fragment in range(6):
        lease = fragment // 3
        if fragment == 3:
            other.drop(1)
        order = Order(1, fragment, lease, 7, state if fragment == 3 else None)
        here, there = runner.collect(order._replace(lease=0), params), other.follow(order, [None])
        state = there[0].after
        jax.tree.map(np.testing.assert_array_equal, here[1], there[1])
        jax.tree.map(np.testing.assert_array_equal, here[0].after["carry"], there[0].after["carry"])


def test_groups_that_ask_together_get_what_each_would_get_alone() -> None:
    made = experiment()
    params = made.agent.policy(made.agent.init(key_for(0, "init")))
    batcher, rng = Batcher(made.agent, SIZE), np.random.default_rng(0)

    def ask(group: int) -> Ask:
        obs = Observation(rng.normal(size=(SIZE, 4)).astype(np.float32))
        still = np.zeros(SIZE, np.float32)
        return Ask(obs, still.astype(bool), still, (), key_for(0, "act", group), 3 * group, 2 * group, 0)

    asks = [ask(group) for group in range(3)]
    for alone, together in zip([batcher(params, [a])[0] for a in asks], batcher(params, asks), strict=True):
        assert (alone[0] == together[0]).all()
        np.testing.assert_allclose(alone[2]["log_prob"], together[2]["log_prob"], rtol=1e-5)


def test_plans_that_wait_for_everybody_are_refused() -> None:
    from shoal import PPO

    made = Experiment.of(Recipe(algorithm=PPO(), env={"env": "CartPole-v1"}), 0)
    with pytest.raises(ShoalError, match="an algorithm that allows staleness"):
        Cluster(policy_actors=1).start(made)


def test_an_actor_is_killed_and_its_successor_hangs() -> None:
    """Ray restarts the actor; what was asked is asked again; the account balances and training goes on."""
    from shoal.execution.cluster import session
    from shoal.execution.cluster.asynchronous import AsynchronousRun
    from shoal.execution.cluster.fleet import Placement, RayFleet, steppers
    from shoal.execution.cluster.pool import Limits, Pool

    made = experiment()
    with session.join(cpus=2):
        crew = steppers(made, SIZE, 1, 0.5, 0.0)
        actors = crew.beside
        assert actors is not None
        pool = Pool(RayFleet(crew, Placement(cpus=0.5)), dict.fromkeys(range(4)), 2, Limits())
        run = AsynchronousRun(
            made, LearnerHere.new(made.agent, key_for(made.seed, "init")), pool, 4, SIZE, 2, 1, pool.close
        )
        present: list[int] = []

        def another_acts() -> bool:
            now = [pid for _, pid, _ in actors.identities()]
            return bool(now) and now != present

        try:
            for how in (signal.SIGKILL, signal.SIGSTOP, None):
                begun = time.monotonic()
                while not another_acts():
                    run.iterate()
                    assert time.monotonic() < begun + 60
                present = [pid for _, pid, _ in actors.identities()]
                if how is not None:
                    os.kill(present[0], how)
            run.iterate()
            account = run.account
            assert account.learned > 0 and account.delivered >= account.learned + account.dropped
            assert actors.restarts == 2
        finally:
            run.close()
