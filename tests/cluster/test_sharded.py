"""Ape-X runs: in this process step by step, and on Ray while runners and shards are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal import DQN, PPO, Cluster, Trainer
from shoal.algorithms.dqn_presets import ApexDQN
from shoal.checkpoint import flatten
from shoal.errors import ShoalError
from shoal.execution.cluster import parcels
from shoal.execution.cluster.sharded import ShardedRun
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe


def apex(**changes: Any) -> DQN:
    """For CartPole, from which little is to be learned quickly."""
    return ApexDQN(
        **{
            "rollout_length": 16,
            "capacity": 20_000,
            "batch_size": 64,
            "learning_starts": 500,
            "learning_rate": 1e-3,
            "train_every": 4,
            "target_every": 100,
            "hidden": (64,),
            **changes,
        }
    )


def experiment(algorithm: Any, env: str = "CartPole-v1", **how: Any) -> Experiment:
    return Experiment.of(Recipe(algorithm=algorithm, env={"env": env}, **how), 0)


def started(algorithm: Any, env: str = "CartPole-v1", **on: Any) -> ShardedRun:
    cluster = Cluster(**{"inline": True, "runners": 2, "groups": 4, "envs": 8, "replay_shards": 2, **on})
    run = cluster.start(experiment(algorithm, env))
    assert isinstance(run, ShardedRun)
    return run


def check_account(run: ShardedRun) -> None:
    account = run.account
    assert account.delivered == account.inserted + account.dropped + account.lost + run.in_flight
    assert account.delivered == run._pool.counts.delivered


def test_a_run_in_this_process_learns_and_keeps_the_ratio() -> None:
    on = Cluster(inline=True, runners=2, groups=4, envs=16, replay_shards=2)
    with Trainer(apex(), "CartPole-v1", seed=0, on=on) as trainer:
        run, steps, staleness = trainer._run, 0, 0.0
        assert isinstance(run, ShardedRun)
        while (row := trainer.train())["env_steps"] < 8000:
            steps += row["replay/gradient_steps"]
            staleness = max(staleness, row["staleness/max"])
            check_account(run)
        assert row["episode_return_mean"] > 35  # 22 at random
        assert row["fragments/dropped"] == row["fragments/lost"] == 0
        assert row["replay/rows"] > 7000
        rows = [stock.rows for stock in run._shards._stocks().values()]
        assert min(rows) > 0.9 * max(rows)  # no group is left behind
        assert 0 < staleness <= 100
        # A gradient step for every four environment steps after the first 500, some of which are to come.
        steps += row["replay/gradient_steps"]
        due = (row["env_steps"] - 500) / 4
        assert due - run._tolerance / 64 <= steps <= due


def test_what_is_too_stale_is_dropped_and_counted() -> None:
    run = started(apex(learning_starts=10_000))
    for _ in range(4):
        run.iterate()
    before = run.learner.state.env_steps.low
    run._flow.order(run._room(), run._on_the_way)
    run._pool.tend()  # sends them, with the parameters of now
    sent = sum(len(runner.sent) for runner in run._pool._runners.values())
    run._version, run._published = run._version + 200, False
    iteration = run.iterate()
    assert iteration.metrics["fragments/dropped"] == run.account.dropped > 0
    assert len(iteration.fragments) >= 4  # their episodes count; what they hold is not learned from
    for _ in range(3):
        run.iterate()
    check_account(run)
    assert run.account.dropped == sent and run.learner.state.env_steps.low > before
    run.close()


def test_only_what_observing_looks_at_goes_through_the_learner() -> None:
    plain, normalized = experiment(apex()), experiment(apex(), normalize=True)
    for one, obs in ((plain, False), (normalized, True)):
        form = parcels.form_of(one.agent, one.source.spec, 2)
        seen = parcels.view(form, parcels.looked_at(one.agent, form))
        assert seen.reward and seen.first and seen.obs.policy == obs
        assert not (seen.action or seen.version or seen.terminated or seen.extras["raw_action"])


@pytest.mark.parametrize("how", [{"normalize": True}, {"scale": True}, {}])
def test_observing_a_part_is_observing_the_whole(how: dict[str, Any]) -> None:
    import jax

    from shoal.execution.host import Host

    one = experiment(apex(), **how)
    state = jax.jit(one.agent.init)(key_for(0, "init"))
    policy = one.agent.policy(state)
    host = Host(one, 2)
    host.open(0)
    trajectory = host.collect(0, 0, 0, policy).trajectory
    host.close()
    seen, stored = parcels.parcel(one.agent, one.source.spec, 2)(policy, trajectory)
    observe, form = jax.jit(one.agent.observe), parcels.form_of(one.agent, one.source.spec, 2)
    got, whole = observe(state, parcels.filled(form, seen)), observe(state, trajectory)
    jax.tree.map(np.testing.assert_array_equal, got, whole)
    # Scaled rewards are not known where the data is made: then new rows have the highest priority.
    assert (stored.priorities is None) == how.get("scale", False)
    assert stored.priorities is None or (stored.priorities > 0).all()


@pytest.mark.parametrize(
    "changes", [{"prioritized": False}, {"memory": 8, "burn_in": 4, "sequence_length": 16}]
)
def test_other_replays_can_be_sharded_too(changes: dict[str, Any]) -> None:
    run = started(apex(learning_starts=100, n_step=2, **changes), groups=2, envs=4)
    while not run._version:
        metrics = run.iterate().metrics
    assert np.isfinite(metrics["loss/value"])
    check_account(run)
    run.close()


def test_a_run_goes_on_from_its_checkpoint_whatever_the_shards() -> None:
    algorithm = apex(capacity=600, learning_starts=100)
    run = started(algorithm)
    for _ in range(12):  # more than a ring holds
        run.iterate()
    saved = {f"run/{path}": np.array(array) for path, array in flatten(run.save()).items()}
    check_account(run)
    assert run.in_flight == 0
    other = started(algorithm, replay_shards=1)
    other.learner.state = run.learner.state
    other.load(saved, "run")
    assert other._shards._stocks() == run._shards._stocks()
    assert (other._version, other._requests) == (run._version, run._requests)
    assert [int(x) for x in other._credit] == [int(x) for x in run._credit]
    under_way = {g: run._pool.owed(g) for g in range(4)}
    for g in range(4):  # what was under way is collected again, from where it began
        assert other._flow._ordered[g] == run._flow._ordered[g] - under_way[g]
    for _ in range(5):
        other.iterate()
    check_account(other)
    rings = [ring for shard in other._shards._fleet._shards.values() for ring in shard._rings.values()]  # pyright: ignore
    assert len(rings) == 4 and not any(ring.memory.first[1:].all(axis=None) for ring in rings)
    for ring in rings:  # no seam between what was there and what came
        numbers = np.sort(ring.fragments)
        assert (np.diff(numbers[numbers >= 0]) == 1).all()
    run.close()
    other.close()


@pytest.mark.parametrize(
    ("algorithm", "on", "message"),
    [
        (apex(), {"replay_shards": 5}, "replay_shards must be between 0 and 4, "),
        (PPO(), {}, "replay shards are for algorithms with a replay and staleness"),
        (DQN(), {}, "replay shards are for algorithms with a replay and staleness"),
        (apex(capacity=100), {}, "a replay capacity of 100 is too small for 8 environments"),
    ],
)
def test_what_does_not_fit_is_one_line(algorithm: Any, on: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        started(algorithm, **on)


# On Ray


def pids(fleet: Any) -> dict[int, int]:
    return {number: identity[1] for number, identity in fleet.identities().items()}


def until(done: Callable[[], bool], run: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        run()


def test_training_goes_on_when_runners_and_shards_are_killed(tmp_path: Path) -> None:
    on = Cluster(runners=2, groups=4, envs=8, replay_shards=2)
    with Trainer(apex(learning_starts=200), "CartPole-v1", seed=0, on=on) as trainer:
        run = trainer._run
        assert isinstance(run, ShardedRun)
        shards: Any = run._shards._fleet
        runners: Any = run._pool._fleet
        until(lambda: run._version > 20 and len(pids(shards)) == 2, trainer.train)
        learned, doomed = run._version, pids(shards)[1]
        killing = threading.Timer(0.05, os.kill, (doomed, signal.SIGKILL))  # while it is asked for draws
        killing.start()
        os.kill(pids(runners)[min(pids(runners))], signal.SIGKILL)
        until(lambda: run._shards.restores == 1, trainer.train)
        rows = run._shards.rows()  # of the shard that lives
        until(
            lambda: len(pids(shards)) == 2 and all(s.ready for s in run._shards._shards.values()),
            trainer.train,
        )
        until(lambda: run._version > learned + 40 and run._pool.counts.restarts > 0, trainer.train)
        check_account(run)
        assert run.account.lost == 0 and run.account.dropped == 0
        assert run._shards.rows() > 1.5 * rows
        assert doomed not in pids(shards).values()
        trainer.save(tmp_path / "kept")
        check_account(run)
        stocks, version = run._shards._stocks(), run._version
    with Trainer.restore(tmp_path / "kept") as other:
        again = other._run
        assert isinstance(again, ShardedRun)
        assert again._shards._stocks() == stocks
        assert again._version == version
        until(lambda: again._version > version + 5, other.train)
        check_account(again)


CARTPOLE = {
    "rollout_length": 16,
    "capacity": 100_000,
    "batch_size": 64,
    "learning_starts": 1_000,
    "learning_rate": 1e-3,
    "anneal_steps": 80_000,
    "train_every": 2,
    "target_every": 128,
    "hidden": (128, 128),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_cartpole_is_solved_under_a_killer(seed: int) -> None:
    """Every second a runner or a shard is killed, never the last runner, a shard only when all are well."""
    rng, stop = np.random.default_rng(seed), threading.Event()
    on = Cluster(runners=2, groups=4, envs=16, replay_shards=2)
    with Trainer(ApexDQN(**CARTPOLE), "CartPole-v1", seed=seed, on=on) as trainer:
        run = trainer._run
        assert isinstance(run, ShardedRun)
        runners: Any = run._pool._fleet
        shards: Any = run._shards._fleet
        kills = {"runner": 0, "shard": 0}

        def killer() -> None:
            while not stop.wait(1.0):
                alive = pids(runners) if rng.random() < 0.8 else {}
                kind, victims = "runner", list(alive.values())
                if not alive and all(s.ready for s in run._shards._shards.values()):
                    kind, victims = "shard", list(pids(shards).values())
                if len(victims) > 1:
                    kills[kind] += 1
                    try:
                        os.kill(int(rng.choice(victims)), signal.SIGKILL)
                    except ProcessLookupError:
                        kills[kind] -= 1

        thread = threading.Thread(target=killer, daemon=True)
        thread.start()
        worst, steps, reached, begun = 0.0, 0, 0.0, time.monotonic()
        try:
            while reached < 475.0 and steps < 80_000:
                row = trainer.train()
                worst = max(worst, row["staleness/max"])
                if row["env_steps"] // 10_000 > steps // 10_000:
                    reached = trainer.evaluate(episodes=20).mean
                steps = row["env_steps"]
        finally:
            stop.set()
            thread.join()
        seconds = time.monotonic() - begun
        print(f"seed {seed}: {trainer.summary()}, {kills}, restores {run._shards.restores}, {run.account},")
        print(f"evaluated {reached}, staleness {worst}, {steps / seconds:.0f} steps/s")
        check_account(run)
        assert worst <= 100
        assert reached >= 475.0
