"""What a fragment costs on a cluster, and how many there are with more and more runners.

    python benchmarks/cluster.py fragments      each step of a fragment's way, in microseconds
    python benchmarks/cluster.py scaling        fragments of 0.3 s of sleep on 1, 2, 4, 8, 16 and 32 runners

`--only NAME,NAME`, `--seconds`, `--lock FILE` as for `run.py`, whose suite `cluster` compares the same with
RLlib. Tables go to results/benchmarks/cluster_NAME.md. Each run is a process of its own (`cluster_run.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run import HERE, ROOT, alone, commit, end, machine, note

Result = dict[str, Any]
RUNNERS = (1, 2, 4, 8, 16, 32)
FRAGMENT = 0.3  # seconds that a fragment of `scaling` sleeps
ROWS, MORE_ROWS = 10, 30
IMPALA = {"rollout_length": 128, "staleness": 4}
LARGE = {"seconds": 0.0, "dtype": "uint8"}

# name -> (title, what cluster_run gets beside the defaults of `work`)
FRAGMENTS: dict[str, tuple[str, Result]] = {
    "ppo-small": (
        "PPO: 4 environments with 4 numbers each, 128 rows",
        {"algorithm": "ppo", "settings": {"rollout_length": 128, "minibatches": 4, "epochs": 4}},
    ),
    "impala-small": (
        "IMPALA: 4 environments with 4 numbers each, 128 rows",
        {"settings": IMPALA, "cluster": {"runners": 2, "envs": 8, "per_update": 1}},
    ),
    "ppo-images": (
        "PPO: 4 environments with images of 84x84x4 bytes, 32 rows",
        {
            "algorithm": "ppo",
            "env_kwargs": LARGE,
            "settings": {"rollout_length": 32, "minibatches": 1, "epochs": 1},
            "settle": 2,
        },
    ),
}


def sleeping(runners: int, rows: int, *, central: bool) -> Result:
    """A run of `scaling`: a group of one environment for each runner."""
    cluster: Result = {"runners": runners, "envs": runners, "groups": runners, "cpus": 0.05}
    if central:
        cluster |= {"policy_actors": 1, "policy_cpus": 0.2}
    return {
        "settings": {"rollout_length": rows, "staleness": 8},
        "env_kwargs": {"seconds": FRAGMENT / rows},
        "cluster": cluster,
        "instrument": False,
        "settle": 5,
    }


def work(given: Result, seconds: float) -> Result:
    defaults = {
        "algorithm": "impala",
        "env": "Sleeping",
        "env_kwargs": {"seconds": 0.0},
        "cluster": {"runners": 2, "envs": 8},
        "instrument": True,
        "settle": 8,
        "seconds": seconds,
        "wall": 240,
    }
    return {**defaults, **given}


def run_once(given: Result) -> Result:
    """The figures of one run, or {"error": ...}."""
    own = ROOT / ".venv" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_", "RAY_"))}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", "NPROC": "1", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(HERE), "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died"}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        process = subprocess.Popen(
            [str(own if own.exists() else sys.executable), str(HERE / "cluster_run.py"), json.dumps(given)],
            env=env | {"TMPDIR": scratch},
            cwd=scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=given["wall"])
        except subprocess.TimeoutExpired:
            end(process.pid)
            out, err = process.communicate()
            err += f"\nno result after {given['wall']:g} s"
        except BaseException:
            end(process.pid)
            raise
    lines = [line for line in out.splitlines() if line.startswith("BENCH ")]
    if not lines:
        return {"error": (err.strip().splitlines() or ["no output"])[-1], "load_before": load}
    return json.loads(lines[-1].removeprefix("BENCH ")) | {"load_before": load}


def heading(title: str, results: list[Result]) -> list[str]:
    where, loads = machine(), [r["load_before"] for r in results]
    return [
        f"# {title}",
        "",
        f"{time.strftime('%Y-%m-%d')}; {where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, "
        f"{where['system']}; Shoal at {commit()}. Load average before the runs: {min(loads):.2f} to "
        f"{max(loads):.2f} (a run itself adds 1 to 2).",
        "",
    ]


def fragments_table(results: dict[str, Result]) -> list[str]:
    good = {name: r for name, r in results.items() if "error" not in r}
    lines = heading("What a fragment costs", list(results.values()))
    lines += [f"- {name}: {FRAGMENTS[name][0]}" for name in results]
    lines += ["", "Microseconds: median (95th percentile).", "", "| | " + " | ".join(good) + " |"]
    lines.append("|" + "---|" * (len(good) + 1))
    stages = sorted({stage for r in good.values() for stage in r["costs"]})
    cell = lambda c: f"{c['median']:,.0f} ({c['p95']:,.0f})" if c else "-"  # noqa: E731
    for stage in stages:
        cells = [cell(r["costs"].get(stage)) for r in good.values()]
        lines.append("| " + " | ".join([stage, *cells]) + " |")
    rows = {
        "trajectory: bytes": lambda r: f"{r['by_itself']['bytes']:,}",
        "trajectory: serialise and store, by itself": lambda r: f"{r['by_itself']['put']:,.0f}",
        "trajectory: fetch, by itself": lambda r: f"{r['by_itself']['get']:,.0f}",
        "processor time of all processes (environment, acting, learning)": lambda r: (
            f"{r['cpu_per_fragment'] * 1e6:,.0f}"
        ),
        "fragments/s": lambda r: f"{r['fragments_per_second']:,.1f}",
    }
    for title, value in rows.items():
        lines.append("| " + " | ".join([title, *[value(r) for r in good.values()]]) + " |")
    return [*lines, "", *failures(results)]


def scaling_table(results: dict[str, Result]) -> list[str]:
    lines = heading("More and more runners", list(results.values()))
    lines += [
        "IMPALA, one environment for each runner; a fragment has so many rows, all sleep, and it takes "
        f"{FRAGMENT} s. Ideal: one every {FRAGMENT} s on every runner. Where a policy actor acts, runners "
        "do not load JAX. Memory (PSS) is that of all processes, Ray's among them.",
        "",
        "| runners | who acts | rows | fragments/s | of ideal | processor time per fragment (ms) "
        "| memory (MB) | runners idle | load average before |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if "error" in r:
            continue
        who, rows, count = name.split("-")
        ideal = int(count) / FRAGMENT
        cells = [
            count + ("" if r["ready"] else " (not all came in time)"),
            "a policy actor" if who == "central" else "each runner",
            rows,
            f"{r['fragments_per_second']:.1f}",
            f"{r['fragments_per_second'] / ideal:.0%}",
            f"{r['cpu_per_fragment'] * 1e3:.0f}",
            f"{r['memory_mb']:,.0f}",
            f"{r['idle']:.0%}",
            f"{r['load_before']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *failures(results)]


def failures(results: dict[str, Result]) -> list[str]:
    return [f"{name} failed: {r['error']}" for name, r in results.items() if "error" in r]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fragments", "scaling"))
    parser.add_argument(
        "--only", default="", help="names of runs, by comma, such as ppo-small or central-10-16"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time of a run")
    parser.add_argument("--lock", type=Path, help="a file to hold a lock on during each run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks", help="folder")
    options = parser.parse_args()
    if options.what == "fragments":
        runs = {name: given for name, (_, given) in FRAGMENTS.items()}
    else:
        runs = {f"central-{ROWS}-{n}": sleeping(n, ROWS, central=True) for n in RUNNERS}
        runs |= {f"central-{MORE_ROWS}-{n}": sleeping(n, MORE_ROWS, central=True) for n in (4, 8)}
        runs |= {f"own-{ROWS}-{n}": sleeping(n, ROWS, central=False) for n in RUNNERS}
    only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in only if name not in runs]:
        parser.error(f"unknown: {unknown[0]!r}; runs are {', '.join(runs)}")
    results: dict[str, Result] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in only or runs:
        with alone(options.lock):
            results[name] = run_once(work(runs[name], options.seconds))
        told = results[name].get("error") or f"{results[name]['fragments_per_second']:.1f} fragments/s"
        note(f"{name}: {told}")
        made = (fragments_table if options.what == "fragments" else scaling_table)(results)
        (options.out / f"cluster_{options.what}.md").write_text("\n".join(made))
        (options.out / f"cluster_{options.what}.json").write_text(json.dumps(results, indent=1) + "\n")
    print((options.out / f"cluster_{options.what}.md").read_text())
    return int(any("error" in r for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
