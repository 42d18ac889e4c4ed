"""Pictures, the text of grids, and `shoal solve`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shoal import GridWorld, cli, cli_parsing
from shoal.cli_solve import Solve
from shoal.errors import ShoalError
from shoal.tabular import Grid, draw, policy_iteration, random_mdp, text_grid, uniform_policy


def test_solve_prints_and_draws_a_gridworld(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "deep" / "grid.png"
    how = ["--gamma", "0.5", "--env-kwargs", "size=3", "walls=(4,)", "--output", str(picture)]
    assert cli.main(["solve", "shoal/GridWorld-v0", *how]) == 0
    said = capsys.readouterr().out
    assert "0.125" in said and "value-iteration" in said and "9 states, 4 actions, gamma 0.5" in said
    assert said == re.sub(r" +\n", "\n", said), "a line ends in blanks"
    rows = [line.split() for line in said.splitlines() if "→" in line or "↓" in line]
    assert rows[:2] == [["0.12↓", "0.25→", "0.50↓"], ["0.25↓", "#", "1.00↓"]]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["value-iteration", "policy-iteration"])
def test_solve_takes_the_method(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tmp_path / "lake.svg")
    words = ["solve", "FrozenLake-v1", "--method", method, "--tolerance", "1e-9", "--output", picture]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert method in said and "0.54202593" in said


def test_solve_without_a_grid_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", "Taxi-v4", "--output", str(tmp_path / "taxi.pdf")]) == 0
    assert "its states lie in no grid" in capsys.readouterr().out
    assert (tmp_path / "taxi.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["CartPole-v1"], "CartPole-v1 has no known MDP"),
        (["FrozenLake-v1", "--gamma", "1.5"], "gamma must lie between 0 and 1"),
        (["FrozenLake-v1", "--gamma", "1", "--method", "value-iteration"], "take policy iteration"),
        (["FrozenLake-v1", "--output", "x.txt"], "should end in one of .png, .svg, .pdf"),
        (["FrozenLake-v1", "--output", ".png"], "should end in one of .png, .svg, .pdf"),
        (["FrozenLake-v1", "--tolerance", "inf"], "tolerance must be greater than 0 and finite"),
        (["FrozenLak-v1"], "did you mean 'FrozenLake-v1'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "shoal solve needs ENV; shoal solve --help says more"),
        (
            ["FrozenLake-v1", "--method", "magic"],
            "--method: unknown value 'magic': known are auto, policy-iter",
        ),
        (["FrozenLake-v1", "--gama", "1"], "unknown option --gama: did you mean '--gamma'?"),
    ],
)
def test_options_that_do_not_fit(words: list[str], said: str) -> None:
    with pytest.raises(ShoalError) as caught:
        cli_parsing.parse({"solve": Solve}, words, "shoal solve", "")
    assert said in str(caught.value)


@pytest.mark.parametrize(("tolerance", "shown"), [("1e-6", r"-5962\.9\d{4,6}"), ("0.9", r"-596\d")])
def test_a_value_has_the_digits_that_are_known(
    tolerance: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the point, however many are before it."""
    size = ["--env-kwargs", "size=3", "step_cost=1000", "slip=0.3"]
    out = ["--output", str(tmp_path / "v.png"), "--tolerance", tolerance]
    assert cli.main(["solve", "shoal/GridWorld-v0", *size, *out]) == 0
    assert re.search(rf"value of the start +{shown}\s", capsys.readouterr().out)


def test_pictures_of_any_policy_and_shape(tmp_path: Path) -> None:
    world = GridWorld(size=3, walls=(4,)).mdp(0.9)
    found = policy_iteration(world)
    one = draw(world, found.value, tmp_path / "a.svg", policy=uniform_policy(world))
    same = draw(world, found.value, tmp_path / "b.svg", policy=uniform_policy(world))
    assert one.read_bytes() == same.read_bytes()
    other = random_mdp(6, 2, 2, gamma=0.9, seed=0)
    draw(other, np.arange(6.0), tmp_path / "c.png")
    grid = Grid((2, 3), ((0, 1), (0, -1)))
    draw(other, np.arange(6.0), tmp_path / "d.png", policy=np.zeros(6, int), grid=grid)
    assert text_grid(other, np.arange(6.0), np.zeros(6, int), grid).split("\n")[1].split()[0] == "3.00→"
    with pytest.raises(ShoalError, match="no grid"):
        text_grid(other, np.arange(6.0), np.zeros(6, int))
    with pytest.raises(ShoalError, match=r"shape \[6\]"):
        draw(other, np.zeros(5), tmp_path / "e.png")
