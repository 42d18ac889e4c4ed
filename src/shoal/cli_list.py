"""What runs there are and how they stand, read from their directories without JAX."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from shoal.figures import quantity

_COLUMNS = ("run", "algorithm", "env", "seed", "steps", "return", "state")


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows from `described`, to be printed."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        made.add_column(column, justify="right" if column in ("seed", "steps", "return") else "left")
    for row in rows:
        shown = {**row, "steps": quantity(row["steps"], 0), "return": quantity(row["return"])}
        made.add_row(*(str(shown[column]) for column in _COLUMNS))
    return made


def described(run_dir: Path) -> dict[str, Any] | None:
    """A run in one row, read without JAX: for `table`; None if it is none.

    state: running (another process writes it), done, failed (there is an error.txt) or stopped.
    """
    config = read_json(run_dir / "config.json")
    if config is None or "algorithm" not in config or "spec" not in config:
        return None
    summary = read_json(run_dir / "summary.json")
    last = summary or _last_row(run_dir / "metrics.jsonl")
    if _locked(run_dir / ".lock"):
        state = "running"
    elif summary is not None:
        state = "done"
    else:
        state = "failed" if (run_dir / "error.txt").exists() else "stopped"
    mean = last.get("episode_return_mean")
    return {
        "run": str(run_dir),
        "algorithm": config["algorithm"]["name"],
        "env": config["spec"]["id"],
        "seed": config["seed"],
        "steps": last.get("env_steps", 0),
        "return": float("nan") if mean is None else mean,
        "state": state,
    }


def read_json(place: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(place.read_bytes())
        return value if isinstance(value, dict) else None
    return None


def _last_row(place: Path, tail: int = 65536) -> dict[str, Any]:
    """The last whole row of a JSON-lines file; {} where there is none."""
    with contextlib.suppress(OSError), place.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - tail))
        for text in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError):
                row = json.loads(text)
                if isinstance(row, dict):
                    return row
    return {}


def _locked(place: Path) -> bool:
    """Whether a living process holds the run directory's lock."""
    with contextlib.suppress(FileNotFoundError), place.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
