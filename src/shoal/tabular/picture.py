"""Values and policies as pictures: a heat-map with arrows for grids, a curve for other state spaces.

draw(mdp, solution.value, "values.png", policy=solution.policy)
text_grid(mdp, solution.value, solution.policy)         # the same as text
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from shoal import storage
from shoal.errors import ShoalError
from shoal.tabular.bellman import checked
from shoal.tabular.mdp import MDP, Grid
from shoal.tabular.structure import reachable

_NUMBERS = 200  # cells, up to which each has its value written in
_ARROWS = 2500  # cells, up to which each has its arrows drawn
_SIGNS = {(-1, 0): "↑", (1, 0): "↓", (0, -1): "←", (0, 1): "→"}


def draw(
    mdp: MDP,
    value: np.ndarray,
    output: str | Path,
    *,
    policy: np.ndarray | None = None,
    grid: Grid | None = None,
    title: str = "",
) -> Path:
    """Draw V [S], and a policy (int [S] or probabilities [S, A]) as arrows as long as it is likely, to a PNG,
    SVG or PDF. Returns the path written.

    grid: how states lie in the plane; None is the MDP's own; without any, V is drawn over the state's number.
    States that no episode comes to (walls) are grey, terminal ones white with a square.
    Raises ShoalError, one line, for an unknown suffix, or values and policies that do not fit.
    """
    output, grid = Path(output), grid or mdp.grid
    storage.check_picture(output)
    value = np.asarray(value, np.float64)
    if value.shape != (mdp.states,):
        raise ShoalError(f"values must have shape [{mdp.states}], not {list(value.shape)}")
    chances = None if policy is None else _chances(mdp, policy)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "shoal", "font.size": 10, "font.family": "DejaVu Sans"}):
        rows, columns = grid.shape if grid else (1, 1)
        unit = 0.62 if mdp.states <= _NUMBERS else 8.0 / max(rows, columns)
        size = (max(3.2, unit * columns + 1.6), max(2.4, unit * rows + 0.8)) if grid else (7.2, 4.0)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        if grid:
            _heat_map(figure, axes, mdp, value, chances, grid)
        else:
            axes.plot(np.arange(mdp.states), value, color="#0072B2", linewidth=1.6)
            axes.set_xlabel("state")
            axes.set_ylabel("value")
            axes.grid(color="#e4e4e4", linewidth=0.8)
        if title:
            axes.set_title(title, fontsize=10, loc="left")
        picture = io.BytesIO()
        metadata: Any = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        suffix = output.suffix.lower()
        figure.savefig(picture, format=suffix[1:], dpi=150, metadata=metadata[suffix])
    with storage.explained(f"could not write {output}"):
        output.parent.mkdir(parents=True, exist_ok=True)
        storage.write(output, picture.getvalue())
    return output


def _chances(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """float64 [S, A]; zeros where an episode has ended."""
    policy = checked(mdp, policy)
    if policy.ndim == 1:
        policy = (np.arange(mdp.actions) == policy[:, None]).astype(np.float64)
    return np.where(mdp.terminal[:, None], 0.0, policy)


def _heat_map(
    figure: Any, axes: Any, mdp: MDP, value: np.ndarray, chances: np.ndarray | None, grid: Grid
) -> None:
    from matplotlib.colors import ListedColormap

    met = reachable(mdp)
    live, ended = met & ~mdp.terminal, met & mdp.terminal
    shown = np.ma.masked_array(value, ~live).reshape(grid.shape)
    axes.set_facecolor("#8a8a8a")
    # Terminal states have no colour of the scale: their 0 would leave none for the differences of the others.
    axes.imshow(np.ma.masked_array(value, ~ended).reshape(grid.shape), cmap=ListedColormap(["#ffffff"]))
    image = axes.imshow(shown, cmap="viridis")
    figure.colorbar(image, ax=axes, label="value", shrink=0.9)
    axes.set_xticks([])
    axes.set_yticks([])
    row, column = np.divmod(np.arange(mdp.states), grid.shape[1])
    middle = (float(shown.min()) + float(shown.max())) / 2
    ink = np.where((value > middle) | ended, "black", "white")
    if mdp.states <= _ARROWS:
        axes.plot(column[ended], row[ended], "s", markersize=9, fillstyle="none", color="#D55E00")
    if chances is not None and mdp.states <= _ARROWS:
        for move, chance in zip(grid.moves, chances.T, strict=True):
            here = np.flatnonzero(met & (chance > 1e-9))
            length = 0.3 * chance[here]
            axes.quiver(
                column[here],
                row[here] - 0.12,  # above the number
                move[1] * length,
                move[0] * length,
                color=ink[here],
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.05,
                units="x",
            )
    if mdp.states <= _NUMBERS:
        for s in np.flatnonzero(met):
            axes.text(
                column[s], row[s] + 0.42, number(value[s]), color=ink[s], fontsize=6, ha="center", va="bottom"
            )


def number(value: float) -> str:
    """A value in few letters."""
    if value == 0.0:
        return "0"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def text_grid(mdp: MDP, value: np.ndarray, policy: np.ndarray, grid: Grid | None = None) -> str:
    """V and the policy's likeliest moves, a line for each row of the grid: "0.94→"; # is no state that an
    episode comes to, and terminal states have their value alone. Raises ShoalError where there is no grid."""
    grid = grid or mdp.grid
    if grid is None:
        raise ShoalError("this MDP has no grid; Grid(shape, moves) says how its states lie")
    chances, met = _chances(mdp, policy), reachable(mdp)
    signs = [_SIGNS.get(move, "?") for move in grid.moves]
    cells = []
    for s in range(mdp.states):
        best = chances[s] > chances[s].max() - 1e-9
        arrows = "" if mdp.terminal[s] else "".join(np.array(signs)[best])
        cells.append(f"{number(float(value[s]))}{arrows}" if met[s] else "#")
    width = max(map(len, cells))
    rows = [cells[i : i + grid.shape[1]] for i in range(0, mdp.states, grid.shape[1])]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell in row) for row in rows)


def error_digits(bound: float) -> int:
    """Digits behind the point that a bound on the error leaves: 1e-6 -> 6; at most 12."""
    return 12 if bound <= 0 else min(12, max(0, math.floor(-math.log10(bound))))
