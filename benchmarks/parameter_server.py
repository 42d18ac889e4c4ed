"""The parameter server measured: steps/s and time to 475 by workers and mode, and time to recover of shards.

    python benchmarks/parameter_server.py table [--workers 1,2,4,8] [--modes async,stale,sync] [--seconds 20]
    python benchmarks/parameter_server.py kills [--kills 20]

`table`: A3C on CartPole-v1, 32 environments in 8 groups, so that the experiment is the same whatever number
of workers there is. For each mode and number of workers: environment steps/s and gradients/s of the `seconds`
after the first two iterations, the staleness that was measured, steps and seconds (without start-up) until
the mean of the last 100 episodes is 475. Each run is a process of its own. `kills`: a shard of two is killed
now and then; the seconds until it has all again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        mode, workers, seconds, seed = sys.argv[2:]
        print(json.dumps(one(mode, int(workers), float(seconds), int(seed))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "kills"))
    numbers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["async", "stale", "sync"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    if given.what == "kills":
        kills(given.kills)
    else:
        table(given.modes, given.workers, given.seconds, given.seed)


if __name__ == "__main__":
    main()
