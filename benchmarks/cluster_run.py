"""One run on a cluster, measured from within: what a fragment costs, or how many there are per second.

The driver of `cluster.py`. Prints one line of JSON. Clocks of processes on one Linux machine are the same
(`perf_counter_ns` is CLOCK_MONOTONIC), so that a runner's times and the driver's can be compared.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster_env import Sleeping
from run import cpu_seconds, pss_mb, tree

from shoal.execution.cluster import fleet
from shoal.execution.cluster.runner import EnvRunner

MICRO = 1e-3  # from nanoseconds
Times = dict[str, float]


class TimedRunner(EnvRunner):
    """An env runner whose reports say when it began and ended, by its clock."""

    def follow(self, order: Any, params: Any) -> Any:
        begun = time.perf_counter_ns()
        report, trajectory = super().follow(order, params)
        clock = {"clock/begun": float(begun), "clock/ended": float(time.perf_counter_ns())}
        return report._replace(info={**report.info, **clock}), trajectory


class TimedFleet(fleet.RayFleet):
    """Notes how long everything takes in the driver. fragments: a record of each, in the order of arrival."""

    fragments: list[dict[str, Any]] = []  # noqa: RUF012  (there is one fleet in a process)
    published: list[float] = []  # noqa: RUF012
    last: Any = None

    def publish(self, params: Any) -> Any:
        begun = time.perf_counter_ns()
        made = super().publish(params)
        self.published.append(time.perf_counter_ns() - begun)
        return made

    def send(self, runner: int, order: Any, params: Any) -> Any:
        begun = time.perf_counter_ns()
        ticket = super().send(runner, order, params)
        sent = time.perf_counter_ns()
        self._notes()[ticket.report] = {"runner": runner, "send": sent - begun, "sent": sent}
        return ticket

    def wait(self, tickets: Any, timeout: float) -> Any:
        entered = time.perf_counter_ns()
        ready = super().wait(tickets, timeout)
        now = time.perf_counter_ns()
        for ticket in ready:
            if ticket.report in self._notes():
                self._notes()[ticket.report] |= {"entered": entered, "seen": now}
        return ready

    def take(self, ticket: Any) -> Any:
        begun = time.perf_counter_ns()
        value = super().take(ticket)
        note = self._notes().pop(ticket.report, None)
        if note is not None:
            clock = {name: value.info.pop(f"clock/{name}") for name in ("begun", "ended")}
            note |= {"take": time.perf_counter_ns() - begun, **clock, **value.spent, "params": value.version}
            self.fragments.append(note)
        return value

    def fetch(self, trajectory: Any) -> Any:
        begun = time.perf_counter_ns()
        TimedFleet.last = super().fetch(trajectory)
        self.fragments[-1]["fetch"] = time.perf_counter_ns() - begun
        return TimedFleet.last

    def _notes(self) -> dict[Any, dict[str, Any]]:
        return self.__dict__.setdefault("notes", {})


def instrument() -> None:
    """Have every cluster run of this process timed."""
    plain = fleet.env_runners

    def env_runners(*given: Any, **more: Any) -> fleet.Crew:
        return dataclasses.replace(plain(*given, **more), actor=TimedRunner)

    fleet.env_runners, fleet.RayFleet = env_runners, TimedFleet  # pyright: ignore[reportAttributeAccessIssue]


def costs(fragments: Sequence[Mapping[str, Any]], published: Sequence[float]) -> dict[str, Any]:
    """Medians and 95th percentiles, in microseconds, of what happens to a fragment."""
    found: dict[str, list[float]] = {}

    def note(name: str, nanoseconds: float) -> None:
        found.setdefault(name, []).append(nanoseconds * MICRO)

    ended: dict[int, float] = {}
    for f in sorted(fragments, key=lambda f: f["ended"]):
        before = ended.get(f["runner"])
        ended[f["runner"]] = f["ended"]
        if before is not None and f["sent"] < before:  # its order lay at the runner already
            note("runner: between two fragments (order ahead)", f["begun"] - before)
        elif before is not None:
            note("order on its way to a waiting runner", f["begun"] - f["sent"])
        note("runner: collect, in all", f["ended"] - f["begun"])
        for name in ("env", "act", "save"):
            note(f"runner: {name}", f[name] * 1e9)
        note("driver: send an order", f["send"])
        note("driver: take the report", f["take"])
        note("driver: fetch the trajectory", f["fetch"])
        if f["entered"] < f["ended"]:
            note("result on its way to a waiting driver", f["seen"] - f["ended"])
    for nanoseconds in published:
        note("driver: publish parameters", nanoseconds)
    return {
        name: {"median": statistics.median(values), "p95": p95(values), "count": len(values)}
        for name, values in found.items()
    }


def p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def by_itself(trajectory: Any, times: int = 50) -> dict[str, float]:
    """What Ray's serialisation and store cost for one trajectory, with nothing else to do (microseconds)."""
    import jax
    import ray

    def each(call: Any, given: Sequence[Any]) -> tuple[float, list[Any]]:
        taken, made = [], []
        for x in given:
            begun = time.perf_counter_ns()
            made.append(call(x))
            taken.append((time.perf_counter_ns() - begun) * MICRO)
        return statistics.median(taken), made

    put, references = each(ray.put, [trajectory] * times)
    get, _ = each(ray.get, references)
    bytes_ = sum(x.nbytes for x in jax.tree.leaves(trajectory))
    return {"bytes": bytes_, "put": put, "get": get}


def main() -> None:
    case = json.loads(sys.argv[1])
    import shoal
    from shoal import Cluster, Trainer

    if case["instrument"]:
        instrument()
    begun = time.time()
    trainer = Trainer(
        getattr(shoal, case["algorithm"].upper())(**case["settings"]),
        Sleeping if case["env"] == "Sleeping" else case["env"],
        env_kwargs=case["env_kwargs"],
        on=Cluster(**case["cluster"]),
    )
    runners, steps_of_one = case["cluster"]["runners"], case["settings"]["rollout_length"]
    steps_of_one *= case["cluster"]["envs"] // case["cluster"].get("groups", runners)
    me = Path("/proc/self").resolve().name
    result, settled, moves = trainer.train(), 0, -1
    # All runners have come, and no group has moved for a while.
    while settled < case["settle"] and time.time() - begun < case["wall"] / 2:
        result = trainer.train()
        calm = result["timing/runners"] == runners and result["timing/moves"] == moves
        settled, moves = settled + 1 if calm else 0, result["timing/moves"]
    TimedFleet.fragments.clear(), TimedFleet.published.clear()
    processes = tree(int(me))
    start, from_, cpu = time.perf_counter(), result["env_steps"], cpu_seconds(processes)
    idle: list[float] = []
    versions: list[float] = []
    while time.perf_counter() - start < case["seconds"]:
        result = trainer.train()
        idle.append(result["timing/runners_idle"])
        versions.append(result.get("staleness/mean", 0.0))
    span = time.perf_counter() - start
    count = (result["env_steps"] - from_) / steps_of_one
    figures = {
        "ready": result["timing/runners"] == runners,
        "fragments": count,
        "fragments_per_second": count / span,
        "cpu_per_fragment": (cpu_seconds(processes) - cpu) / count,
        "idle": statistics.mean(idle),
        "staleness": statistics.mean(versions),
        "moves": result["timing/moves"],
        "memory_mb": sum(pss_mb(pid) for pid in tree(int(me))),
        "seconds": span,
        "start_seconds": start - (time.perf_counter() - (time.time() - begun)),
        "share_learning": result["timing/learn"] / (result["timing/learn"] + result["timing/collect"]),
    }
    if case["instrument"]:
        figures["costs"] = costs(list(TimedFleet.fragments), list(TimedFleet.published))
        figures["by_itself"] = by_itself(TimedFleet.last)
    print("BENCH " + json.dumps(figures), flush=True)
    trainer.close()


if __name__ == "__main__":
    main()
