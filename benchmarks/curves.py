"""Learning curves of Shoal and Stable-Baselines3 on the same environments: a table and a picture.

    python benchmarks/curves.py results/learning/*-100k-* --sb3 results/sb3/*.jsonl --out results/curves.md

The runs are Shoal's run directories (of `tests/learning/learning_cases.py run`, whose results.jsonl beside
them has the greedy returns) and the files of curve_sb3.py. Runs of one algorithm and environment are one row
of each library and one part of the picture, which is written beside the table.

run directory or file -> (steps, return) of every episode -> means in windows of steps -> mean, worst and best
seed
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MARKS = (25_000, 50_000, 75_000, 100_000)
HALF = 5_000  # an episode belongs to a mark where it ended within so many steps of it
SMOOTHED = 10  # episodes in the running mean that is drawn
KEPT = 100  # episodes in Shoal's `episode_return_mean`
LIBRARIES = {"Shoal": "#0072B2", "SB3": "#D55E00"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run. steps, returns: of its episodes, in order. reached: steps made. greedy: returns at the end,
    none of a run that has not ended."""

    algorithm: str
    env: str
    library: str
    seed: int
    steps: Sequence[int]
    returns: Sequence[float]
    reached: int
    greedy: Sequence[float]


def lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; the last may be half written, where the run still goes on."""
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def single_returns(rows: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """(environment steps, return) of each episode, from the rows' means over the last KEPT episodes.

    The difference between two rows' sums is what came less what fell out. This is exact where no two
    episodes end in one row, as with one environment and short fragments; else they share their mean, and
    later ones are off by what differs.
    """
    steps: list[int] = []
    returns: list[float] = []
    before = 0.0
    for row in rows:
        new = row["episodes"] - len(returns)
        if new:
            kept = min(row["episodes"], KEPT)
            total = row["episode_return_mean"] * kept
            gone = returns[max(0, len(returns) - KEPT) : row["episodes"] - kept]
            steps += [row["env_steps"]] * new
            returns += [(total - before + sum(gone)) / new] * new
            before = total
    return steps, returns


def of_shoal(run: Path) -> Curve:
    """A run directory."""
    config = json.loads((run / "config.json").read_text())
    rows = lines(run / "metrics.jsonl")
    steps, returns = single_returns(rows)
    results = run.parent / "results.jsonl"
    ends = [r for r in lines(results) if f"{r['case']}-{r['seed']}" == run.name] if results.exists() else []
    return Curve(
        algorithm=config["algorithm"]["name"],
        env=config["spec"]["id"],
        library="Shoal",
        seed=config["seed"],
        steps=steps,
        returns=returns,
        reached=rows[-1]["env_steps"] if rows else 0,
        greedy=ends[-1]["greedy_returns"] if ends else (),
    )


def of_sb3(path: Path) -> Curve:
    """A file of curve_sb3.py, whose name says what it is: sb3-ALGORITHM-ENVIRONMENT-SEED[.TAG].jsonl."""
    named = re.fullmatch(r"sb3-(\w+)-(.+)-(\d+)(\.[^.]+)?\.jsonl", path.name)
    if named is None:
        sys.exit(f"{path} is not named sb3-ALGORITHM-ENVIRONMENT-SEED.jsonl")
    rows = lines(path)
    episodes = [row for row in rows if "return" in row]
    return Curve(
        algorithm=named[1],
        env=named[2],
        library="SB3",
        seed=int(named[3]),
        steps=[row["env_steps"] for row in episodes],
        returns=[row["return"] for row in episodes],
        reached=rows[-1]["env_steps"] if rows else 0,
        greedy=next((row["greedy_returns"] for row in rows if "greedy_returns" in row), ()),
    )


def around(curve: Curve, mark: int) -> float | None:
    """The mean return of the episodes that ended around `mark`; None before the run is past them."""
    if curve.reached < min(mark + HALF, MARKS[-1]):
        return None
    found = [r for s, r in zip(curve.steps, curve.returns, strict=True) if abs(s - mark) <= HALF]
    return statistics.fmean(found) if found else None


def cell(figures: Sequence[float | None]) -> str:
    """mean (worst .. best) over the seeds that have a figure; how many, where that is not all of them."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return "-"
    text = f"{statistics.fmean(known):,.0f}"
    if len(known) > 1:
        text += f" ({min(known):,.0f} .. {max(known):,.0f})"
    return text if len(known) == len(figures) else f"{text}, {len(known)} of {len(figures)}"


def grouped(curves: Iterable[Curve]) -> dict[tuple[str, str], dict[str, list[Curve]]]:
    """(algorithm, environment) -> library -> its runs by seed."""
    groups: dict[tuple[str, str], dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda c: (c.algorithm, c.env, c.library != "Shoal", c.seed)):
        mine = groups.setdefault((curve.algorithm, curve.env), {}).setdefault(curve.library, [])
        if mine and mine[-1].seed == curve.seed:
            sys.exit(
                f"{curve.library}'s {curve.algorithm} on {curve.env} is there twice with seed {curve.seed}"
            )
        mine.append(curve)
    return groups


def seeds(curves: Iterable[Curve]) -> str:
    return ", ".join(str(curve.seed) for curve in curves)


def table(groups: Mapping[tuple[str, str], Mapping[str, Sequence[Curve]]]) -> str:
    """One row for each library, algorithm and environment, as Markdown."""
    head = ["algorithm", "environment", "library", "seeds", *(f"{m // 1000}k" for m in MARKS), "greedy"]
    rows = [head, ["---"] * len(head)]
    for (algorithm, env), libraries in groups.items():
        for library, curves in libraries.items():
            rows.append(
                [
                    algorithm.upper(),
                    env,
                    library,
                    seeds(curves),
                    *(cell([around(curve, mark) for curve in curves]) for mark in MARKS),
                    cell([statistics.fmean(c.greedy) if c.greedy else None for c in curves]),
                ]
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def running(curve: Curve) -> np.ndarray:
    """The mean over the last SMOOTHED episodes, after each."""
    total = np.cumsum([0.0, *curve.returns])
    end = np.arange(1, len(total))
    begin = np.maximum(0, end - SMOOTHED)
    return (total[end] - total[begin]) / (end - begin)


def draw(groups: Mapping[tuple[str, str], Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """A part for each algorithm and environment: the mean over the seeds, and each seed faintly."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    parts = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, ((algorithm, env), libraries) in zip(parts, groups.items(), strict=False):
        for library, curves in libraries.items():
            color, drawn = LIBRARIES[library], [(curve.steps, running(curve)) for curve in curves]
            drawn = [(x, y) for x, y in drawn if len(x)]
            for x, y in drawn:
                axes.plot(x, y, color=color, alpha=0.3 if len(drawn) > 1 else 1.0, linewidth=0.9)
            if len(drawn) > 1:  # as far as all seeds reach
                grid = np.linspace(max(x[0] for x, _ in drawn), min(x[-1] for x, _ in drawn), 300)
                axes.plot(grid, np.mean([np.interp(grid, *xy) for xy in drawn], axis=0), color=color)
            axes.plot(
                [], [], color=color, label=f"{library}, seeds: {', '.join(str(c.seed) for c in curves)}"
            )
        axes.set(
            title=f"{algorithm.upper()} on {env}",
            xlabel="environment steps",
            ylabel=f"return, mean of {SMOOTHED} episodes",
        )
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(color="#e4e4e4")
        axes.legend(loc="upper left", frameon=False)
    for axes in parts[len(groups) :]:
        axes.remove()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="Shoal's run directories")
    parser.add_argument("--sb3", nargs="*", type=Path, default=[], metavar="FILE", help="of curve_sb3.py")
    parser.add_argument("--out", type=Path, default=Path("results") / "curves.md", metavar="TABLE.md")
    options = parser.parse_args()
    curves = [*map(of_shoal, options.runs), *map(of_sb3, options.sb3)]
    if not curves:
        parser.error("no run was given")
    groups = grouped(curves)
    text = (
        "# Learning curves beside Stable-Baselines3's\n\n"
        f"The mean return of the training episodes that ended within {HALF:,} steps of each mark,\n"
        "and of greedy episodes after training: the mean over seeds (worst .. best).\n"
        "Written by `benchmarks/curves.py`.\n\n"
        f"{table(groups)}\n\n![Learning curves]({options.out.with_suffix('.png').name})\n"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    draw(groups, options.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
