"""Runs step by step in this process: equal to Local where they should be, and what they promise elsewhere."""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import Any

import jax
import numpy as np
import pytest

from shoal import A2C, DQN, IMPALA, PPO, SAC, Local, ParameterServer, ShoalError, Trainer
from shoal.execution.parameter_server.asynchronous import AsynchronousRun
from shoal.types import State

UPDATES = 20
CASES: dict[str, tuple[Any, str]] = {
    "ppo": (PPO(rollout_length=8, epochs=2, minibatches=2, hidden=(8,), anneal_steps=2_000), "CartPole-v1"),
    "impala": (IMPALA(rollout_length=8, hidden=(8,), max_grad_norm=1.0), "CartPole-v1"),
    "dqn": (
        DQN(
            rollout_length=4,
            hidden=(8,),
            learning_starts=64,
            batch_size=16,
            train_every=32,
            target_every=5,
            max_grad_norm=0.5,
            prioritized=True,
        ),
        "CartPole-v1",
    ),
    "sac": (
        SAC(rollout_length=4, hidden=(8,), learning_starts=64, batch_size=16, train_every=32),
        "Pendulum-v1",
    ),
}
INLINE = ParameterServer(workers=2, shards=2, envs=8, groups=4, mode="sync", inline=True)


def trained(name: str, on: Any, updates: int = UPDATES, **options: Any) -> tuple[State, str]:
    algorithm, env = CASES[name]
    with Trainer(algorithm, env, on=on, **options) as trainer:
        for _ in range(updates):
            trainer.train()
        return jax.device_get(trainer._run.learner.state), trainer.fingerprint()


@cache
def local(name: str) -> State:
    return trained(name, Local(envs=8, groups=4))[0]


def close(a: State, b: State) -> None:
    """To 1e-5 of the largest number of each leaf."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(np.asarray(x, np.float64)).max(initial=0) or 1.0
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * scale, err_msg=where)


@pytest.mark.parametrize("name", CASES)
def test_synchronous_is_the_single_process(name: str) -> None:
    state, print_of_two = trained(name, INLINE)
    close(local(name)._replace(opt=()), state._replace(opt=()))
    for workers in (1, 4) if name in ("ppo", "dqn") else ():
        on = ParameterServer(**{**INLINE.__dict__, "workers": workers})
        assert trained(name, on)[1] == print_of_two


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_the_norm_that_is_told_is_the_whole_gradients(name: str) -> None:
    algorithm, env = CASES[name]
    told = []
    for on in (Local(envs=8, groups=4), INLINE):
        with Trainer(algorithm, env, on=on) as trainer:
            results = [trainer.train() for _ in range(4)]
        told.append([x["loss/gradient_norm"] for x in results if "loss/gradient_norm" in x])
    assert len(told[0]) > 1
    np.testing.assert_allclose(told[1], told[0], rtol=1e-4)


def test_with_transforms_and_one_shard() -> None:
    how = {"normalize_observations": True, "scale_rewards": True}
    state, _ = trained("ppo", ParameterServer(**{**INLINE.__dict__, "shards": 1}), 10, **how)
    close(trained("ppo", Local(envs=8, groups=4), 10, **how)[0], state)


def test_parts_that_do_not_divide_are_refused() -> None:
    on = ParameterServer(workers=1, shards=1, envs=6, groups=3, mode="sync", inline=True)
    with pytest.raises(ShoalError, match="groups=3 does not divide its 16 rows: choose other groups"):
        Trainer(CASES["dqn"][0], "CartPole-v1", on=on)


@pytest.mark.parametrize("mode", ["async", "stale"])
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_every_gradient_is_applied_once(name: str, mode: Any) -> None:
    algorithm, env = CASES[name]
    on = ParameterServer(workers=2, shards=2, envs=8, groups=4, mode=mode, staleness=0, inline=True)
    with Trainer(algorithm, env, on=on) as trainer:
        run = trainer._run
        assert isinstance(run, AsynchronousRun)
        for _ in range(12):
            result = trainer.train()
            account = run.account
            assert account.ordered == account.applied + account.in_flight + account.lost
            assert result["gradients/applied"] == account.applied
        updates = int(trainer._run.learner.state.updates.low)
        assert updates == account.applied > 5
        assert 0 <= result["staleness/mean"] <= result["staleness/max"] <= 3  # four groups, one order each
        assert run.learner.env_steps == result["env_steps"]


@pytest.mark.parametrize("bound", [0, 2])
def test_nobody_runs_further_ahead_than_the_bound(bound: int) -> None:
    on = ParameterServer(workers=3, envs=6, mode="stale", staleness=bound, inline=True)
    with Trainer(A2C(rollout_length=4, hidden=(8,)), "CartPole-v1", on=on) as trainer:
        run = trainer._run
        assert isinstance(run, AsynchronousRun)
        fleet, plan, most = run._pool._fleet, run._plan, 0
        wait, take, turn = fleet.wait, plan.take, count()

        def one_only(tickets: Any, timeout: float) -> Any:
            """One runner answers all the time, the others hardly ever."""
            ready = wait(tickets, timeout)
            return ready[-1:] if next(turn) % 9 else ready

        def taken(group: int, *what: Any) -> Any:
            nonlocal most
            done = take(group, *what)
            clocks = [plan.clock(g) for g in range(3)]
            most = max(most, max(clocks) - min(clocks))
            return done

        fleet.wait, plan.take = one_only, taken  # type: ignore[method-assign]
        for _ in range(20):
            trainer.train()
        assert most == bound + 1  # done with, where it might begin at a distance of `bound`


def test_a_resumed_run_goes_on(tmp_path: Any) -> None:
    for name, mode in (("ppo", "sync"), ("dqn", "sync"), ("ppo", "async"), ("dqn", "async")):
        algorithm, env = CASES[name]
        on = ParameterServer(workers=2, shards=2, envs=8, groups=4, mode=mode, inline=True)
        with Trainer(algorithm, env, on=on) as trainer:
            for _ in range(6):
                trainer.train()
            place = trainer.save(tmp_path / f"{name}-{mode}")
            trainer.train()
            expected, steps = trainer.fingerprint(), trainer._run.learner.env_steps
        with Trainer.restore(place) as again:
            again.train()
            if mode == "sync":
                assert again.fingerprint() == expected
            assert again._run.learner.env_steps >= steps - 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "asynch"}, "unknown mode 'asynch'; did you mean 'async'"),
        ({"compression": "topk"}, "unknown compression 'topk'; did you mean 'top-k'"),
        ({"shards": 0}, "ParameterServer: shards must be at least 1, got 0"),
        ({"workers": 0}, "ParameterServer: workers must be at least 1, got 0"),
        ({"keep": 0.0}, "keep must be greater than 0 and at most 1"),
        ({"envs": 7, "groups": 2}, "groups=2 must divide envs=7"),
        ({"mode": "sync", "compression": "top-k"}, "compression='top-k' leaves to a worker"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        ParameterServer(**settings)


def test_compressed_gradients_take_less() -> None:
    taken = {}
    for kind in ("none", "bfloat16", "top-k"):
        on = ParameterServer(workers=2, shards=2, envs=8, compression=kind, keep=0.1, inline=True)
        with Trainer(CASES["ppo"][0], "CartPole-v1", on=on) as trainer:
            taken[kind] = trainer.train()["gradients/bytes"]
    assert taken["bfloat16"] == taken["none"] / 2
    assert taken["top-k"] == pytest.approx(taken["none"] / 5, rel=0.1)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_interrupted_run_goes_on(mode: Any) -> None:
    """Ctrl-C while shards answer, now and then, and `train` again."""
    algorithm, env = CASES["ppo"]
    on = ParameterServer(workers=2, shards=2, envs=8, groups=4, mode=mode, inline=True)
    with Trainer(algorithm, env, on=on) as trainer:
        for _ in range(4):
            trainer.train()
        expected = trainer.fingerprint()
    with Trainer(algorithm, env, on=on) as trainer:
        learner: Any = trainer._run.learner
        wait, asked, interrupted = learner._servers._wait, count(), 0

        def interrupting(*what: Any) -> Any:
            if next(asked) % 23 == 22:
                raise KeyboardInterrupt
            return wait(*what)

        learner._servers._wait = interrupting
        for _ in range(4):
            while True:
                try:
                    trainer.train()
                    break
                except KeyboardInterrupt:
                    interrupted += 1
        learner._servers._wait = wait
        assert interrupted > 1
        if mode == "sync":
            assert trainer.fingerprint() == expected
        else:
            account = trainer._run.account  # type: ignore[attr-defined]
            assert account.ordered == account.applied + account.in_flight
            assert int(learner.state.updates.low) == account.applied
