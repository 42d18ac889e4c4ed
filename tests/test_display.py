"""The display's figures by hand, and what it draws on a fake terminal and into a pipe."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from shoal import display, figures
from shoal.display import Display
from shoal.figures import Goal


def row(steps: int, seconds: float, mean: float = math.nan, **more: float) -> dict[str, float]:
    return {
        "iteration": steps // 100,
        "env_steps": steps,
        "episodes": steps // 50,
        "episode_return_mean": mean,
        "episode_length_mean": mean,
        "timing/seconds": seconds,
        "timing/steps_per_second": 77.0,
        **{f"timing/{name}": value for name, value in more.items()},
    }


def text_of(renderable: object, width: int = 100, ascii_only: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, safe_box=ascii_only)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestFigures:
    def test_fraction_is_the_nearest_limit(self) -> None:
        history = [row(250, 9.0)]
        assert figures.fraction(history, Goal(steps=1000)) == 0.25
        assert figures.fraction(history, Goal(steps=1000, seconds=10)) == 0.9
        assert figures.fraction(history, Goal(steps=100)) == 1.0
        assert figures.fraction(history, Goal(target_return=5)) is None
        assert figures.fraction([], Goal(steps=100)) == 0.0

    def test_speed_is_taken_from_the_recent_rows(self) -> None:
        slow = [row(100 * i, 10.0 * i) for i in range(5)]
        fast = [row(500 + 100 * i, 50.0 + i) for i in range(figures.RECENT)]
        assert figures.steps_per_second([*slow, *fast]) == pytest.approx(100.0)
        assert figures.steps_per_second(slow[:1]) == 77.0  # one row has no difference: its own figure
        assert math.isnan(figures.steps_per_second([]))

    def test_time_left(self) -> None:
        history = [row(0, 0.0), row(100, 2.0)]
        assert figures.seconds_left(history, Goal(steps=600)) == pytest.approx(10.0)
        assert figures.seconds_left(history, Goal(steps=600, seconds=5)) == pytest.approx(3.0)
        assert figures.seconds_left(history, Goal(target_return=1.0)) is None

    def test_shares_add_up_and_name_the_rest(self) -> None:
        history = [row(100 * i, 10.0 * i, env=4.0, act=2.0, learn=3.0) for i in range(1, 4)]
        found = figures.shares(history)
        assert found == pytest.approx({"env": 0.4, "act": 0.2, "learn": 0.3, "other": 0.1})
        assert figures.shares(history[:1]) == pytest.approx({"env": 4 / 9, "act": 2 / 9, "learn": 3 / 9})
        assert figures.shares([row(1, 1.0, compiled=1.0)]) == {"compiled": 1.0}
        assert figures.shares([]) == {}

    def test_resample_means_and_gaps(self) -> None:
        points = [(0, 1.0), (1, 3.0), (2, math.nan), (9, 7.0), (10, 9.0)]
        assert figures.resample(points, 10) == [1.0, 3.0, 7.0, 9.0]
        # Four points over three parts of [0, 10]: two in the first, none in the second.
        assert figures.resample(points, 3) == [2.0, 2.0, 8.0]

    def test_sparkline_spans_low_to_high(self) -> None:
        assert figures.sparkline([0.0, 5.0, 10.0], 0.0, 10.0) == "▁▅█"
        assert figures.sparkline([3.0, 3.0], 3.0, 3.0) == "▁▁"
        assert figures.sparkline([0.0, 10.0], 0.0, 10.0, ascii_only=True) == "_#"

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (7384, "2:03:04"), (None, "?"), (math.inf, "?")]
    )
    def test_duration(self, seconds: float | None, text: str) -> None:
        assert figures.duration(seconds) == text

    def test_thinning_keeps_the_ends_and_the_recent(self) -> None:
        history = [row(i, float(i)) for i in range(figures.KEPT + 1)]
        kept = figures.thin(list(history))
        assert len(kept) < 0.6 * len(history)
        assert kept[0] == history[0]
        assert kept[-figures.RECENT :] == history[-figures.RECENT :]
        assert figures.thin(history[:10]) == history[:10]


class TestPanel:
    def test_says_everything(self) -> None:
        history = [row(100 * i, 1.0 * i, 10.0 * i, env=0.5, act=0.25, learn=0.25) for i in range(1, 6)]
        shown = text_of(
            display.panel(history, Goal(steps=1000, target_return=475), "ppo on X", note="hold on")
        )
        for part in ("ppo on X", "50.0 of 475.0", "500 of 1,000", "50%", "100 steps/s", "at most 0:05 left"):
            assert part in shown, part
        for part in ("env 50%", "act 25%", "learn 25%", "10 episodes", "hold on"):
            assert part in shown, part

    def test_a_row_for_each_role(self) -> None:
        parts = {
            "runners": 2,
            "runners_idle": 0.25,
            "restarts": 3,
            "moves": 0,
            "fragments_per_second": 12.3,
        }
        last = row(200, 2.0, 1.0, collect=0.75, learn=0.25, **parts)
        shown = text_of(display.panel([row(100, 1.0, 1.0), last], Goal(steps=1000), "t", ascii_only=True))
        assert "runners" in shown and "2 alive  12.3 fragments/s  idle 25%  restarts 3" in shown
        assert "moves" not in shown and "shards" not in shown
        assert "collect 75%" in shown and "#" * 24 + "-" * 8 in shown
        assert "runners 2 (restarts 3)" in figures.line([last], Goal())
        assert "runners" not in figures.line([row(100, 1.0)], Goal())

    def test_before_the_first_result(self) -> None:
        assert "compiling" in text_of(display.panel([], Goal(steps=10), "t"))

    def test_no_episode_has_ended_yet(self) -> None:
        shown = text_of(display.panel([row(8, 0.1)], Goal(seconds=10), "t"))
        assert "return" in shown
        assert "nan" not in shown

    def test_without_unicode(self) -> None:
        history = [row(100 * i, 1.0 * i, 10.0 * i, env=0.5, learn=0.5) for i in range(1, 6)]
        body = text_of(display.panel(history, Goal(steps=1000), "t", width=10, ascii_only=True))
        inside = [line[1:-2] for line in body.splitlines()[1:-1]]
        assert all(line.isascii() for line in inside)
        assert any("#####-----" in line for line in inside)
        assert any("eeeeelllll" in line for line in inside)

    @pytest.mark.parametrize("columns", [60, 80, 120])
    def test_fits_the_terminal_without_wrapped_lines(self, columns: int) -> None:
        history = [row(100_000 * i, 9.0 * i, 10.0 * i, env=6.0, act=1.0, learn=1.0) for i in range(1, 6)]
        goal = Goal(steps=10**7, target_return=475)
        made = display.panel(history, goal, "t", note="n", width=display.bar_width(columns))
        lines = text_of(made, width=columns).splitlines()
        assert len(lines) == 8  # five rows, the note, two borders
        assert lines[1].startswith("│ return")
        if columns >= 80:
            assert "…" not in "".join(lines)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestDisplay:
    def plain(self, goal: Goal, clock: Clock) -> tuple[Display, io.StringIO]:
        out = io.StringIO()
        return Display(goal, "t", console=Console(file=out, force_terminal=False), clock=clock), out

    def test_plain_lines_come_every_five_seconds(self) -> None:
        clock = Clock()
        shown, out = self.plain(Goal(target_return=1e9), clock)
        with shown:
            for i in range(1, 101):  # 0.2 s each: 20 s
                clock.now += 0.2
                shown.update(row(100 * i, clock.now, 1.0))
        lines = out.getvalue().splitlines()
        assert len(lines) == 5  # the first, after 5, 10 and 15 s, and the end
        assert lines[-1].startswith("steps 10,000  return 1.0")

    def test_plain_lines_come_every_tenth_of_the_way(self) -> None:
        clock = Clock()
        shown, out = self.plain(Goal(steps=10_000), clock)
        with shown:
            for i in range(1, 101):
                clock.now += 0.001
                shown.update(row(100 * i, clock.now, 1.0))
        lines = out.getvalue().splitlines()
        assert len(lines) == 11
        assert "steps 1,000 of 10,000 (10%)" in lines[1]
        assert lines[-1].startswith("steps 10,000 of 10,000 (100%)")
        assert "left 0:00" in lines[-1]

    def test_the_end_is_shown_once(self) -> None:
        shown, out = self.plain(Goal(steps=100), Clock())
        with shown:
            shown.update(row(100, 1.0))
        assert len(out.getvalue().splitlines()) == 1

    def test_notes_in_a_pipe_are_lines(self) -> None:
        shown, out = self.plain(Goal(steps=100), Clock())
        with shown:
            shown.note("stopping")
        assert out.getvalue() == "stopping\n"

    def test_a_terminal_is_redrawn_eight_times_a_second_and_left_tidy(self) -> None:
        clock, out = Clock(), io.StringIO()
        console = Console(file=out, force_terminal=True, width=100, _environ={"TERM": "xterm"})
        with Display(Goal(steps=10_000), "ppo on X", console=console, clock=clock) as shown:
            before = out.tell()
            for i in range(1, 101):  # one second
                clock.now += 0.01
                shown.update(row(100 * i, clock.now, 1.0))
            drawn = out.getvalue()[before:].count("ppo on X")
            shown.note("stopping soon")
        assert 7 <= drawn <= 9
        text = out.getvalue()
        assert "stopping soon" in text
        assert "10,000 of 10,000" in text
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back

    def test_a_long_run_keeps_little(self) -> None:
        shown, _ = self.plain(Goal(steps=10**9), Clock())
        with shown:
            for i in range(1, 5000):
                shown.update(row(i, float(i), 1.0))
        assert len(shown._history) <= figures.KEPT
