"""Ctrl-C in Python, and environments that raise: a run goes on to the same bits, or refuses to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import pytest

from shoal import DQN, PPO, Compiled, Local, ShoalError, Trainer
from shoal.signals import whole

ON = Local(envs=4, groups=2)
ALGORITHMS = {
    "ppo": PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,)),
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
    """Its replay was given away to the call that raised."""
    with Trainer(ALGORITHMS["dqn"], "jax:CartPole-v1", on=Compiled(envs=4)) as trainer:
        trainer.train()
        run: Any = trainer._run
        run._iterate = lambda *_: loose()
        with pytest.raises(RuntimeError, match="a wire"):
            trainer.train()
        with pytest.raises(ShoalError, match="broke off in its middle"):
            trainer.save(tmp_path / "broken")


def test_other_handlers_are_left_alone(ctrl_c: Callable[[], None]) -> None:
    seen: list[int] = []
    mine = lambda number, _: seen.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    with whole():
        ctrl_c()
        assert seen == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine


def test_threads_get_no_signals() -> None:
    found: list[Any] = []

    def work() -> None:
        with whole():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
