"""Prioritised replay of a million small transitions: how many are sampled and updated per second.

    python benchmarks/replay.py                  cpprb and Shoal in turn; writes results/benchmarks/replay.md
    python benchmarks/replay.py --repeats 1 --seconds 2 --only cpprb,numpy-1

Each run is a process of its own. It fills a replay of 1,000,000 transitions (observations of 4 float32, a
discrete action), 32 at a time, and then, for some seconds, draws minibatches of 256, computes importance
weights (exponent 0.4, divided by the greatest) and gives every transition drawn a new priority (exponent
0.6). This file is also the driver of each run, under each library's own Python.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

CAPACITY, BATCH, ENVS, ROWS = 1_000_000, 256, 8, 4
ALPHA, BETA = 0.6, 0.4
ENTRIES = {
    "cpprb": ("cpprb (C++)", 1),
    "numpy-1": ("Shoal, host memory, one minibatch at a time", 1),
    "numpy-8": ("Shoal, host memory, 8 minibatches at a time", 8),
    "jax-1": ("Shoal, compiled, one minibatch at a time", 1),
    "jax-8": ("Shoal, compiled, 8 minibatches at a time", 8),
}


# One run


def cpprb_replay(count: int) -> tuple[Callable[[Any], None], Callable[[Any], Any]]:
    """(insert a fragment, sample and update)."""
    import numpy as np
    from cpprb import PrioritizedReplayBuffer

    fields = {
        "obs": {"shape": 4},
        "act": {"dtype": np.int32},
        "rew": {},
        "next_obs": {"shape": 4},
        "done": {},
    }
    replay = PrioritizedReplayBuffer(CAPACITY, fields, alpha=ALPHA)

    def insert(fragment: dict[str, Any]) -> None:
        obs = fragment["obs"]
        replay.add(
            obs=obs[:-1].reshape(-1, 4),
            act=fragment["action"].reshape(-1),
            rew=fragment["reward"].reshape(-1),
            next_obs=obs[1:].reshape(-1, 4),
            done=fragment["terminated"].reshape(-1),
        )

    def update(number: int, errors: Any) -> None:
        drawn = replay.sample(BATCH, beta=BETA)
        replay.update_priorities(drawn["indexes"], errors[0])

    return insert, update


def shoal_replay(on_device: bool, count: int) -> tuple[Callable[[Any], None], Callable[[Any], Any]]:
    """(insert a fragment, sample and update)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import replay
    from shoal.keys import fold, key_for
    from shoal.spaces import Box, Discrete
    from shoal.types import EnvSpec, Observation, Replay, Trajectory

    plan = Replay(rows=ROWS, capacity=CAPACITY, batch_size=BATCH, train_every=1, prioritized=True)
    spec = EnvSpec(id="benchmark", observation=Box((4,)), action=Discrete(2))
    layout = replay.Layout.of(plan, spec, ENVS)
    key = key_for(0, "draw")

    def trajectory(fragment: dict[str, Any]) -> Trajectory:
        return Trajectory(
            obs=Observation(fragment["obs"]),
            first=fragment["first"],
            action=fragment["action"],
            reward=fragment["reward"],
            terminated=fragment["terminated"],
            version=fragment["action"],
            extras={"raw_action": fragment["action"]},
            carry=(),
        )

    def learn(memory: Any, key: Any, errors: Any) -> tuple[Any, Any, Any]:
        drawn = replay.draw(layout, memory, key, count, BATCH)
        weight = drawn.weight**BETA
        weight = weight / weight.max(axis=1, keepdims=True)
        return replay.reprioritize(layout, memory, drawn.index, errors**ALPHA, count), drawn, weight

    put = lambda memory, fragment: replay.insert(layout, memory, fragment)  # noqa: E731
    if on_device:
        learn, put = jax.jit(learn, donate_argnums=0), jax.jit(put, donate_argnums=0)
    memory: Any = None
    keys: Any = None

    def insert(fragment: dict[str, Any]) -> None:
        nonlocal memory
        if memory is None:
            memory = replay.empty(layout, trajectory(fragment), jnp if on_device else np)
        memory = put(memory, trajectory(fragment))

    def update(number: int, errors: Any) -> None:
        nonlocal memory, keys
        if keys is None or number % 100 == 0:
            keys = fold(key, np.arange(number, number + 100, dtype=np.uint32))
        memory, drawn, weight = learn(memory, keys[number % 100], errors)
        jax.block_until_ready((drawn, weight))

    return insert, update


def child(entry: str, seconds: float) -> None:
    """Make one run and print its figures as a line of JSON."""
    import numpy as np

    count = ENTRIES[entry][1]
    made = cpprb_replay(count) if entry == "cpprb" else shoal_replay(entry.startswith("jax"), count)
    insert, update = made
    rng = np.random.default_rng(0)
    fragments = []
    for _ in range(50):
        first = np.zeros((ROWS + 1, ENVS), bool)
        first[1:] = rng.random((ROWS, ENVS)) < 1 / 200  # a reset every 200 rows
        fragments.append(
            {
                "obs": rng.normal(size=(ROWS + 1, ENVS, 4)).astype(np.float32),
                "first": first,
                "action": rng.integers(0, 2, (ROWS, ENVS)).astype(np.int32),
                "reward": np.ones((ROWS, ENVS), np.float32),
                "terminated": np.zeros((ROWS, ENVS), bool),
            }
        )
    errors = np.abs(rng.normal(size=(50, count, BATCH))).astype(np.float32) + np.float32(1e-6)
    insert(fragments[0])
    update(0, errors[0])  # compiled
    begun = time.process_time()
    fills = CAPACITY // (ROWS * ENVS) + 1
    for i in range(fills):
        insert(fragments[i % 50])
    inserting = time.process_time() - begun
    for i in range(200 // count):  # priorities differ
        update(i, errors[i % 50])
    done, begun, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        update(done, errors[done % 50])
        done += 1
    taken = time.perf_counter() - begun
    cpu = time.process_time() - cpu
    packages = ("cpprb", "numpy") if entry == "cpprb" else ("shoal", "jax", "jaxlib", "numpy")
    figures = {
        "per_second": done * count * BATCH / taken,
        "per_cpu_second": done * count * BATCH / cpu,
        "inserts_per_cpu_second": fills * ROWS * ENVS / inserting,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
    }
    print("BENCH " + json.dumps(figures))


# All runs


def run_once(entry: str, seconds: float) -> dict[str, Any]:
    from peers import PEERS
    from run import ROOT

    own = ROOT / ".venv" / "bin" / "python"
    python = PEERS["cpprb"].python if entry == "cpprb" else own if own.exists() else Path(sys.executable)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), "1")
    env = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", **threads}
    words = [str(python), __file__, "--run", entry, "--seconds", str(seconds)]
    load = os.getloadavg()[0]
    result = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("BENCH ")]
    if not lines:
        raise SystemExit(f"{entry} failed: {result.stderr.strip()}")
    return json.loads(lines[-1].removeprefix("BENCH ")) | {"load_before": load}


def table(results: dict[str, list[dict[str, Any]]], repeats: int) -> str:
    from run import commit, machine, median_of, spread

    where, loads = machine(), [run["load_before"] for runs in results.values() for run in runs]
    base = median_of(results.get("cpprb", []), "per_second")
    lines = [
        "# Prioritised replay",
        "",
        f"{time.strftime('%Y-%m-%d')}; {where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, "
        f"{where['system']}; Shoal at {commit()}; {repeats} runs each, in turn; medians (and ranges). "
        f"Load average before the runs: {min(loads):.2f} to {max(loads):.2f} (a run itself adds 1).",
        "",
        f"A replay of {CAPACITY:,} transitions (observations of 4 float32) on 1 thread: transitions sampled "
        f"and given new priorities, in minibatches of {BATCH}, importance weights included; and transitions "
        f"inserted, {ROWS * ENVS} at a time. Peak memory is that of the whole process, libraries included. "
        "Written by `benchmarks/replay.py`.",
        "",
        "| | transitions/s | relative to cpprb | transitions/s of CPU time | inserted/s of CPU time "
        "| peak memory (MB) |",
        "|---|---|---|---|---|---|",
    ]
    for entry, runs in results.items():
        column = lambda name, runs=runs: spread([run[name] for run in runs], "{:,.0f}")  # noqa: E731
        own = median_of(runs, "per_second")
        cells = [
            ENTRIES[entry][0],
            column("per_second"),
            f"{own / base:.2f}" if own and base else "-",
            column("per_cpu_second"),
            column("inserts_per_cpu_second"),
            column("peak_mb"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    versions = {
        f"- {'cpprb' if entry == 'cpprb' else 'shoal'}: "
        + ", ".join(f"{k} {v}" for k, v in run["versions"].items()): None
        for entry, runs in results.items()
        for run in runs
    }
    return "\n".join([*lines, "", "## Versions", "", *versions, ""])


def main() -> None:
    from peers import PEERS, install
    from run import ROOT, alone, note

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", choices=ENTRIES, help=argparse.SUPPRESS)
    parser.add_argument("--only", default=",".join(ENTRIES), help="entries to run, by comma")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time of a run")
    parser.add_argument("--lock", type=Path, help="a file to hold a lock on during each run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks", help="folder")
    options = parser.parse_args()
    entries = options.only.split(",")
    if unknown := [e for e in entries if e not in ENTRIES]:
        parser.error(f"unknown: {unknown[0]!r}; entries are {', '.join(ENTRIES)}")
    if "cpprb" in entries:
        install(PEERS["cpprb"])
    results: dict[str, list[dict[str, Any]]] = {entry: [] for entry in entries}
    for round_ in range(options.repeats):
        start = round_ % len(entries)
        for entry in entries[start:] + entries[:start]:
            with alone(options.lock):
                run = run_once(entry, options.seconds)
            results[entry].append(run)
            note(f"{round_ + 1}/{options.repeats}: {entry}: {run['per_second']:,.0f} transitions/s")
    options.out.mkdir(parents=True, exist_ok=True)
    text = table(results, options.repeats)
    (options.out / "replay.md").write_text(text)
    (options.out / "replay.json").write_text(json.dumps(results, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    if "--run" in sys.argv:
        child(sys.argv[2], float(sys.argv[4]))
    else:
        main()
