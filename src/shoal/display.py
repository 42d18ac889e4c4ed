"""What a person sees while training runs: a live panel in a terminal, plain lines anywhere else.

The panel is a pure function of the results so far (oldest first) and the goal, as are the figures in it
(`figures`); `Display` only decides when to draw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from shoal.figures import (
    OTHER,
    Goal,
    Row,
    duration,
    fraction,
    line,
    number,
    quantity,
    resample,
    seconds_left,
    shares,
    sparkline,
    steps_per_second,
    thin,
)

REFRESH_SECONDS = 1 / 8  # a panel is drawn in about 2 ms: this keeps it below 2 % of one core
LINE_SECONDS = 5.0

# Of each phase its colour, and its mark with and without Unicode.
_STYLES = {
    "env": ("cyan", "█", "e"),
    "act": ("yellow", "▓", "a"),
    "collect": ("cyan", "█", "w"),
    "learn": ("green", "▒", "l"),
    "compiled": ("magenta", "█", "c"),
    OTHER: ("bright_black", "░", "."),
}
# What runs elsewhere, as `timing/ROLE`, and what is counted of it, as `timing/NAME` and in words.
_ROLES = {
    "runners": {"restarts": "restarts", "moves": "moves"},
    "shards": {"shard_restores": "restores"},
}
_RATES = {"runners": "fragments", "shards": "gradients"}


def bar_width(columns: int) -> int:
    """How wide the bars may be, so that the text beside them fits into a terminal of so many columns."""
    return min(32, max(8, columns - 61))


def panel(
    history: Sequence[Row],
    goal: Goal,
    title: str,
    *,
    note: str = "",
    width: int = 32,
    ascii_only: bool = False,
) -> RenderableType:
    """The live panel.

    title: what runs. note: a last line, where there is something to say. width: of the bars, in characters.
    """
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", no_wrap=True, min_width=6)
    grid.add_column(no_wrap=True, min_width=width, width=width)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    if not history:
        grid.add_row("start", "", Text("building the environments and compiling ...", "dim"))
    else:
        for row in _rows(history, goal, width, ascii_only):
            grid.add_row(*row)
    body = Group(grid, Text(note, "bold yellow")) if note else grid
    return Panel(body, title=Text(title, "bold"), title_align="left", border_style="blue", expand=False)


def _rows(history: Sequence[Row], goal: Goal, width: int, ascii_only: bool) -> list[tuple[str, Text, Text]]:
    last = history[-1]
    points = [(number(r, "env_steps"), number(r, "episode_return_mean")) for r in history]
    curve = resample(points, width)
    ceiling = [] if goal.target_return is None else [goal.target_return]
    low, high = min([*curve, *ceiling], default=0.0), max([*curve, *ceiling], default=0.0)
    returns = Text(quantity(number(last, "episode_return_mean")), "bold")
    if goal.target_return is not None:
        returns.append(f" of {quantity(goal.target_return)}", "not bold")
    if curve:
        best = max(y for _, y in points if math.isfinite(y))
        returns.append(f"  best {quantity(best)}", "not bold dim")
    used = fraction(history, goal)
    steps = Text(quantity(number(last, "env_steps"), 0))
    if goal.steps:
        steps.append(f" of {goal.steps:,}")
    if used is not None:
        steps.append(f"  {used:.0%}", "dim")
    left = seconds_left(history, goal)
    times = f"  {duration(number(last, 'timing/seconds'))} gone"
    if left is not None:
        times += f", {'at most ' if goal.target_return is not None else ''}{duration(left)} left"
    speed = Text(f"{quantity(steps_per_second(history), 0)} steps/s").append(times, "dim")
    parts = shares(history)
    episodes = Text(f"{quantity(number(last, 'episodes'), 0)} episodes").append(
        f"  length {quantity(number(last, 'episode_length_mean'))}", "dim"
    )
    rows = [
        ("return", Text(sparkline(curve, low, high, ascii_only), "magenta"), returns),
        ("steps", _bar(used, width, ascii_only), steps),
        ("speed", Text(""), speed),
        ("time", _stacked(parts, width, ascii_only), _legend(parts)),
        ("", Text(""), episodes),
    ]
    return rows + [(role, _bar(1.0 - idle, width, ascii_only), said) for role, idle, said in roles(last)]


def roles(row: Row) -> list[tuple[str, float, Text]]:
    """What runs elsewhere: (role, share of its time without work, what is said of it)."""
    found = []
    for role, events in _ROLES.items():
        alive, idle = number(row, f"timing/{role}"), number(row, f"timing/{role}_idle")
        if not math.isfinite(alive):
            continue
        said = Text(f"{alive:.0f} alive")
        rate = number(row, f"timing/{_RATES[role]}_per_second")
        if math.isfinite(rate):
            said.append(f"  {quantity(rate)} {_RATES[role]}/s")
        if math.isfinite(idle):
            said.append(f"  idle {idle:.0%}", "dim")
        for name, what in events.items():
            if number(row, f"timing/{name}") > 0:
                said.append(f"  {what} {number(row, f'timing/{name}'):.0f}", "dim")
        found.append((role, idle, said))
    return found


def _bar(used: float | None, width: int, ascii_only: bool) -> Text:
    if used is None or not math.isfinite(used):
        return Text("")
    full = round(used * width)
    done, rest = ("#", "-") if ascii_only else ("━", "─")
    return Text(done * full, "green").append(rest * (width - full), "bright_black")


def _stacked(parts: Mapping[str, float], width: int, ascii_only: bool) -> Text:
    """Shares side by side. Each has its own mark, so that it reads without colours too."""
    bar, drawn, total = Text(""), 0, 0.0
    for name, (style, mark, letter) in _STYLES.items():
        total += parts.get(name, 0.0)
        until = round(total * width)
        bar.append((letter if ascii_only else mark) * (until - drawn), style)
        drawn = until
    return bar


def _legend(parts: Mapping[str, float]) -> Text:
    legend = Text("")
    for name, (style, *_) in _STYLES.items():
        if name in parts:
            legend.append(f"{name} {parts[name]:.0%}  ", style)
    return legend


class Display:
    """Shows results as they come: `with Display(goal, "ppo on CartPole-v1") as d: ... d.update(result)`.

    A live panel where the console is a terminal, redrawn at most 8 times a second; elsewhere one line
    every 5 seconds or 10 % of the way, and one at the end. No thread: drawing happens inside `update`.
    """

    def __init__(
        self,
        goal: Goal,
        title: str,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._goal = goal
        self._title = title
        self._console = console or Console()
        self._clock = clock
        self._history: list[Row] = []
        self._note = ""
        self._drawn_at = -math.inf
        self._drawn_fraction = 0.0
        self._pending = False
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self._panel(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending:
            self._draw()
        if self._live is not None:
            self._live.stop()

    def update(self, row: Row) -> None:
        """Take in one more result, and draw if it is time to."""
        self._history.append(row)
        self._history = thin(self._history)
        self._pending = True
        if self._due():
            self._draw()

    def note(self, text: str) -> None:
        """Show a sentence at once, under the panel or as a line of its own."""
        self._note = text
        if self._live is not None:
            self._draw()
        else:
            print(text, file=self._console.file, flush=True)

    def _due(self) -> bool:
        waited = self._clock() - self._drawn_at
        if self._live is not None:
            return waited >= REFRESH_SECONDS
        used = fraction(self._history, self._goal)
        return waited >= LINE_SECONDS or (used is not None and used >= self._drawn_fraction + 0.1)

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        self._pending = False
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)
        elif self._history:
            used = fraction(self._history, self._goal)
            self._drawn_fraction = math.floor((used or 0.0) * 10) / 10
            print(line(self._history, self._goal), file=self._console.file, flush=True)

    def _panel(self) -> RenderableType:
        return panel(
            self._history,
            self._goal,
            self._title,
            note=self._note,
            width=bar_width(self._console.width),
            ascii_only=self._console.options.ascii_only,
        )
