"""Figures of a run from its results so far (oldest first) and its goal: pure functions, for `display`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, float]  # what a Result holds

KEPT = 400  # results remembered; older ones are thinned, so that a long run needs no more memory
RECENT = 50  # results that speed and shares are taken from

PHASES = ("env", "act", "collect", "learn", "compiled")  # as in `timing/NAME`
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When training is done: whichever comes first. steps: total environment steps of the run."""

    steps: int | None = None
    target_return: float | None = None
    seconds: float | None = None


def thin(history: list[Row]) -> list[Row]:
    """The same history with every other old result dropped, once there are more than `KEPT`."""
    if len(history) <= KEPT:
        return history
    return [*history[:-RECENT:2], *history[-RECENT:]]


def number(row: Row, name: str) -> float:
    """One figure of a result; NaN where it is missing or not a number."""
    try:
        return float(row.get(name, math.nan))
    except (TypeError, ValueError):
        return math.nan


def fraction(history: Sequence[Row], goal: Goal) -> float | None:
    """How much of the goal's steps or seconds is used up, in [0, 1]; None where neither is limited."""
    if not history:
        return 0.0 if goal.steps or goal.seconds else None
    parts = []
    if goal.steps:
        parts.append(number(history[-1], "env_steps") / goal.steps)
    if goal.seconds:
        parts.append(number(history[-1], "timing/seconds") / goal.seconds)
    return min(1.0, max(parts)) if parts else None


def steps_per_second(history: Sequence[Row]) -> float:
    """Environment steps per second over the recent results; NaN before the first."""
    if not history:
        return math.nan
    last, first = history[-1], history[max(0, len(history) - RECENT)]
    seconds = number(last, "timing/seconds") - number(first, "timing/seconds")
    if seconds > 0:
        return (number(last, "env_steps") - number(first, "env_steps")) / seconds
    return number(last, "timing/steps_per_second")


def seconds_left(history: Sequence[Row], goal: Goal) -> float | None:
    """Seconds until the steps or seconds are used up, at the recent speed; None where that is unknown."""
    left = []
    if goal.steps and len(history) > 1:  # the first result's speed is that of compiling
        speed = steps_per_second(history)
        if speed > 0:
            left.append(max(0.0, goal.steps - number(history[-1], "env_steps")) / speed)
    if goal.seconds and history:
        left.append(max(0.0, goal.seconds - number(history[-1], "timing/seconds")))
    return min(left) if left else None


def shares(history: Sequence[Row]) -> dict[str, float]:
    """Where the recent time went: phase -> share of it, adding up to 1; empty before the first result."""
    rows = history[-RECENT:]
    whole = 0.0
    if len(rows) > 1:  # `timing/seconds` counts from the start of the run: the first row's own is not known
        whole = number(rows[-1], "timing/seconds") - number(rows[0], "timing/seconds")
        rows = rows[1:]
    spent = {name: _total(rows, f"timing/{name}") for name in PHASES}
    known = sum(spent.values())
    whole = max(whole, known)
    if not whole > 0:
        return {}
    return {name: s / whole for name, s in {**spent, OTHER: whole - known}.items() if s > 0}


def _total(rows: Sequence[Row], name: str) -> float:
    return sum(v for v in (number(r, name) for r in rows) if math.isfinite(v))


def resample(points: Sequence[tuple[float, float]], width: int) -> list[float]:
    """(x, y) points in order of x -> at most `width` means of y over equal parts of x; gaps keep the last."""
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if len(points) <= width:
        return [y for _, y in points]
    low, high = points[0][0], points[-1][0]
    buckets: list[list[float]] = [[] for _ in range(width)]
    for x, y in points:
        buckets[min(width - 1, int((x - low) / max(high - low, 1e-9) * width))].append(y)
    means: list[float] = []
    for bucket in buckets:
        means.append(sum(bucket) / len(bucket) if bucket else means[-1])
    return means


def sparkline(values: Sequence[float], low: float, high: float, ascii_only: bool = False) -> str:
    """One character per value, its height between `low` and `high`."""
    marks = "_.-=*#" if ascii_only else "▁▂▃▄▅▆▇█"
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round(min(max(v - low, 0.0), high - low) * scale)] for v in values)


def duration(seconds: float | None) -> str:
    """1:05 or 2:03:04; "?" where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quantity(value: float, digits: int = 1) -> str:
    """1,234.5; "-" where there is no number yet."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


def line(history: Sequence[Row], goal: Goal) -> str:
    """The present state in one plain line, for logs and pipes."""
    last = history[-1]
    used = fraction(history, goal)
    of = f" of {goal.steps:,}" if goal.steps else ""
    parts = [
        f"steps {quantity(number(last, 'env_steps'), 0)}{of}" + ("" if used is None else f" ({used:.0%})"),
        f"return {quantity(number(last, 'episode_return_mean'))}",
        f"length {quantity(number(last, 'episode_length_mean'))}",
        f"{quantity(steps_per_second(history), 0)} steps/s",
        f"time {duration(number(last, 'timing/seconds'))}",
    ]
    alive, restarts = number(last, "timing/runners"), number(last, "timing/restarts")
    if math.isfinite(alive):
        parts.append(f"runners {alive:.0f}" + (f" (restarts {restarts:.0f})" if restarts > 0 else ""))
    left = seconds_left(history, goal)
    return "  ".join(parts if left is None else [*parts, f"left {duration(left)}"])
