"""Runs that learn from a replay: how much they learn, what they show, and what a checkpoint keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal import DQN, Compiled, Local, ShoalError, Trainer, checkpoint, train_seeds

SMALL = DQN(
    rollout_length=8,
    batch_size=8,
    capacity=200,
    learning_starts=100,
    train_every=3,
    gradient_steps=2,
    hidden=(8,),
    prioritized=True,
)
EXECUTORS = {"local": (Local(envs=4), "CartPole-v1"), "compiled": (Compiled(envs=4), "jax:CartPole-v1")}


@pytest.mark.parametrize("where", EXECUTORS)
def test_so_many_gradient_steps_for_so_many_environment_steps(where: str) -> None:
    """Exactly: none is forgotten where a fragment's steps are no multiple, none comes before the start."""
    on, env = EXECUTORS[where]
    with Trainer(SMALL, env, on=on) as trainer:
        made = 0
        for _ in range(12):
            result = trainer.train()
            made += int(result["replay/gradient_steps"])
            assert made == max(0, int(result["env_steps"]) - 100) * 2 // 3
            assert ("loss/value" in result) == (result["replay/gradient_steps"] > 0)
        assert made > 0


def test_saving_changes_nothing_and_resuming_goes_on(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1", on=Local(envs=4)) as one:
        for _ in range(9):
            one.train()
        place = one.save(tmp_path / "nine")
        for _ in range(9):
            one.train()
        with Trainer.restore(place) as other:
            for _ in range(9):
                other.train()
            assert other.fingerprint() == one.fingerprint()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Loaded:
    """What a run saved that has begun to fill its replay."""
    place = tmp_path_factory.mktemp("saved") / "whole"
    with Trainer(SMALL, "CartPole-v1", on=Local(envs=4)) as trainer:
        for _ in range(5):
            trainer.train()
        trainer.save(place)
    return checkpoint.load(place)


@pytest.mark.parametrize("what", ["memory/reward", "memory/priorities/leaves", "memory", "credit", ""])
def test_a_replay_that_is_not_there_is_an_error(what: str, whole: checkpoint.Loaded, tmp_path: Path) -> None:
    gone = "/".join(filter(None, ("run/store", what)))
    rest: dict[str, Any] = {
        path: array
        for path, array in whole.arrays.items()
        if path != gone and not path.startswith(gone + "/")
    }
    assert len(rest) < len(whole.arrays)
    checkpoint.save(tmp_path / "less", checkpoint.nested(rest, ""), whole.info)
    with pytest.raises(ShoalError, match="store"):
        Trainer.restore(tmp_path / "less")


def test_many_seeds_at_once() -> None:
    trainers = train_seeds(SMALL, "jax:CartPole-v1", [0, 1], steps=400, on=Compiled(envs=4))
    prints = {trainer.fingerprint() for trainer in trainers}
    assert len(prints) == 2
    for trainer in trainers:  # each goes on alone, with its own replay
        assert trainer.train()["replay/gradient_steps"] > 0
        trainer.close()


def test_a_replay_that_is_too_small_is_refused() -> None:
    with pytest.raises(ShoalError, match="at least"):
        Trainer(DQN(capacity=16), "CartPole-v1", on=Local(envs=8))
