"""Learning curves: what is drawn together, the numbers that are drawn, and the picture's file."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal import plot as module
from shoal.errors import ShoalError
from shoal.metrics import Result
from shoal.plot import Curve, common, grouped, plot, read_curve
from shoal.writers import JsonLines


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ShoalError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make(
    path: Path, values: list[float], *, name: str = "ppo", env: str = "E-v0", seed: int = 0, **how: Any
) -> Path:
    """A run of one value per 10 steps and half a second; how: the algorithm's settings."""
    path.mkdir(parents=True)
    config = {
        "algorithm": {"name": name, "settings": {"learning_rate": 0.1, **how}},
        "spec": {"id": env},
        "on": {"name": "local", "envs": 8},
        "seed": seed,
        "run_id": str(path),
    }
    (path / "config.json").write_text(json.dumps(config))
    writer = JsonLines(path / "metrics.jsonl")
    for i, value in enumerate(values, 1):
        row = {"iteration": i, "env_steps": 10 * i, "episode_return_mean": value, "timing/seconds": i / 2}
        writer.write(Result(row))
    writer.close()
    return path


class TestGrouping:
    def test_runs_that_differ_only_in_the_seed_are_together(self, tmp_path: Path) -> None:
        for seed in range(3):
            make(tmp_path / "ppo" / f"seed_{seed}", [1.0], seed=seed)
        one = make(tmp_path / "one", [1.0], seed=9)
        two = make(tmp_path / "two", [1.0], name="a2c")
        groups = grouped([tmp_path / "ppo", one, two, str(two)])
        assert {label: len(runs) for label, runs in groups.items()} == {"PPO E-v0": 4, "A2C E-v0": 1}

    def test_labels_say_in_what_others_differ(self, tmp_path: Path) -> None:
        runs = [make(tmp_path / f"{i}", [1.0], clip=0.2 + i // 2, seed=i, other=3) for i in range(4)]
        assert grouped(runs) == {"PPO E-v0, clip=0.2": runs[:2], "PPO E-v0, clip=1.2": runs[2:]}

    def test_labels_of_ones_own(self, tmp_path: Path) -> None:
        runs = [make(tmp_path / f"{i}", [1.0]) for i in range(3)]
        assert grouped({"old": runs[0], "new": runs[1:]}) == {"old": runs[:1], "new": runs[1:]}

    def test_an_algorithm_of_ones_own_and_a_bare_run(self, tmp_path: Path) -> None:
        mine = make(tmp_path / "a", [1.0], name="my.module:Mine")
        bare = make(tmp_path / "bare", [1.0])
        (bare / "config.json").write_text("{}")
        assert list(grouped([mine, bare])) == ["Mine E-v0", "bare"]


class TestNumbers:
    def test_a_curve_is_what_was_written(self, tmp_path: Path) -> None:
        run = make(tmp_path / "a", [math.nan, 2.0, math.inf, 3.0])
        curve = read_curve(run, "env_steps", "episode_return_mean")
        assert curve.x.tolist() == [20, 40] and curve.y.tolist() == [2, 3]
        assert read_curve(run, "timing/seconds", "episode_return_mean").x.tolist() == [1, 2]

    def test_seeds_meet_on_a_common_axis(self) -> None:
        one = Curve(np.array([0.0, 10, 20]), np.array([0.0, 10, 20]))
        two = Curve(np.array([5.0, 15, 40]), np.array([100.0, 100, 0]))
        axis, values = common([one, two])
        assert axis.tolist() == [5, 10, 15, 20]
        assert values[0].tolist() == [5, 10, 15, 20] and values[1].tolist() == [100, 100, 100, 80]

    def test_many_points_become_few(self) -> None:
        x = np.linspace(0, 1, 5000)
        axis, values = common([Curve(x, 2 * x), Curve(x, 4 * x)])
        assert len(axis) == 500 and np.allclose(values.mean(axis=0), 3 * axis)

    def test_seeds_that_share_no_range(self) -> None:
        axis, values = common(
            [Curve(np.array([0.0, 1]), np.zeros(2)), Curve(np.array([2.0, 3]), np.zeros(2))]
        )
        assert axis.shape == (0,) and values.shape == (2, 0)

    def test_smoothing(self) -> None:
        curve = module._smoothed(Curve(np.arange(3.0), np.array([4.0, 0.0, 8.0])), 0.5)
        # Weights 1; 1/2, 1; 1/4, 1/2, 1, each divided by their sum.
        assert curve.y == pytest.approx([4.0, 4 / 3, (1 + 0 + 8) / 1.75])


class TestPictures:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[Path]:
        return [make(tmp_path / f"{i}", [i + j for j in range(5)], seed=i) for i in range(2)]

    @pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
    def test_by_the_suffix(self, runs: list[Path], tmp_path: Path, suffix: str, begin: bytes) -> None:
        output = tmp_path / "new" / f"curve.{suffix}"
        assert plot(runs, output, x="seconds", smooth=0.3) == output
        assert output.read_bytes().startswith(begin)

    def test_the_same_runs_give_the_same_picture(self, runs: list[Path], tmp_path: Path) -> None:
        plot(runs, tmp_path / "a.svg")
        plot(runs, tmp_path / "b.svg")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    def test_mean_band_seeds_and_labels_are_drawn(
        self, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from matplotlib.axes import Axes

        lines: list[tuple[list[float], list[float], str]] = []
        bands: list[tuple[list[float], list[float]]] = []
        line, band = Axes.plot, Axes.fill_between

        def plotted(self: Axes, x: Any, y: Any, **how: Any) -> Any:
            lines.append((list(x), list(y), how.get("label", "")))
            return line(self, x, y, **how)

        def filled(self: Axes, x: Any, low: Any, high: Any, **how: Any) -> Any:
            bands.append((list(low), list(high)))
            return band(self, x, low, high, **how)

        monkeypatch.setattr(Axes, "plot", plotted)
        monkeypatch.setattr(Axes, "fill_between", filled)
        plot(runs, tmp_path / "a.png")
        steps = [10.0, 20, 30, 40, 50]
        assert lines == [
            (steps, [0.0, 1, 2, 3, 4], ""),
            (steps, [1.0, 2, 3, 4, 5], ""),
            (steps, [0.5, 1.5, 2.5, 3.5, 4.5], "PPO E-v0, 2 seeds"),
        ]
        assert bands == [([0.0, 1, 2, 3, 4], [1.0, 2, 3, 4, 5])]

    def test_another_number(self, runs: list[Path], tmp_path: Path) -> None:
        plot(runs[:1], tmp_path / "a.png", y="iteration")
        said = error_of(lambda: plot(runs, tmp_path / "a.png", y="episode_return"))
        assert "did you mean 'episode_return_mean'" in said

    def test_one_point_and_runs_that_do_not_meet(self, tmp_path: Path) -> None:
        plot([make(tmp_path / "a", [1.0])], tmp_path / "a.png")
        late = make(tmp_path / "c", [math.nan, math.nan, 1.0, 2.0], seed=1)
        plot([make(tmp_path / "b", [1.0, 2.0]), late], tmp_path / "b.png")


class TestMistakes:
    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({"output": "curve.gif"}, ".png, .svg, .pdf"),
            ({"output": "curve"}, ".png"),
            ({"x": "step"}, "did you mean 'steps'"),
            ({"smooth": 1.0}, "less than 1"),
            ({"smooth": math.nan}, "less than 1"),
            ({"runs": []}, "no run was given"),
            ({"runs": {"a": []}}, "no run was given"),
            ({"runs": ["nowhere"]}, "no run in nowhere"),
        ],
    )
    def test_one_line_each(self, tmp_path: Path, how: dict[str, Any], said: str) -> None:
        run = make(tmp_path / "a", [1.0])
        options = {"runs": [run], "output": tmp_path / "a.png", **how}
        assert said in error_of(lambda: plot(options.pop("runs"), options.pop("output"), **options))

    def test_runs_without_numbers(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        assert "holds none" in error_of(lambda: plot([folder], tmp_path / "a.png"))
        empty = make(tmp_path / "empty", [])
        assert "no iterations" in error_of(lambda: plot([empty], tmp_path / "a.png"))
        (empty / "metrics.jsonl").unlink()
        assert "no iterations" in error_of(lambda: plot([empty], tmp_path / "a.png"))
        unfinished = make(tmp_path / "unfinished", [math.nan])
        assert "has an episode finished" in error_of(lambda: plot([unfinished], tmp_path / "a.png"))
        (unfinished / "config.json").write_text("{")
        assert "config.json is damaged" in error_of(lambda: plot([unfinished], tmp_path / "a.png"))

    def test_a_run_without_numbers_among_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that has just begun, or broke off at once, does not keep the others from being drawn."""
        drawn: list[dict[str, int]] = []
        draw = module._draw

        def noted(groups: Any, *how: Any) -> bytes:
            drawn.append({label: len(curves) for label, curves in groups.items()})
            return draw(groups, *how)

        monkeypatch.setattr(module, "_draw", noted)
        make(tmp_path / "runs" / "a", [1.0, 2.0])
        make(tmp_path / "runs" / "b", [], seed=1)
        make(tmp_path / "runs" / "c", [math.nan], name="a2c")
        with pytest.warns(UserWarning, match="left out of the picture") as warned:
            plot([tmp_path / "runs"], tmp_path / "a.png")
        assert drawn == [{"PPO E-v0": 1}]
        assert [str(w.message).split("/runs/")[1] for w in warned] == [
            "b has no iterations yet",
            "c has no numbers for 'episode_return_mean' yet (has an episode finished?)",
        ]

    def test_where_it_cannot_write(self, tmp_path: Path) -> None:
        run = make(tmp_path / "a", [1.0])
        (tmp_path / "file").write_text("x")
        assert "could not write" in error_of(lambda: plot([run], tmp_path / "file" / "a.png"))
        (tmp_path / "b.png").mkdir()
        assert "could not write" in error_of(lambda: plot([run], tmp_path / "b.png"))


def test_plotting_needs_no_jax() -> None:
    """It would cost a second."""
    code = "import sys, shoal.plot; sys.exit(any(m in sys.modules for m in ('jax', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
