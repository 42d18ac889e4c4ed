"""The programs in examples/ do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def main_of(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "gridworld_policy_gradient",
        "cartpole_ppo",
        "rllib_style",
    }


def test_the_gridworld_policy_takes_a_shortest_way(capsys: pytest.CaptureFixture[str]) -> None:
    way = main_of("gridworld_policy_gradient")()
    assert len(way) - 1 == 6 and way[-1] == 15  # three to the right and three down, in any order
    before, _, after = capsys.readouterr().out.partition("after:")
    assert before.count("0.25") == 15  # a policy that has learned nothing: four equal chances
    assert "0.25" not in after and "the learned way: 0 →" in after


def test_cartpole_is_learned_saved_and_restored(capsys: pytest.CaptureFixture[str]) -> None:
    total = main_of("cartpole_ppo")()
    said = capsys.readouterr().out
    assert said.count("episode_return_mean") == 10
    assert said.endswith(f"total reward of one episode: {total:g}\n")
    assert total > 100  # before training, an episode lasts about ten steps


def test_the_old_interface_of_rllib(capsys: pytest.CaptureFixture[str]) -> None:
    total = main_of("rllib_style")()
    said = capsys.readouterr()
    assert said.out.count("episode_reward_mean") == 10
    assert said.out.endswith(f"total reward of one episode: {total:g}\n")
    assert total > 60
