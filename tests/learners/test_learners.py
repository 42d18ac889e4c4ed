"""Learners as processes: what they learn is what one learns, also where they are killed. Real Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from threading import Timer
from typing import Any

import jax
import numpy as np
import pytest
from learner_cases import CASES, Orders, distance, experiment, fingerprint, follow, learned_here, recorded

from shoal import PPO, Cluster, Local, Mesh, ShoalError, Trainer
from shoal.execution.cluster import learners, session
from shoal.execution.cluster.learners.group import LearnerGroup
from shoal.execution.unroll import fragment_form
from shoal.recipe import Experiment, Recipe

pytestmark = pytest.mark.xdist_group("ray")
UPDATES = 20


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with session.join(cpus=4):
        yield


def settings(mesh: Mesh, **more: Any) -> Cluster:
    return Cluster(runners=1, envs=8, groups=1, cpus=0.25, learner_cpus=0.25, learners=mesh, **more)


@contextmanager
def group(made: Experiment, mesh: Mesh) -> Iterator[LearnerGroup]:
    learner = learners.begin(settings(mesh), made)
    try:
        yield learner
    finally:
        learner.close()


def hit(learner: LearnerGroup, member: int, number: signal.Signals = signal.SIGKILL) -> None:
    _, pid, _ = learner._crew.identities()[member]  # type: ignore[attr-defined]
    os.kill(pid, number)


def learned(made: Experiment, mesh: Mesh, orders: Orders) -> tuple[Any, list[Any]]:
    with group(made, mesh) as learner:
        metrics = follow(learner, orders)
        state = learner.state
        assert learner.env_steps > 0 and not learner.losses.count
        assert distance(learner.acting(), jax.jit(made.agent.policy)(state)) < 1e-6
        return state, metrics


def same_to_rounding(one: tuple[Any, list[Any]], other: tuple[Any, list[Any]]) -> None:
    assert distance(one[0].params, other[0].params) < 1e-5
    assert distance((one[0].env_steps, one[0].updates), (other[0].env_steps, other[0].updates)) == 0
    for here, there in zip(one[1], other[1], strict=True):
        for name, figure in here.items():
            np.testing.assert_allclose(there[name], figure, rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_learn_as_one(ray_here: None) -> None:
    """By data; the same bits again, also where one is killed on the way; and with a replay."""
    made = experiment("ppo")
    orders = recorded(made, UPDATES)
    here = learned_here(made, orders)
    state, metrics = learned(made, Mesh(data=2), orders)
    same_to_rounding(here, (state, metrics))
    with group(made, Mesh(data=2)) as learner:
        again = follow(learner, orders[:7])
        hit(learner, 1)
        again += follow(learner, orders[7:])
        assert fingerprint(learner.state) == fingerprint(state) and fingerprint(again) == fingerprint(metrics)
        told = learner.news()
        assert learner.losses.count == 1 and "learner 1 was lost" in told.events[0]
        assert told.figures["learner_recovery"] > 0 and told.figures["learner_peak_mb"] > 50
    made = experiment("dqn")
    orders = recorded(made, 8)
    same_to_rounding(learned_here(made, orders), learned(made, Mesh(data=2), orders))


MESHES = [Mesh(data=2), Mesh(data=4), Mesh(model=2), Mesh(model=4), Mesh(data=2, model=2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_mesh(ray_here: None, name: str) -> None:
    """After 20 updates the parameters of one learner, to 1e-5; and on repetition from the same state the same
    bits. (In other processes: where they are lost.)"""
    made = experiment(name)
    orders = recorded(made, UPDATES)
    here = learned_here(made, orders)
    for mesh in MESHES:
        with group(made, mesh) as learner:
            first = learner.state
            one = follow(learner, orders), learner.state
            learner.state = first
            assert fingerprint((follow(learner, orders), learner.state)) == fingerprint(one), mesh
        same_to_rounding(here, one[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_any_member_at_any_time(ray_here: None, name: str) -> None:
    """Killed or stopped while orders are followed, at moments that know nothing of them: during updates,
    between them, and during what brings back what was lost."""
    made, random = experiment(name), Random(5)
    orders = recorded(made, UPDATES)
    for mesh in (Mesh(data=2), Mesh(data=2, model=2)):
        expected = fingerprint(learned(made, mesh, orders)[0])
        with group(made, mesh) as learner:
            for number, order in enumerate(orders):
                if number % (len(orders) // 3) == 2:
                    how = random.choice([signal.SIGKILL, signal.SIGSTOP])
                    blow = Timer(random.uniform(0, 0.02), hit, (learner, random.randrange(mesh.size), how))
                    blow.start()
                    follow(learner, [order])
                    blow.join()
                else:
                    follow(learner, [order])
            assert fingerprint(learner.state) == expected
            assert learner.losses.count >= 3


SMALL = PPO(rollout_length=16, epochs=1, minibatches=2, hidden=(16,))


@pytest.mark.slow
def test_a_run_moves_between_meshes(ray_here: None, tmp_path: Any) -> None:
    """Saved with two learners, it goes on with four, with one, with none: the same run to rounding; with two
    to the bit. It is evaluated, and its configuration is what it was given."""
    on = settings(Mesh(data=2))
    with Trainer(SMALL, "CartPole-v1", on=on, run_dir=tmp_path / "run", checkpoint_seconds=None) as trainer:
        trainer.fit(200)
        place = trainer.save(tmp_path / "place")
        assert trainer.config["on"]["learners"] == {"data": 2, "model": 1}
        assert trainer.evaluate(2).mean > 0
        steps = trainer.train()["env_steps"]
        prints, params = trainer.fingerprint(), trainer._run.learner.state.params
    with Trainer.restore(place) as trainer:
        assert trainer.train()["env_steps"] == steps and trainer.fingerprint() == prints
    for other in (settings(Mesh(model=2)), settings(Mesh(data=4)), Local(envs=8)):
        with pytest.warns(UserWarning, match="to rounding"):
            trainer = Trainer.restore(place, on=other)
        with trainer:
            assert trainer.train()["env_steps"] == steps
            assert distance(trainer._run.learner.state.params, params) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["impala", "apex"])
def test_asynchronous_runs(ray_here: None, name: str) -> None:
    """A learner is killed in each; training goes on, and the run tells of it."""
    from shoal import IMPALA, ApexDQN

    algorithm: Any = IMPALA(rollout_length=16, hidden=(16,))
    more: dict[str, Any] = {"runners": 1, "envs": 8, "groups": 2, "cpus": 0.25, "learner_cpus": 0.25}
    if name == "apex":
        algorithm = ApexDQN(learning_starts=64, batch_size=16, hidden=(16,))
        more["replay_shards"] = 1
    with Trainer(algorithm, "CartPole-v1", on=Cluster(**more, learners=Mesh(data=2))) as trainer:
        events: list[str] = []
        while not trainer._run.learner._stand.log:  # type: ignore[attr-defined]
            trainer.train()
        hit(trainer._run.learner, 0)  # type: ignore[arg-type]
        for _ in range(3):
            before = trainer._run.learner.env_steps
            assert trainer.train()["env_steps"] > before
            events += trainer.events
        assert any("the learners stand where they stood" in event for event in events)


def test_refused_before_anything_starts() -> None:
    def line(algorithm: Any, on: Callable[[], Cluster]) -> str:
        with pytest.raises(ShoalError) as caught:
            Trainer(algorithm, "CartPole-v1", on=on())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    held = session._ray
    assert "data=3 must divide" in line(SMALL, lambda: settings(Mesh(data=3)))
    assert "not inline" in line(SMALL, lambda: settings(Mesh(data=2), inline=True))
    assert "learner_gpus must be 0 or 1" in line(SMALL, lambda: settings(Mesh(data=2), learner_gpus=2))
    assert "say learners=Mesh" in line(SMALL, lambda: Cluster(learner_memory=1000))
    assert "say learners=Mesh" in line(SMALL, lambda: Cluster(learner_cpus=2.0))
    text: Any = "data=2"
    assert "such as Mesh(data=...) or None, got 'data=2'" in line(SMALL, lambda: Cluster(learners=text))
    for wrong, told in (
        ({"learner_memory": "1GB"}, "learner_memory must be a whole number or None, got '1GB'"),
        ({"learner_memory": -5}, "learner_memory must be at least 1, got -5"),
        ({"learner_cpus": -1}, "learner_cpus must be at least 0, got -1"),
        ({"learner_gpus": 1.0}, "learner_gpus must be a whole number, got 1.0"),
        ({"patience": -1.0}, "patience must be greater than 0, got -1.0"),
        ({"strikes": 0}, "strikes must be at least 1, got 0"),
    ):
        assert told in line(SMALL, lambda wrong=wrong: Cluster(learners=Mesh(data=2), **wrong))
    rules: Any = 5
    assert "rules must be a tuple of pairs, got 5" in line(SMALL, lambda: settings(Mesh(rules=rules)))
    large = PPO(rollout_length=16, epochs=1, minibatches=2, hidden=(256, 256))
    told = line(large, lambda: settings(Mesh(data=2), learner_memory=1_500_000))
    assert "parameters 0.5 MB, optimizer 1.1 MB, gradients 0.5 MB" in told and "model=2 would fit" in told
    assert session._ray is held


def test_what_is_not_there_is_told(ray_here: None) -> None:
    with pytest.raises(ShoalError, match="asks for 2 GPU") as caught:
        Trainer(SMALL, "CartPole-v1", on=settings(Mesh(data=2), learner_gpus=1))
    assert "\n" not in str(caught.value)


def peak(algorithm: Any, mesh: Mesh) -> float:
    """MB that a learner's process has had at most, the second time, when nothing is compiled any more."""
    made = Experiment.of(Recipe(algorithm=algorithm, env={"env": "CartPole-v1"}), 0)
    form = fragment_form(made.agent, made.source.spec, 8)
    trajectory = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), form)
    found = 0.0
    for _ in range(2):
        with group(made, mesh) as learner:
            for number in range(3):
                learner.learn(trajectory, np.array([0, number], np.uint32))
            found = learner.news().figures["learner_peak_mb"]
    return found


@pytest.mark.slow
def test_a_model_too_large_for_one(ray_here: None) -> None:
    """It is refused with the numbers, and trains where it is split over two, each with half of it."""
    large = replace(SMALL, hidden=(1024,) * 5, minibatches=1)
    limit = 100_000_000
    with pytest.raises(ShoalError, match=r"would hold 13\d.* allows: model=2 would fit"):
        Trainer(large, "CartPole-v1", on=settings(Mesh(), learner_memory=limit))
    with Trainer(large, "CartPole-v1", on=settings(Mesh(model=2), learner_memory=limit)) as trainer:
        first = trainer.train()
        assert trainer.train()["env_steps"] > first["env_steps"]
        assert first["timing/learner_peak_mb"] > 100
    base, one, two = peak(SMALL, Mesh()), peak(large, Mesh()), peak(large, Mesh(model=2))
    print(f"MB at most: {base:.0f} with a small model, {one:.0f} whole, {two:.0f} split in two")
    assert 0.3 < (two - base) / (one - base) < 0.65
