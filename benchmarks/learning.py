"""Learning curves over seeds: `shoal train` for the cases of learning.toml, and what came of it.

    python benchmarks/learning.py                          the whole table, 3 seeds each
    python benchmarks/learning.py --only ppo-cartpole --seeds 5

Every run is a process of its own, `shoal train ...` with its run directory under OUT/runs; a run that is
already there and finished is not repeated. Then OUT/learning.md has the table, OUT/learning.json the numbers,
and OUT/NAME.png one picture for each row: the mean return over the last 100 training episodes, a line for
each seed and their median. Pictures need matplotlib, which Shoal brings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run import ROOT, alone, commit, machine, note, spread


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table. flags: what follows `shoal train ALGORITHM ENV`. target: the return that counts
    as learned (of greedy episodes; the training returns shown here are those of a policy that explores)."""

    name: str
    algorithm: str
    env: str
    steps: int
    flags: tuple[str, ...]
    target: float


def tasks() -> dict[str, Task]:
    """name -> Task, of the cases in learning.toml that the command line can run: those without wrappers."""
    cases = tomllib.loads(Path(__file__).with_name("learning.toml").read_text())
    return {name: from_case(name, case) for name, case in cases.items() if not case.get("wrappers")}


def from_case(name: str, case: Mapping[str, Any]) -> Task:
    """One case of learning.toml as a command line."""
    server = case.get("server", {})
    on = "parameter-server" if server else "compiled" if case.get("compiled") else "local"
    flags = ["--envs", str(case["envs"]), "--on", on]
    for setting, value in {**server, **case.get("settings", {}), **case.get("trainer", {})}.items():
        flag = setting.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    where = {key: case[key] for key in ("algorithm", "env", "steps", "target")}
    return Task(name=name, flags=tuple(flags), **where)


def train(task: Task, seed: int, run_dir: Path, lock: Path | None) -> dict[str, Any]:
    """One run: its summary, or {"error": the last line that it wrote}."""
    summary = run_dir / "summary.json"
    if not summary.exists():
        begun = time.time()
        where = ["--steps", str(task.steps), "--seed", str(seed), "--run-dir", str(run_dir)]
        program = Path(sys.executable).parent / "shoal"
        with alone(lock):
            done = subprocess.run(
                [str(program), "train", task.algorithm, task.env, *where, *task.flags],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode or not summary.exists():
            said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            return {"seed": seed, "error": said[-1]}
        note(f"{task.name}, seed {seed}: {time.time() - begun:.0f} s")
    return {"seed": seed, **json.loads(summary.read_text())}


def curve(run_dir: Path) -> tuple[list[int], list[float]]:
    """(environment steps, mean return) of a run, where episodes had ended."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [(r["env_steps"], r["episode_return_mean"]) for r in rows if r["episode_return_mean"] is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def draw(task: Task, run_dirs: Sequence[Path], path: Path) -> None:
    """One line for each seed, and their median over a common grid of steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    curves = [curve(folder) for folder in run_dirs]
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 200)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for x, y in curves:
        axes.plot(x, y, color="tab:blue", alpha=0.35, linewidth=1)
    median = np.median([np.interp(grid, x, y) for x, y in curves], axis=0)
    axes.plot(grid, median, color="tab:blue", linewidth=2, label=f"median of {len(curves)} seeds")
    axes.set(
        xlabel="environment steps",
        ylabel="mean return of 100 episodes",
        title=f"{task.algorithm.upper()} on {task.env}",
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(results: dict[str, list[dict[str, Any]]], seeds: int) -> str:
    where = machine()
    lines = [
        "# Learning curves",
        "",
        f"{time.strftime('%Y-%m-%d')}; {where['cpu']}, {where['cores']} cores; Shoal at {commit()}; "
        f"{seeds} seeds. "
        "The return is the mean over the last 100 training episodes at the end: median (least to most). "
        "Written by `benchmarks/learning.py`.",
        "",
        "| | algorithm | environment | steps | return | steps/s | target | flags |",
        "|---|---|---|---|---|---|---|---|",
    ]
    known = tasks()
    for name, runs in results.items():
        task = known[name]
        good = [r for r in runs if "error" not in r]
        returns = spread([r["episode_return_mean"] for r in good], "{:.1f}")
        speed = spread([r["env_steps"] / r["seconds"] for r in good], "{:,.0f}")
        if len(good) < len(runs):
            returns += f"; {len(runs) - len(good)} failed: " + next(r["error"] for r in runs if "error" in r)
        flags = f"`{' '.join(task.flags)}`"
        cells = [name, task.algorithm, task.env, f"{task.steps:,}", returns, speed, f"{task.target:g}", flags]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of tasks, by comma")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lock", type=Path, help="a file to hold a lock on during each run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "learning", help="folder")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    known = tasks()
    for word in only:
        if word not in known:
            parser.error(f"unknown task {word!r}; there are {', '.join(known)}")

    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for task in known.values():
        if only and task.name not in only:
            continue
        folders = [options.out / "runs" / task.name / str(seed) for seed in range(options.seeds)]
        for folder in folders:
            folder.parent.mkdir(parents=True, exist_ok=True)
        runs = [train(task, seed, folder, options.lock) for seed, folder in enumerate(folders)]
        results[task.name] = runs
        good = [folder for run, folder in zip(runs, folders, strict=True) if "error" not in run]
        if good:
            draw(task, good, options.out / f"{task.name}.png")
        (options.out / "learning.md").write_text(table(results, options.seeds))
        (options.out / "learning.json").write_text(json.dumps(results, indent=1) + "\n")
    print((options.out / "learning.md").read_text())
    return int(any("error" in run for runs in results.values() for run in runs))


if __name__ == "__main__":
    sys.exit(main())
