"""Learning curves of runs as a picture: the mean over seeds, its spread, and each seed faintly.

run directories -> (x, y) of each run -> runs grouped by label -> a common axis -> mean and spread -> figure
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal import storage
from shoal.algorithms import REGISTRY
from shoal.errors import ShoalError, did_you_mean
from shoal.writers import dotted, read_rows

_AXES = {"steps": ("env_steps", "environment steps"), "seconds": ("timing/seconds", "seconds")}
_NAMES = {"episode_return_mean": "episode return", "episode_length_mean": "episode length"}
_SETTINGS = ("algorithm", "env", "on", "normalize_observations", "scale_rewards")
_POINTS = 500
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class NoPoints(ShoalError):
    """A run has nothing to draw yet."""


Runs = Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]]


@dataclass(frozen=True)
class Curve:
    """One run's points [n], x rising, y finite."""

    x: np.ndarray
    y: np.ndarray


def plot(
    runs: Runs,
    output: str | Path,
    *,
    x: str = "steps",
    y: str = "episode_return_mean",
    smooth: float = 0.0,
) -> Path:
    """Draw y over x ("steps" or "seconds") for the runs given, as PNG, SVG or PDF by the suffix of `output`.

    runs: run directories, or folders that hold several (seeds). Runs that differ only in the seed are one
    curve; {label: run directories} groups them otherwise. smooth in [0, 1): weight of the past in an
    exponential moving average. The mean and its band (one standard deviation over the seeds) reach as far
    as all seeds of a group do. Returns the path written. A run without points is left out, with a warning.

    Raises ShoalError, one line, for runs that are missing, or all without points, an unknown x, y or
    suffix, and where the picture cannot be written.
    """
    output = Path(output)
    storage.check_picture(output)
    if x not in _AXES:
        raise ShoalError(f"unknown x {x!r}; {did_you_mean(x, _AXES)}")
    if not 0.0 <= smooth < 1.0:
        raise ShoalError(f"smooth is {smooth}; it should be at least 0 and less than 1")
    groups: dict[str, list[Curve]] = {}
    empty: list[NoPoints] = []
    for label, paths in grouped(runs).items():
        for path in paths:
            try:
                curve = read_curve(path, _AXES[x][0], y)
            except NoPoints as error:
                empty.append(error)
            else:
                groups.setdefault(label, []).append(_smoothed(curve, smooth))
    if not groups:
        raise empty[0]
    for error in empty:
        warnings.warn(f"left out of the picture: {error}", stacklevel=2)
    picture = _draw(groups, _AXES[x][1], _NAMES.get(y, y), output.suffix.lower()[1:])
    with storage.explained(f"could not write {output}"):
        output.parent.mkdir(parents=True, exist_ok=True)
        storage.write(output, picture)
    return output


def grouped(runs: Runs) -> dict[str, list[Path]]:
    """label -> run directories."""
    if isinstance(runs, Mapping):
        many = {k: [v] if isinstance(v, str | Path) else list(v) for k, v in runs.items()}
        groups = {label: [run for given in paths for run in _runs_in(given)] for label, paths in many.items()}
    else:
        groups = _by_settings(list(dict.fromkeys(run for given in runs for run in _runs_in(given))))
    if not groups or not all(groups.values()):
        raise ShoalError("there is nothing to plot: no run was given")
    return groups


def read_curve(run: Path, x: str, y: str) -> Curve:
    """The run's points where both are numbers, in order of x. Raises NoPoints if there is none."""
    place = run / "metrics.jsonl"
    rows = read_rows(place) if place.exists() else []
    if not rows:
        raise NoPoints(f"the run in {run} has no iterations yet")
    names = {name for row in rows for name in row}
    for name in (x, y):
        if name not in names:
            raise ShoalError(f"the run in {run} has no {name!r}; {did_you_mean(name, names)}")

    def numbers(name: str) -> np.ndarray:
        values = [row.get(name) for row in rows]
        return np.array([v if isinstance(v, int | float) else math.nan for v in values], np.float64)

    xs, ys = numbers(x), numbers(y)
    known = np.isfinite(xs) & np.isfinite(ys)
    if not known.any():
        raise NoPoints(f"the run in {run} has no numbers for {y!r} yet (has an episode finished?)")
    order = np.argsort(xs[known], kind="stable")
    return Curve(xs[known][order], ys[known][order])


def common(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """x [P] over the range that all curves cover, and their values there by linear interpolation [n, P].

    Where they share no range, P is 0.
    """
    begin, end = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    if begin > end:
        return np.zeros(0), np.zeros((len(curves), 0))
    axis = np.unique(np.concatenate([c.x for c in curves]).clip(begin, end))
    if len(axis) > _POINTS:
        axis = np.linspace(begin, end, _POINTS)
    return axis, np.stack([np.interp(axis, c.x, c.y) for c in curves])


def _smoothed(curve: Curve, weight: float) -> Curve:
    """Exponential moving average, divided by the weight there is so far, so that it starts unbiased."""
    if weight == 0.0:
        return curve
    out = np.empty_like(curve.y)
    average = total = 0.0
    for i, value in enumerate(curve.y):
        average = weight * average + (1.0 - weight) * value
        total = weight * total + (1.0 - weight)
        out[i] = average / total
    return Curve(curve.x, out)


def _runs_in(given: str | Path) -> list[Path]:
    """The path itself if it is a run, else the runs that the folder holds, by name."""
    path = Path(given)
    with storage.explained(f"could not read {path}"):
        if (path / "config.json").is_file():
            return [path]
        if not path.is_dir():
            raise ShoalError(f"there is no run in {path}")
        found = sorted(child for child in path.iterdir() if (child / "config.json").is_file())
    if not found:
        raise ShoalError(f"{path} is no run directory and holds none")
    return found


def _by_settings(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs that differ only in the seed are together, under algorithm and environment; where that does not
    tell two groups apart, the label says the settings in which they differ."""
    titles: dict[str, dict[str, list[Path]]] = {}  # label -> settings as text -> runs
    for run in runs:
        with storage.explained(f"could not read the run in {run}"):
            config = storage.read_json(run / "config.json")
        title = _title(config) or run.name
        settings = json.dumps({key: config.get(key) for key in _SETTINGS}, sort_keys=True)
        titles.setdefault(title, {}).setdefault(settings, []).append(run)
    groups: dict[str, list[Path]] = {}
    for title, kinds in titles.items():
        flat = [dict(dotted(json.loads(settings))) for settings in kinds]
        keys = dict.fromkeys(key for one in flat for key in one)
        differing = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
        for one, found in zip(flat, kinds.values(), strict=True):
            words = (f"{key.removeprefix('algorithm.settings.')}={one.get(key)}" for key in differing)
            groups[", ".join([title, *words])] = found
    return groups


def _title(config: Mapping[str, Any]) -> str:
    """Algorithm and environment, as a run's configuration names them."""
    flat = dict(dotted(config))
    # "ppo" is registered as "module:PPO", and one's own algorithm is named like that at once.
    algorithm = str(flat.get("algorithm.name", ""))
    words = (REGISTRY.get(algorithm, algorithm).rpartition(":")[2], str(flat.get("spec.id", "")))
    return " ".join(filter(None, words))


def _draw(groups: Mapping[str, Sequence[Curve]], xlabel: str, ylabel: str, suffix: str) -> bytes:
    """The picture. No pyplot: figures here belong to nobody's session."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with matplotlib.rc_context({"svg.hashsalt": "shoal", "font.size": 10.5, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(7.2, 4.6 + 0.1 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for number, (label, curves) in enumerate(groups.items()):
            color = _COLORS[number % len(_COLORS)]
            axis, values = common(curves)
            mean, spread = values.mean(axis=0), values.std(axis=0)
            single = len(curves) == 1
            if not single:
                for curve in curves:
                    axes.plot(curve.x, curve.y, color=color, alpha=0.22, linewidth=0.8, zorder=1)
                axes.fill_between(axis, mean - spread, mean + spread, color=color, alpha=0.16, linewidth=0)
            text = label if single else f"{label}, {len(curves)} seeds"
            marker = "o" if len(axis) == 1 else None
            axes.plot(axis, mean, color=color, linewidth=1.9, label=text, marker=marker, zorder=2)
        _tidy(axes, xlabel, ylabel, EngFormatter(sep="") if xlabel != "seconds" else None)
        if any(len(curves) > 1 for curves in groups.values()):
            axes.set_title("mean ± standard deviation over seeds", fontsize=9, color="#666666", loc="right")
        # Beside the axes, where it hides no curve.
        columns = 2 if max(map(len, groups)) <= 32 else 1
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        target = io.BytesIO()
        metadata: Any = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(target, format=suffix, dpi=160, metadata=metadata[suffix])
        return target.getvalue()


def _tidy(axes: Any, xlabel: str, ylabel: str, formatter: Any) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if formatter is not None:
        axes.xaxis.set_major_formatter(formatter)
    axes.margins(x=0.02)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")
    axes.tick_params(color="#888888", labelcolor="#333333")
