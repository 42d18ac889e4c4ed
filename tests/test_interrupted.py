"""Ctrl-C in Python, and environments that raise: a run goes on to the same bits, or refuses to."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

from shoal import DQN, PPO, Cluster, Compiled, Local, ShoalError, Trainer
from shoal.rundir import RunDir
from shoal.seeds import train_seeds
from shoal.signals import held

ON = Local(envs=4, groups=2)
INLINE = Cluster(runners=1, envs=4, groups=2, inline=True, strikes=1)
SMALL = PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,))
ALGORITHMS = {
    "ppo": SMALL,
    "dqn": DQN(rollout_length=8, hidden=(8,), batch_size=8, learning_starts=32, prioritized=True),
}


class Scripted(gym.Wrapper):
    """CartPole that calls what stands in `at` for the number of its step, of all environments' together."""

    count = 0
    at: ClassVar[dict[int, Callable[[], None]]] = {}

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))

    def step(self, action: Any) -> Any:
        Scripted.count += 1
        Scripted.at.get(Scripted.count, lambda: None)()
        return super().step(action)


def script(at: dict[int, Callable[[], None]]) -> None:
    """From now on; a Trainer plays a few steps before its first iteration."""
    Scripted.count, Scripted.at = 0, at


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[Callable[[], None]]:
    """What Ctrl-C does, with Python's own handler as a notebook has it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    script({})
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ctrl_c_changes_no_bit(name: str, ctrl_c: Callable[[], None], tmp_path: Path) -> None:
    """Of three iterations of about 32 steps the second is interrupted; saved then, it goes on."""
    with Trainer(ALGORITHMS[name], Scripted, on=ON) as trainer:
        for _ in range(3):
            trainer.train()
        undisturbed = trainer.fingerprint()
    with Trainer(ALGORITHMS[name], Scripted, on=ON, run_dir=tmp_path / "run") as trainer:
        script({45: ctrl_c})
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(1000)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        place = trainer.save(tmp_path / "place")
        assert trainer.train()["iteration"] == 3
        assert trainer.fingerprint() == undisturbed
    with Trainer.restore(place, env=Scripted) as trainer:
        trainer.train()
        assert trainer.fingerprint() == undisturbed
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3


def loose() -> None:
    raise RuntimeError("a wire is loose")


@pytest.mark.parametrize("why", ["Ctrl-C twice", "the environment raises"])
def test_an_iteration_that_broke_off(why: str, ctrl_c: Callable[[], None], tmp_path: Path) -> None:
    with Trainer(ALGORITHMS["ppo"], Scripted, on=ON) as trainer:
        place = trainer.save(tmp_path / "place")
        twice = why == "Ctrl-C twice"
        script({45: ctrl_c, 46: ctrl_c} if twice else {45: loose})
        with pytest.raises(KeyboardInterrupt if twice else ShoalError):
            trainer.fit(1000)
        for act in (trainer.train, lambda: trainer.save(tmp_path / "broken")):
            with pytest.raises(ShoalError, match="broke off in its middle"):
                act()
        assert not (tmp_path / "broken").exists()
        assert len(trainer.evaluate(3).returns) == 3
    with Trainer.restore(place, env=Scripted) as trainer:
        assert trainer.train()["iteration"] == 1


def test_a_compiled_program_that_broke_off(tmp_path: Path) -> None:
    """While it ran; its replay was given away to it."""
    with Trainer(ALGORITHMS["dqn"], "jax:CartPole-v1", on=Compiled(envs=4)) as trainer:
        trainer.train()
        run: Any = trainer._run
        run._iterate = lambda *_: loose()
        with pytest.raises(RuntimeError, match="a wire"):
            trainer.train()
        with pytest.raises(ShoalError, match="broke off in its middle"):
            trainer.save(tmp_path / "broken")


@pytest.mark.parametrize(
    "on", [ON, Cluster(runners=1, envs=4, groups=2, inline=True)], ids=["here", "cluster"]
)
def test_an_evaluation_that_broke_off(on: Any, tmp_path: Path) -> None:
    """The iteration before it was learned from, and its row is not written."""
    with Trainer(SMALL, Scripted, on=on, run_dir=tmp_path / "run", evaluate_every=40) as trainer:
        trainer.train()
        trainer._judge._here = lambda *_: loose()  # type: ignore[assignment]
        trainer._judge._evaluator = None
        with pytest.raises(RuntimeError, match="a wire"):
            trainer.train()
        for act in (trainer.train, trainer.save):
            with pytest.raises(ShoalError, match="broke off in its middle"):
                act()
    with Trainer.resume(tmp_path / "run", env=Scripted, on=ON) as trainer:
        trainer.fit(100)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["iteration"] for row in rows] == list(range(1, len(rows) + 1))


class Interrupted:
    """A learner that is interrupted once, after it has learned."""

    def __init__(self, learner: Any) -> None:
        self._learner, self.due = learner, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def learn(self, *what: Any) -> Any:
        learned = self._learner.learn(*what)
        if self.due:
            self.due = False
            raise KeyboardInterrupt
        return learned


def test_a_cluster_that_learns_here_learns_nothing_twice() -> None:
    with Trainer(SMALL, "CartPole-v1", on=INLINE) as trainer:
        run: Any = trainer._run
        run.learner = Interrupted(run.learner)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        with pytest.raises(ShoalError, match="broke off in its middle"):
            trainer.train()


def test_a_cluster_is_not_saved_in_the_middle_of_an_iteration(tmp_path: Path) -> None:
    """One group's environment has raised, the other's fragment has arrived: that one is ahead."""
    with Trainer(SMALL, Scripted, on=INLINE) as trainer:
        trainer.train()
        script({30: loose})
        with pytest.raises(ShoalError, match="a wire is loose"):
            trainer.train()
        with pytest.raises(ShoalError, match="broke off in its middle, and can't be saved there"):
            trainer.save(tmp_path / "place")
        trainer.train()
        trainer.save(tmp_path / "place")
        trainer.train()
        further = trainer.fingerprint()
    with Trainer.restore(tmp_path / "place", env=Scripted) as trainer:
        trainer.train()
        assert trainer.fingerprint() == further


@pytest.mark.parametrize("when", ["at once", "while rows are written"])
def test_several_seeds(when: str, ctrl_c: Callable[[], None], tmp_path: Path, monkeypatch: Any) -> None:
    """Ctrl-C in their second iteration: all are saved after it. Twice: those whose rows are written."""
    taken = count(1)
    before = Trainer._take

    def take(self: Trainer, *what: Any) -> Any:
        if next(taken) == 4:
            ctrl_c()
            if when == "while rows are written":
                ctrl_c()
        return before(self, *what)

    monkeypatch.setattr(Trainer, "_take", take)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(
            SMALL, "jax:CartPole-v1", (0, 1), steps=1000, on=Compiled(envs=4), run_dir=tmp_path / "runs"
        )
    monkeypatch.undo()
    for seed, saved in enumerate([True, when == "at once"]):
        run = tmp_path / "runs" / f"seed_{seed}"
        with Trainer.resume(run) as trainer:
            assert trainer.summary()["iteration"] == (2 if saved else 0)
            trainer.train()
            loop: Any = trainer._run.loop  # type: ignore[attr-defined]
            assert int(loop.iteration) == trainer.summary()["iteration"]
        rows = (run / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == (3 if saved else 1)


def test_a_seed_that_diverges_leaves_the_others_whole(tmp_path: Path, monkeypatch: Any) -> None:
    before = Trainer._take

    def take(self: Trainer, iteration: Any, *what: Any) -> Any:
        if self.config["seed"] == 0:
            loose_loss = {**iteration.metrics, "loss/value": np.float32(np.nan)}
            iteration = iteration._replace(metrics=loose_loss)
        return before(self, iteration, *what)

    monkeypatch.setattr(Trainer, "_take", take)
    with pytest.raises(ShoalError, match="loss/value"):
        train_seeds(
            SMALL, "jax:CartPole-v1", (0, 1), steps=1000, on=Compiled(envs=4), run_dir=tmp_path / "runs"
        )
    checkpoints = [RunDir.read(tmp_path / "runs" / f"seed_{seed}").checkpoints() for seed in (0, 1)]
    assert not checkpoints[0] and len(checkpoints[1]) == 1


def test_an_error_does_not_hide_ctrl_c(ctrl_c: Callable[[], None]) -> None:
    """It may come of it: Ctrl-C in a terminal reaches an environment's processes too."""
    with pytest.raises(KeyboardInterrupt) as caught, held():
        ctrl_c()
        loose()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(RuntimeError), held():
        loose()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_are_left_alone(ctrl_c: Callable[[], None]) -> None:
    seen: list[int] = []
    mine = lambda number, _: seen.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    with held():
        ctrl_c()
        assert seen == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with held():
        signal.signal(signal.SIGINT, mine)
    assert signal.getsignal(signal.SIGINT) is mine


def test_threads_get_no_signals() -> None:
    found: list[Any] = []

    def work() -> None:
        with held():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
