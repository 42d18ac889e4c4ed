"""Time to recover: from SIGKILL of a random env runner to the first fragment of the groups that it hosted.

    python benchmarks/recovery.py [kills] [environment ...]

PPO, 2 runners, 4 groups, a kill whenever both runners are warm and the struck one is at work. Printed for
each environment, in seconds: median, 95th percentile and maximum; the same without what the survivor took to
rebuild the environments of that fragment; what the time went into. The machine's load is said too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from random import Random
from typing import Any, NamedTuple

import numpy as np

from shoal import PPO, Cluster, Trainer
from shoal.execution.cluster.orders import Delivery

CASES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"algorithm": PPO(rollout_length=128), "envs": 16},
    "HalfCheetah-v5": {"algorithm": PPO(rollout_length=128), "envs": 8},
}


class Recovery(NamedTuple):
    """seconds: from the kill to the fragment. noticed: until the pool knew. rebuild: of its environments.
    collect: of the fragment itself. What remains, the survivor was busy with its own fragments."""

    seconds: float
    noticed: float
    rebuild: float
    collect: float


def measure(env: str, kills: int) -> list[Recovery]:
    case, random = CASES[env], Random(0)
    on = Cluster(runners=2, groups=4, envs=case["envs"], cpus=0.5)
    found: list[Recovery] = []
    with Trainer(case["algorithm"], env, seed=0, on=on) as trainer:
        pool: Any = trainer._run._pool  # type: ignore[attr-defined]
        asked: dict[str, Any] = {}  # the kill that is under way
        deliveries, lose = pool.deliveries, pool._lose

        def watched(timeout: float) -> list[Delivery]:
            strike_if_due()
            arrived = deliveries(timeout)
            for d in arrived:
                if asked and d.report.group in asked["groups"] and d.runner != asked["runner"]:
                    seconds = time.perf_counter() - asked["at"]
                    rebuild = d.report.spent["rebuild"]
                    collect = sum(d.report.spent.values()) - rebuild
                    found.append(Recovery(seconds, asked["noticed"], rebuild, collect))
                    parts = " ".join(f"{what} {part:.3f}" for what, part in found[-1]._asdict().items())
                    print(f"{env} {len(found)}: {parts}", file=sys.stderr, flush=True)
                    asked.clear()
            return arrived

        def noticing(number: int, *what: Any, **how: Any) -> None:
            if asked and number == asked["runner"]:
                asked["noticed"] = time.perf_counter() - asked["at"]
            lose(number, *what, **how)

        due = [0.0]

        def strike_if_due() -> None:
            """In mid-fragment, when both runners host groups and have compiled what they need."""
            pool.tend()
            homes = {group.home for group in pool._groups.values()}
            if asked or None in homes or len(homes) < 2 or time.perf_counter() < due[0]:
                return
            if not all(pool._runners[n].work for n in homes):
                return
            runner = random.choice(sorted(homes))
            if not pool._runners[runner].sent:
                return
            time.sleep(random.uniform(0.0, 0.05))
            groups = {n for n, group in pool._groups.items() if group.home == runner}
            identity = pool._fleet.identities()[runner]
            asked.update(runner=runner, groups=groups, at=time.perf_counter())
            os.kill(identity[1], signal.SIGKILL)
            due[0] = time.perf_counter() + 0.5

        for _ in range(5):
            trainer.train()
        pool.deliveries, pool._lose = watched, noticing
        while len(found) < kills:
            trainer.train()
    return found


def spread(seconds: np.ndarray) -> str:
    return " | ".join(f"{np.quantile(seconds, q):.3f}" for q in (0.5, 0.95, 1.0))


def main(kills: int, names: list[str]) -> None:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {kills} kills each\n")
    columns = ["environment", "", "median", "95 %", "most"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in names:
        seconds, noticed, rebuild, collect = np.array(measure(name, kills)).T
        rows = {
            "kill to fragment": seconds,
            "without rebuilding": seconds - rebuild,
            "of it: until noticed": noticed,
            "of it: rebuilding": rebuild,
            "of it: the fragment": collect,
            "of it: the survivor's own work": seconds - noticed - rebuild - collect,
        }
        for what, column in rows.items():
            print(f"| {name} | {what} | {spread(column)} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30, sys.argv[2:] or list(CASES))
