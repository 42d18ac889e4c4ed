"""The parameter server measured: steps/s and time to 475 by workers and mode, and time to recover of shards.

    python benchmarks/parameter_server.py table [--workers 1,2,4,8] [--modes async,stale,sync] [--seconds 20]
    python benchmarks/parameter_server.py kills [--kills 20]
    python benchmarks/parameter_server.py costs [--shards 1,2]
    python benchmarks/parameter_server.py processor [--shards 1,2] [--seconds 20]

`table`: A3C on CartPole-v1, 32 environments in 8 groups, so that the experiment is the same whatever number
of workers there is. For each mode and number of workers: environment steps/s and gradients/s of the `seconds`
after the first two iterations, the staleness that was measured, steps and seconds (without start-up) until
the mean of the last 100 episodes is 475. Each run is a process of its own. `kills`: a shard of two is killed
now and then; the seconds until it has all again. `costs`: milliseconds, by the size of the parameters, from a
gradient that a worker has to the shards' step (push), from there to a worker's parameters (pull), and what
Ray takes for a task that gets as many bytes from another process, and does nothing (raw). `processor`: the
processor time that driver, shards and workers spend on each gradient of such a run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 500_000
SETTINGS = {"rollout_length": 32, "gae_lambda": 0.95, "learning_rate": 2e-3, "anneal_steps": STEPS}
SETTINGS |= {"shared": False, "max_grad_norm": 0.5}
HEAD = (
    "| mode | workers | steps/s | gradients/s | staleness mean | max | steps to 475 | seconds to 475 | load |"
)


def one(mode: str, workers: int, seconds: float, seed: int) -> dict[str, Any]:
    """A run: figures over `seconds`, then on until 475 is reached."""
    from shoal import A3C, ParameterServer, Trainer

    cpus = min(1.0, 2.0 / workers)
    on = ParameterServer(workers=workers, groups=8, envs=32, mode=mode, cpus=cpus)  # type: ignore[arg-type]
    with Trainer(A3C(**SETTINGS), "CartPole-v1", seed=seed, on=on, scale_rewards=True) as trainer:
        for _ in range(2):
            before = trainer.train()
        begun, stale, gradients = time.perf_counter(), [], 0.0
        figures: dict[str, Any] = {}
        while not (trainer.reached(475.0) or before["env_steps"] > 2 * STEPS):
            result = trainer.train()
            spent = time.perf_counter() - begun
            if not figures:
                stale.append((result.get("staleness/mean", 0.0), result.get("staleness/max", 0.0)))
                gradients += 8
            if spent >= seconds and not figures:
                figures = {
                    "steps": (result["env_steps"] - before["env_steps"]) / spent,
                    "gradients": gradients / spent,
                }
        figures = figures or {
            "steps": (result["env_steps"] - before["env_steps"]) / spent,
            "gradients": gradients / spent,
        }
        return figures | {
            "stale_mean": float(np.mean([mean for mean, _ in stale])),
            "stale_max": float(max(most for _, most in stale)),
            "to_steps": result["env_steps"] if trainer.reached(475.0) else None,
            "to_seconds": spent if trainer.reached(475.0) else None,
        }


def table(modes: list[str], workers: list[int], seconds: float, seed: int) -> None:
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}")
    for mode in modes:
        for count in workers:
            command = [sys.executable, __file__, "one", mode, str(count), str(seconds), str(seed)]
            load = os.getloadavg()[0]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            to = [f"{row[name]:,.0f}" if row[name] else "-" for name in ("to_steps", "to_seconds")]
            figures = f"{row['steps']:,.0f} | {row['gradients']:,.0f} | {row['stale_mean']:.1f}"
            print(
                f"| {mode} | {count} | {figures} | {row['stale_max']:.0f} | {' | '.join(to)} | {load:.1f} |",
                flush=True,
            )


def kills(count: int) -> None:
    from shoal import A3C, ParameterServer, Trainer

    on = ParameterServer(workers=2, groups=4, envs=16, shards=2, cpus=0.5)
    found: list[float] = []
    with Trainer(A3C(), "CartPole-v1", seed=0, on=on) as trainer:
        servers: Any = trainer._run.learner._servers  # type: ignore[attr-defined]
        for _ in range(5):
            trainer.train()
        while len(found) < count:
            before = servers.recovery.seconds
            alive = servers._fleet.identities()
            os.kill(alive[len(found) % len(alive)][1], signal.SIGKILL)
            while servers.recovery.seconds == before:
                trainer.train()
            found.append(servers.recovery.seconds - before)
            print(f"{len(found)}: {found[-1]:.2f} s", file=sys.stderr, flush=True)
            for _ in range(50):
                trainer.train()
    middle, late = np.percentile(found, [50, 95])
    load = os.getloadavg()[0]
    print(f"{count} kills of a shard, load average {load:.1f}: median {middle:.2f} s,")
    print(f"95th percentile {late:.2f} s, longest {max(found):.2f} s")


def costs(counts: list[int]) -> None:
    import jax

    from shoal import A3C
    from shoal.execution.cluster import session
    from shoal.execution.cluster.letters import opened, sealed
    from shoal.execution.cluster.luggage import pack
    from shoal.execution.cluster.shard_fleet import RayShards
    from shoal.execution.parameter_server import shard
    from shoal.execution.parameter_server.servers import Servers, Work
    from shoal.execution.parameter_server.shares import Shares
    from shoal.recipe import Recipe

    joined = session.join(cpus=1)  # before Ray is imported, so that it is quiet
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        """Gives gradients, and takes parameters."""

        def give(self, *sizes: int) -> Any:
            parts = [sealed(np.full(size, 1e-3, np.float32)) for size in sizes]
            return parts if len(parts) > 1 else parts[0]

        def take(self, *slices: Any) -> int:
            return sum(np.asarray(getattr(opened(one), "vector", one)).size for one in slices)

    with joined:
        workers: list[Any] = [Worker.remote(), Worker.remote()]  # type: ignore[attr-defined]
        print("| shards | MB | push ms | pull ms | raw ms | load |\n|---|---|---|---|---|---|")
        for count in counts:
            for width in (64, 512, 1448, 2896):
                recipe = Recipe(algorithm=A3C(hidden=(width, width)), env={"env": "CartPole-v1"})
                spec, luggage = recipe.source().spec, pack(recipe)
                agent = recipe.agent(spec)
                shares = Shares.of(agent, count)
                make = f"{shard.__name__}:{shard.shard_of.__name__}"
                fleet = RayShards(make, lambda s, c=count, x=(luggage, spec): (*x, 1, c, s), 1)
                servers = Servers(fleet, shares, 0, jax.device_get(agent.init(np.zeros(2, np.uint32))), 3)
                step = shard.Step((shard.Push(np.float32(1), {}),), (1.0,))
                sizes = [hi - lo for lo, hi in shares.bounds]
                found: list[tuple[float, float, float]] = []
                for n in range(12):
                    parts = workers[0].give.options(num_returns=count).remote(*sizes)
                    parts = parts if count > 1 else [parts]
                    whole = workers[1].give.remote(shares.size)
                    ray.wait([*parts, whole], num_returns=count + 1, fetch_local=False)
                    begun = time.perf_counter()
                    servers.advance([Work(step, (parts,))])
                    made = time.perf_counter()
                    ray.get(workers[0].take.remote(*servers.slices))
                    had = time.perf_counter()
                    ray.get(workers[0].take.remote(whole))
                    if n > 1:
                        found.append((made - begun, had - made, time.perf_counter() - had))
                push, pull, raw = 1e3 * np.median(found, axis=0)
                servers.close()
                figures = f"{4e-6 * shares.size:.2f} | {push:.1f} | {pull:.1f} | {raw:.1f}"
                print(f"| {count} | {figures} | {os.getloadavg()[0]:.1f} |", flush=True)


def processor(counts: list[int], seconds: float) -> None:
    """Processor time by role, for each gradient: what costs.toml wants, whoever else has the cores."""
    from shoal import A3C, ParameterServer, Trainer

    print("| shards | gradients | driver ms | each shard ms | workers ms | load |\n|---|---|---|---|---|---|")
    for count in counts:
        on = ParameterServer(workers=2, groups=8, envs=32, shards=count)
        with Trainer(A3C(**SETTINGS), "CartPole-v1", seed=0, on=on, scale_rewards=True) as trainer:
            for _ in range(20):
                trainer.train()
            before = after = trainer.train()
            begun, spent = time.perf_counter(), _spent()
            while time.perf_counter() - begun < seconds:
                after = trainer.train()
            used = {role: time - spent[role] for role, time in _spent().items()}
        made = after["gradients/applied"] - before["gradients/applied"]
        driver, shard, worker = (1e3 * used[role] / made for role in ("driver", "ShardActor", "WorkerActor"))
        load = os.getloadavg()[0]
        print(f"| {count} | {made:,.0f} | {driver:.2f} | {shard / count:.2f} | {worker:.2f} | {load:.1f} |")


def _spent() -> dict[str, float]:
    """Seconds of processor time so far: of this process, and of all actors of each kind below it."""
    found = {"driver": time.process_time(), "ShardActor": 0.0, "WorkerActor": 0.0}
    parents: dict[int, int] = {}
    fields: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[int(entry.name)][1])
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above != os.getpid() or pid == above:
            continue
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            for role in ("ShardActor", "WorkerActor"):
                if title.startswith(f"ray::{role}".encode()):
                    found[role] += sum(map(int, fields[pid][11:13])) / os.sysconf("SC_CLK_TCK")
    return found


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        mode, workers, seconds, seed = sys.argv[2:]
        print(json.dumps(one(mode, int(workers), float(seconds), int(seed))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "kills", "costs", "processor"))
    numbers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["async", "stale", "sync"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shards", type=numbers, default=[1, 2])
    given = parser.parse_args()
    if given.what == "kills":
        kills(given.kills)
    elif given.what == "costs":
        costs(given.shards)
    elif given.what == "processor":
        processor(given.shards, given.seconds)
    else:
        table(given.modes, given.workers, given.seconds, given.seed)


if __name__ == "__main__":
    main()
