"""Run peers and Shoal in turn on the same work, in one session, and write a table.

    python benchmarks/run.py speed              one suite (speed, target, compiled, values, cluster) or `all`
    python benchmarks/run.py speed --only ppo-cartpole-8 --peers sb3,shoal --repeats 3

Every peer lives in its own virtual environment under .venvs/, made on first use (peers.py). Runs go one at
a time; each round runs every entry of the case once, starting with another one each time, so that a slow
spell of the machine does not fall on one library. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cases import CASES, SUITES, Case, Entry
from peers import PEERS, ROOT, install

HERE = Path(__file__).resolve().parent
SHOAL_PACKAGES = ("shoal", "jax", "jaxlib", "gymnasium", "numpy", "optax")
WITH_RAY = ("shoal_cluster", "shoal_ray")
Result = dict[str, Any]


# One run


def command(entry: Entry, work: dict[str, Any]) -> list[str]:
    """The driver's command line."""
    if entry.library.startswith("shoal"):
        python = ROOT / ".venv" / "bin" / "python"
        prefix = [str(python) if python.exists() else sys.executable, str(HERE / "shoal_driver.py")]
        packages: Sequence[str] = SHOAL_PACKAGES + (("ray",) if entry.library in WITH_RAY else ())
    else:
        peer = PEERS[entry.library]
        prefix, packages = [str(peer.python), str(HERE / peer.driver)], peer.packages
    core = work.get("core")
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    return [*pinned, *prefix, json.dumps(work), json.dumps(list(packages))]


def environment(work: dict[str, Any], cache: Path) -> dict[str, str]:
    """The variables of one run: threads of every numeric library, and an empty or a filled compile cache."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_", "RAY_"))}
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    if work["threads"] is not None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
        env |= dict.fromkeys(names, str(work["threads"]))
    env["SHOAL_CACHE"] = str(cache)
    if work["cache"] == "warm":
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    return env


def run_once(entry: Entry, work: dict[str, Any], cache: Path, timeout: float) -> Result:
    """One run in a process of its own: what its driver reported, or {"error": ...}."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        env = environment(work, cache) | {"TMPDIR": scratch, "BENCH_STARTED": repr(time.time())}
        process = subprocess.Popen(
            command(entry, work),
            env=env,
            cwd=scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        peer = PEERS.get(entry.library)
        several = entry.library in WITH_RAY or (peer is not None and peer.processes)
        watch = Watch(process.pid) if several else None
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end(process.pid)
            out, err = process.communicate()
            err += f"\nno result after {timeout:g} s"
        except BaseException:  # this program itself is being stopped
            end(process.pid)
            raise
        finally:
            if watch:
                watch.stop()
    lines = [line for line in out.splitlines() if line.startswith("BENCH ")]
    if not lines:
        return {"error": (err.strip().splitlines() or ["no output"])[-1], "load_before": load}
    result = json.loads(lines[-1].removeprefix("BENCH ")) | {"load_before": load}
    return result | watch.figures(result) if watch else result


def end(pid: int) -> None:
    """Kill a run and every process below it, whatever group they are in."""
    for each in tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


class Watch:
    """The memory (PSS) and the processor time of a process and all below it, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._began, self._end = pid, time.monotonic(), threading.Event()
        self._cpu: dict[int, float] = {}  # of each process, when it was last seen
        self._seen = [(0.0, 0.0)]  # (seconds since the start, processor seconds of all)
        self.peak_mb = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            processes = tree(self._pid)
            self._cpu |= {pid: seconds for pid in processes if (seconds := cpu_seconds([pid]))}
            self._seen.append((time.monotonic() - self._began, sum(self._cpu.values())))
            self.peak_mb = max(self.peak_mb, sum(pss_mb(pid) for pid in processes))

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def cpu_at(self, seconds: float) -> float:
        """Processor seconds used until then; between two looks, in proportion."""
        for (t0, c0), (t1, c1) in itertools.pairwise(self._seen):
            if t1 >= seconds:
                return c0 + (c1 - c0) * (seconds - t0) / (t1 - t0)
        return self._seen[-1][1]

    def figures(self, result: Result) -> Result:
        """What this adds to a driver's own figures, which only know the driver's process."""
        first, last = result["first_iteration_seconds"], result["seconds"]
        found: Result = {"peak_mb": self.peak_mb, "cpu_seconds_to_first": self.cpu_at(first)}
        if result["steps_per_second"] and last > first:
            steps = result["steps_per_second"] * (last - first)
            found["steps_per_cpu_second"] = steps / (self.cpu_at(last) - self.cpu_at(first))
        return found


def cpu_seconds(processes: Sequence[int]) -> float:
    """The processor time of these processes, all their threads together (Linux)."""
    ticks = 0
    for pid in processes:
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """A process and all processes below it (Linux)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, queue = [], [root]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def pss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Hold a lock file, so that several measuring programs take turns."""
    if lock is None:
        yield
        return
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# One case


def run_case(
    case: Case, wanted: Callable[[Entry], bool], repeats: int, lock: Path | None, timeout: float, scale: float
) -> dict[str, list[Result]]:
    """Every wanted entry `repeats` times, in rounds that each start with another entry; seed = round."""
    entries = [(label, entry) for label, entry in case.entries.items() if wanted(entry)]
    results: dict[str, list[Result]] = {label: [] for label, _ in entries}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-cache-") as folder:
        warm = Path(folder) / "warm"
        for label, entry in entries:  # fill the caches, unmeasured
            work = work_of(case, entry, 0, scale)
            if work["cache"] == "warm":
                note(f"{case.name}: {label}: filling the compilation cache")
                with alone(lock):
                    run_once(entry, work, warm / entry.library, timeout)
        for round_ in range(repeats):
            start = round_ % len(entries)
            for label, entry in entries[start:] + entries[:start]:
                work = work_of(case, entry, round_, scale)
                cold = Path(folder) / "cold"
                shutil.rmtree(cold, ignore_errors=True)
                cache = warm / entry.library if work["cache"] == "warm" else cold
                with alone(lock):
                    result = run_once(entry, work, cache, timeout)
                results[label].append({"seed": round_, **result})
                note(f"{case.name} {round_ + 1}/{repeats}: {label}: {brief(result)}")
    return results


def work_of(case: Case, entry: Entry, seed: int, scale: float) -> dict[str, Any]:
    work = {**case.work, **entry.work, "case": case.name, "library": entry.library, "seed": seed}
    if work["seconds"] is not None:
        work["seconds"] *= scale
    return work


def brief(result: Result) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    reached = result["seconds_to_target"]
    return (
        f"{result['steps_per_second'] or 0:,.0f} steps/s "
        f"({result['steps_per_cpu_second'] or 0:,.0f} of CPU time), "
        f"{result['seconds']:.1f} s in all"
        + (f", target after {reached:.1f} s" if reached else "")
        + f", load before {result['load_before']:.2f}"
    )


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# The table


def spread(values: Sequence[float | None], form: str) -> str:
    """`median (least to most)`; runs without a value are counted."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    text = form.format(statistics.median(known))
    if len(known) > 1:
        text += f" ({form.format(min(known))} to {form.format(max(known))})"
    missing = len(values) - len(known)
    return text + (f", {missing} of {len(values)} never" if missing else "")


def median_of(results: list[Result], name: str) -> float | None:
    known = [r[name] for r in results if r.get(name) is not None]
    return statistics.median(known) if known else None


def table(case: Case, results: dict[str, list[Result]]) -> list[str]:
    """One case as Markdown."""
    speed = median_of(results.get(case.baseline, []), "steps_per_second")
    lines = [
        f"## {case.name}",
        "",
        case.title + ".",
        "",
        f"| | steps/s | relative to {case.baseline} | steps/s of CPU time | steps/s with start-up "
        "| start-up and first iteration (s) | to the target (s) | env steps to it | peak memory (MB) |"
        + (" GFLOP/s | share of the machine's limit |" if case.flops else ""),
        "|" + "---|" * (11 if case.flops else 9),
    ]
    measured = (median_of(runs, "gflops") for runs in results.values())
    limit = max((gflops for gflops in measured if gflops), default=None)
    for label, runs in results.items():
        good = [r for r in runs if "error" not in r]
        if not good:
            lines.append(f"| {label} | failed: {runs[0]['error']} | | | | | | | |")
            continue
        own = median_of(good, "steps_per_second")
        column = lambda name, form: spread([r[name] for r in good], form)  # noqa: B023, E731
        targeted = any(r["seconds_to_target"] is not None for r in good) or case.work["target"] is not None
        cells = [
            label,
            column("steps_per_second", "{:,.0f}"),
            f"{own / speed:.2f}" if own and speed else "-",
            column("steps_per_cpu_second", "{:,.0f}"),
            column("steps_per_second_with_start", "{:,.0f}"),
            column("first_iteration_seconds", "{:.1f}"),
            column("seconds_to_target", "{:.1f}") if targeted else "-",
            column("env_steps_to_target", "{:,.0f}") if targeted else "-",
            column("peak_mb", "{:,.0f}"),
        ]
        if case.flops:
            done = [r.get("gflops") or case.flops * r["steps_per_second"] / 1e9 for r in good]
            share = f"{statistics.median(done) / limit:.0%}" if limit else "-"
            cells += [spread(done, "{:,.1f}"), share]
        failed = len(runs) - len(good)
        lines.append("| " + " | ".join(cells) + " |" + (f" {failed} failed" if failed else ""))
    return [*lines, ""]


def versions(results: dict[str, dict[str, list[Result]]]) -> list[str]:
    """Versions of each library, once."""
    seen: dict[str, None] = {}
    for case, entries in results.items():
        for label, runs in entries.items():
            library = CASES[case].entries[label].library
            for run in runs:
                if "versions" in run:
                    text = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
                    seen[f"- {library}: {text}"] = None
    return list(seen)


def machine() -> dict[str, Any]:
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
    }


def commit() -> str:
    git = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    ).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + (", changed" if git("status", "--porcelain", "src") else "")


def report(results: dict[str, dict[str, list[Result]]], repeats: int) -> tuple[str, str]:
    """(Markdown, JSON)."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "shoal": commit(),
        "repeats": repeats,
    }
    loads = [r["load_before"] for c in results.values() for runs in c.values() for r in runs]
    where = facts["machine"]
    lines = [
        "# Shoal and its peers",
        "",
        f"{facts['date']}; {where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, "
        f"{where['system']}; Shoal at {facts['shoal']}; {repeats} runs each, in turn; medians (and ranges). "
        f"Load average before the runs: {min(loads):.2f} to {max(loads):.2f} (a run itself adds 1).",
        "",
        "`steps/s` leaves out imports, compilation and the first iteration; `with start-up` counts all from "
        "the start of the process. Written by `benchmarks/run.py`; every run's settings are in the JSON.",
        "",
    ]
    for name, entries in results.items():
        lines += table(CASES[name], entries)
    lines += ["## Versions", "", *versions(results), ""]
    runs = {name: {"work": CASES[name].work, "runs": entries} for name, entries in results.items()}
    return "\n".join(lines), json.dumps({**facts, "cases": runs}, indent=1) + "\n"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run under way is ended too
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument("--peers", default=",".join([*PEERS, "shoal"]), help="libraries to run, by comma")
    parser.add_argument("--only", default="", help="names of cases, by comma")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lock", type=Path, help="a file to hold a lock on during each run")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds after which a run is ended")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the measured seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks", help="folder")
    parser.add_argument("--name", help="name of the files written; the suite's unless told")
    options = parser.parse_args()

    peers = options.peers.split(",")
    only = [name for name in options.only.split(",") if name]
    for word in [p for p in peers if p not in PEERS and p != "shoal"] + [c for c in only if c not in CASES]:
        parser.error(f"unknown: {word!r}; peers are {', '.join([*PEERS, 'shoal'])}; cases {', '.join(CASES)}")
    wanted = lambda entry: entry.library.split("_")[0] in peers  # noqa: E731
    cases = [
        case
        for case in CASES.values()
        if (case.suite == options.suite or options.suite == "all" or case.name in only)
        and (not only or case.name in only)
        and any(wanted(entry) for entry in case.entries.values())
    ]
    for library in {e.library for case in cases for e in case.entries.values() if wanted(e)}:
        if library in PEERS:
            install(PEERS[library])
    results: dict[str, dict[str, list[Result]]] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.name or options.suite
    for case in cases:
        results[case.name] = run_case(
            case, wanted, options.repeats, options.lock, options.timeout, options.scale
        )
        markdown, data = report(results, options.repeats)  # after each case: a stop loses one case at most
        (options.out / f"{name}.md").write_text(markdown)
        (options.out / f"{name}.json").write_text(data)
    print((options.out / f"{name}.md").read_text())
    return int(any("error" in run for c in results.values() for runs in c.values() for run in runs))


if __name__ == "__main__":
    sys.exit(main())
