"""Train the cases of benchmarks/learning.toml on several seeds, and write what they reached as a table.

    python tests/learning/learning_cases.py run ppo-cartpole ppo-acrobot  one by one
    python tests/learning/learning_cases.py run ppo-cartpole --set learning_rate=3e-4 --tag=-slow
    python tests/learning/learning_cases.py table  as Markdown

Every run leaves its run directory and a line in results.jsonl under --out.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).resolve().parents[2] / "benchmarks" / "learning.toml"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One algorithm on one environment.

    target: the least mean return that counts as learned, of the "greedy" episodes afterwards, or of the last
    100 of "training" (returns); of the seeds' figures the worst must reach it, or their mean (judged).
    settings: of the algorithm's dataclass; trainer: of the Trainer; wrappers: names in WRAPPERS. server: of a
    ParameterServer to run on. compiled: it runs on Compiled. Else on Local.
    """

    name: str
    algorithm: str
    env: str
    envs: int
    steps: int
    target: float
    judged: str = "worst"
    returns: str = "greedy"
    seeds: int = 5
    episodes: int = 20
    wrappers: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False


def cases(path: Path = SETTINGS) -> dict[str, Case]:
    """name -> Case, in the file's order."""
    return {name: Case(name=name, **what) for name, what in tomllib.loads(path.read_text()).items()}


def hide_velocities(env: Any) -> Any:
    """CartPole without its two velocities: the position of the cart and the angle of the pole are left."""
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformObservation

    space, seen = env.observation_space, [0, 2]
    shown = Box(space.low[seen], space.high[seen], dtype=space.dtype)
    return TransformObservation(env, lambda obs: obs[seen], shown)


WRAPPERS = {"hide_velocities": hide_velocities}


def trainer(case: Case, seed: int, run_dir: Path | None = None) -> Any:
    """The Trainer of a case, before its first step."""
    from shoal import Compiled, Local, ParameterServer, Trainer, algorithms

    alone = (Compiled if case.compiled else Local)(envs=case.envs)
    on = ParameterServer(envs=case.envs, **case.server) if case.server else alone
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in case.settings.items()}
    return Trainer(
        algorithms.load(case.algorithm)(**settings),
        case.env,
        seed=seed,
        on=on,
        wrappers=[WRAPPERS[name] for name in case.wrappers],
        run_dir=run_dir,
        **case.trainer,
    )


def run(case: Case, seed: int, run_dir: Path | None = None) -> dict[str, Any]:
    """Train and evaluate: the figures of one run, as plain data.

    seconds: from before the imports to the last step. cpu_seconds: of the processor, which are fewer where
    other programs run beside. steps_to_target: after which the last 100 training episodes first had the
    target as their mean; None: never, or there is no run directory to tell.
    """
    begun, busy = time.perf_counter(), time.process_time()
    training = trainer(case, seed, run_dir)
    try:
        last = training.fit(case.steps)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
        returns = training.evaluate(case.episodes).returns
        return {
            "case": case.name,
            "seed": seed,
            "env_steps": last["env_steps"],
            "episodes": last["episodes"],
            "training_return": float(last["episode_return_mean"]),
            "steps_to_target": None if run_dir is None else steps_to(case.target, run_dir),
            "greedy_return": statistics.fmean(returns),
            "greedy_min": min(returns),
            "greedy_max": max(returns),
            "greedy_returns": list(returns),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "fingerprint": training.fingerprint(),
            "settings": dict(case.settings),
            "trainer": dict(case.trainer),
            "envs": case.envs,
        }
    finally:
        training.close()


def steps_to(target: float, run_dir: Path) -> int | None:
    """Environment steps until the mean of 100 training episodes was `target`; None where it never was."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    full = (row for row in rows if row["episodes"] >= 100)
    return next((row["env_steps"] for row in full if row["episode_return_mean"] >= target), None)


def judged(case: Case, runs: Sequence[Mapping[str, Any]]) -> float:
    """What the seeds' runs are worth, to be held against the target."""
    figures = [run[f"{case.returns}_return"] for run in runs]
    return min(figures) if case.judged == "worst" else statistics.fmean(figures)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row per case: means and ranges over the seeds, and the median seconds of a run's processor time."""
    rows = [
        "| case | seeds | steps | target | greedy return: mean (min .. max) | training return | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in cases().items():
        mine = [r for r in results if r["case"] == name]
        if not mine:
            continue
        greedy, training, seconds = (
            [r[what] for r in mine] for what in ("greedy_return", "training_return", "cpu_seconds")
        )
        rows.append(
            f"| {name} | {len(mine)} | {case.steps:,} | {case.target:g} | "
            f"{statistics.fmean(greedy):.1f} ({min(greedy):.1f} .. {max(greedy):.1f}) | "
            f"{statistics.fmean(training):.1f} ({min(training):.1f} .. {max(training):.1f}) | "
            f"{statistics.median(seconds):.0f} ({min(seconds):.0f} .. {max(seconds):.0f}) |"
        )
    return "\n".join(rows)


def changed(case: Case, changes: Sequence[str]) -> Case:
    """The case with "name=value" settings changed; envs and steps are the case's own."""
    for change in changes:
        name, _, text = change.partition("=")
        value = ast.literal_eval(text)
        if name in ("envs", "steps"):
            case = replace(case, **{name: value})
        else:
            case = replace(case, settings={**case.settings, name: value})
    return case


def read(out: Path) -> list[dict[str, Any]]:
    """The results of all runs under a folder."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = cases()
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("names", nargs="+", choices=known, metavar="CASE")
    runs.add_argument("--seeds", nargs="+", type=int)
    runs.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    runs.add_argument("--tag", default="", help="beside the case's name, for trials with other settings")
    tables = commands.add_parser("table")
    for command in (runs, tables):
        command.add_argument("--out", type=Path, default=Path("results") / "learning")
    args = parser.parse_args()
    if args.command == "table":
        print(table(read(args.out)))
        return
    for name in args.names:
        case = changed(known[name], args.set)
        case = replace(case, name=name + args.tag)
        for seed in args.seeds or range(case.seeds):
            result = run(case, seed, args.out / f"{case.name}-{seed}")
            with (args.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            print({k: v for k, v in result.items() if not isinstance(v, list | dict)}, flush=True)


if __name__ == "__main__":
    main()
