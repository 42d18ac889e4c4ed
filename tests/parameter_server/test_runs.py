"""Runs step by step in this process: equal to Local where they should be, and what they promise elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from random import Random
from typing import Any

import jax
import numpy as np
import pytest

from shoal import (
    A2C,
    DQN,
    IMPALA,
    PPO,
    SAC,
    GridWorld,
    Local,
    ParameterServer,
    QLearning,
    ShoalError,
    Trainer,
)
from shoal.execution.parameter_server.asynchronous import AsynchronousRun
from shoal.types import State

UPDATES = 20  # at least
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


def trained(name: str, on: Any, iterations: int | None = None, **options: Any) -> tuple[State, str]:
    """iterations: None are those in which there are UPDATES updates, of which the first give none where there
    is a replay."""
    algorithm, env = CASES[name]
    with Trainer(algorithm, env, on=on, **options) as trainer:
        for _ in range(iterations or UPDATES + 4):
            trainer.train()
        state = jax.device_get(trainer._run.learner.state)
        assert iterations or int(state.updates.low) >= UPDATES
        return state, trainer.fingerprint()


@cache
def local(name: str) -> State:
    return trained(name, Local(envs=8, groups=4))[0]


def close(a: State, b: State) -> None:
    """To 1e-5 of the largest number of each leaf."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(np.asarray(x, np.float64)).max(initial=0) or 1.0
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * scale, err_msg=where)


QUICK = {"ppo", "dqn"}
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", EACH)
def test_synchronous_is_the_single_process(name: str) -> None:
    state, print_of_two = trained(name, INLINE)
    close(local(name)._replace(opt=()), state._replace(opt=()))
    for workers in (1, 4) if name in QUICK else ():
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
    bound = {"staleness": 0} if mode == "stale" else {}
    on = ParameterServer(workers=2, shards=2, envs=8, groups=4, mode=mode, **bound, inline=True)
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
        ({"workers": "2"}, "ParameterServer: workers must be a whole number, got '2'"),
        ({"workers": True}, "ParameterServer: workers must be a whole number, got True"),
        ({"shards": 1.5}, "ParameterServer: shards must be a whole number, got 1.5"),
        ({"mode": "stale", "staleness": 1.5}, "ParameterServer: staleness must be a whole number, got 1.5"),
        ({"mode": 3}, "ParameterServer: mode must be one of 'async', 'stale', 'sync', got 3"),
        ({"compression": None}, "compression must be one of 'none', 'bfloat16', 'top-k', got None"),
        ({"keep": "x"}, "ParameterServer: keep must be a number, got 'x'"),
        ({"cpus": -1}, "ParameterServer: cpus must be at least 0, got -1"),
        ({"staleness": 5}, "staleness=5 is for mode='stale', and mode is 'async'"),
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


class Interrupting:
    """Ctrl-C while shards answer, at the answers whose numbers `when` picks."""

    def __init__(self, trainer: Trainer, when: Callable[[int], bool], every: int = 64) -> None:
        self._servers: Any = trainer._run.learner._servers  # type: ignore[attr-defined]
        self._servers._every, self._wait = every, self._servers._wait
        self._when, self._asked, self.count = when, count(1), 0
        self._servers._wait = self._interrupted

    def _interrupted(self, *what: Any) -> Any:
        if self._when(next(self._asked)):
            self.count += 1
            raise KeyboardInterrupt
        return self._wait(*what)

    def stop(self) -> None:
        self._servers._wait = self._wait


def went_on(trainer: Trainer, iterations: int) -> None:
    for _ in range(iterations):
        while True:
            try:
                trainer.train()
                break
            except KeyboardInterrupt:
                pass


@pytest.mark.parametrize("name", ["ppo", "dqn"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_interrupted_run_goes_on(mode: Any, name: str) -> None:
    """Ctrl-C now and then, in snapshots too, and `train` again: no strike, and each gradient once."""
    algorithm, env = CASES[name]
    on = ParameterServer(workers=2, shards=2, envs=8, groups=4, mode=mode, strikes=1, inline=True)
    with Trainer(algorithm, env, on=on) as trainer:
        for _ in range(6):
            trainer.train()
        expected = trainer.fingerprint()
    with Trainer(algorithm, env, on=on) as trainer:
        random = Random(0)
        ctrl_c = Interrupting(trainer, lambda n: random.random() < 0.1, every=2)
        went_on(trainer, 6)
        ctrl_c.stop()
        assert ctrl_c.count > 1
        if mode == "sync":
            assert trainer.fingerprint() == expected
        else:
            account, state = trainer._run.account, trainer._run.learner.state  # type: ignore[attr-defined]
            assert account.ordered == account.applied + account.in_flight
            assert int(state.updates.low) == account.applied


@pytest.mark.parametrize(("name", "when"), [("ppo", 3), ("dqn", 8), ("ppo", 13), ("dqn", 18)])
def test_a_state_has_nothing_of_an_interrupted_update(name: str, when: int) -> None:
    """Who looks at it, or saves it, gets that of between updates; and the run goes on to the same bits."""
    algorithm, env = CASES[name]
    with Trainer(algorithm, env, on=INLINE) as trainer:
        prints = []
        for _ in range(8):
            trainer.train()
            prints.append(trainer.fingerprint())
    with Trainer(algorithm, env, on=INLINE) as trainer:
        for _ in range(5):
            trainer.train()
        ctrl_c, run = Interrupting(trainer, lambda n: n == when, every=2), trainer._run
        with pytest.raises(KeyboardInterrupt):
            while True:
                trainer.train()
        ctrl_c.stop()
        done: int = run._iteration  # type: ignore[attr-defined]
        assert trainer.fingerprint() == prints[done - 1]
        for number in range(done, 8):
            trainer.train()
            assert trainer.fingerprint() == prints[number]


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_a_checkpoint_has_the_gradients_that_have_arrived(name: str, tmp_path: Any) -> None:
    """They were not applied when the run was interrupted, and their groups are done with them."""
    algorithm, env = CASES[name]
    on = ParameterServer(workers=2, envs=8, groups=4, inline=True)
    with Trainer(algorithm, env, on=on) as trainer:
        for _ in range(8):
            trainer.train()
        run: Any = trainer._run
        ctrl_c = Interrupting(trainer, lambda n: n == 1)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        ctrl_c.stop()
        assert run._arrived
        applied, due = run.account.applied, sum(one.done.computed is not None for one in run._arrived)
        place = trainer.save(tmp_path / "place")
        assert not run._arrived and run.account.applied == applied + due
        clocks = [run._plan.clock(g) for g in range(4)]
    with Trainer.restore(place) as again:
        run = again._run
        assert [run._plan.clock(g) for g in range(4)] == clocks
        assert int(run.learner.state.updates.low) == applied + due


def test_numbers_that_belong_together_are_not_sent_apart() -> None:
    """A table's gradient is errors, and how many steps they are of."""
    on = ParameterServer(workers=1, envs=8, groups=2, inline=True, compression="top-k")
    with pytest.raises(ShoalError, match="use shards=1, and no top-k compression"):
        Trainer(QLearning(), GridWorld(size=3, max_steps=30), on=on)
    with Trainer(A2C(), "CartPole-v1", on=on):
        pass
