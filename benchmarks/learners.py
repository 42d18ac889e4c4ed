"""What learners that share an update cost and gain.

    python benchmarks/learners.py exchange     all-reduces by bytes, beside gloo alone and the object store
    python benchmarks/learners.py scaling      learn() over 1, 2 and 4 processes, strong and weak
    python benchmarks/learners.py recovery     from SIGKILL of a learner to the next update

`--repeats N` (kills, with `recovery`), `--most N` processes, `--only NAME,NAME` of `scaling`, `--lock FILE`
as for `run.py`. Tables go to results/benchmarks/learners_NAME.md. gloo alone is that of PyTorch, in the
environment of SB3 (.venvs/sb3, see peers.py); where that is not there, its column is empty.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from cluster import heading
from run import HERE, ROOT, alone, note

from shoal import PPO, Cluster, Mesh
from shoal.execution.cluster import learners, session
from shoal.execution.learner import LearnerHere
from shoal.execution.unroll import fragment_form
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe
from shoal.runtime import configure

if TYPE_CHECKING:  # it imports Ray, which is to be told before that not to print every death
    from shoal.execution.cluster.learners.group import LearnerGroup

SIZES = tuple(1 << n for n in (10, 14, 17, 20, 23, 26))  # bytes
PEER = ROOT / ".venvs" / "sb3" / "bin" / "python"
# name -> (hidden layers, environments of a learner or of all): PPO with rows of 128, 4 minibatches, 4 epochs
MODELS = {"small": ((64, 64), 16), "large": ((512, 512), 16)}


# -- exchange --------------------------------------------------------------------------------------------


def all_reduce(how: str, count: int, repeats: int) -> dict[int, float]:
    """Median seconds by bytes, of processes on this machine; {} where there is no PyTorch."""
    python = sys.executable if how == "jax" else str(PEER)
    if not Path(python).exists():
        return {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [
        subprocess.Popen(
            [python, str(HERE / "learners_rank.py"), json.dumps([how, rank, count, port, SIZES, repeats])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outs = [process.communicate(timeout=300) for process in made]
    finally:
        for process in made:
            process.kill()
    lines = [line for line in outs[0][0].splitlines() if line.startswith("BENCH ")]
    if not lines:
        raise RuntimeError(f"{how} with {count} processes: {outs[0][1].strip().splitlines()[-1:]}")
    found = json.loads(lines[0].removeprefix("BENCH "))
    return {int(size): statistics.median(seconds) for size, seconds in found.items()}


class Far:
    """An actor at the other end."""

    def take(self, value: Any) -> int:
        return 0


def timed(act: Callable[[], Any], repeats: int) -> float:
    """Median seconds."""
    act()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def store(repeats: int) -> dict[str, dict[int, float]]:
    """The object store's put and get here, and a call of an actor that takes what was put."""
    with session.join(cpus=1):
        import ray

        far: Any = ray.remote(num_cpus=1)(Far).remote()
        arrays = {size: np.ones(size // 4, np.float32) for size in SIZES}
        trip = lambda x: ray.get(far.take.remote(ray.put(x)))  # noqa: E731
        return {
            "put": {size: timed(lambda x=x: ray.put(x), repeats) for size, x in arrays.items()},
            "put, get": {size: timed(lambda x=x: ray.get(ray.put(x)), repeats) for size, x in arrays.items()},
            "put, actor takes it, answer": {
                size: timed(lambda x=x: trip(x), repeats) for size, x in arrays.items()
            },
        }


def exchange(counts: Sequence[int], repeats: int) -> list[str]:
    load = os.getloadavg()[0]
    columns: dict[str, dict[int, float]] = {}
    for count in counts:
        for how, name in (("jax", "all-reduce (JAX, gloo)"), ("torch", "all-reduce (gloo alone)")):
            note(f"{name}, {count} processes")
            columns[f"{name}, {count} processes"] = all_reduce(how, count, repeats)
    columns |= store(repeats)
    lines = heading("What an exchange between learners costs", [{"load_before": load}])
    lines += ["Milliseconds: medians. All processes are on this machine.", ""]
    lines += ["| bytes | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for size in SIZES:
        cells = [f"{1e3 * c[size]:,.2f}" if size in c else "-" for c in columns.values()]
        lines.append("| " + " | ".join([f"{size:,}", *cells]) + " |")
    pair = columns[f"all-reduce (JAX, gloo), {counts[0]} processes"]
    steps = 2 * (counts[0] - 1)
    per_byte = (pair[SIZES[-1]] - pair[SIZES[0]]) / (SIZES[-1] - SIZES[0]) * counts[0] / steps
    return [
        *lines,
        "",
        f"For costs.toml: hop = {pair[SIZES[0]] / steps:.3g}, hop_byte = {per_byte:.3g} seconds.",
    ]


# -- scaling ---------------------------------------------------------------------------------------------


def experiment(hidden: tuple[int, ...]) -> Experiment:
    algorithm = PPO(rollout_length=128, epochs=4, minibatches=4, hidden=hidden)
    return Experiment.of(Recipe(algorithm=algorithm, env={"env": "CartPole-v1"}), 0)


def trajectory(made: Experiment, envs: int) -> Any:
    form = fragment_form(made.agent, made.source.spec, envs)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), form)


@contextmanager
def group(made: Experiment, mesh: Mesh) -> Iterator[LearnerGroup]:
    learner = learners.begin(Cluster(learners=mesh, learner_cpus=0.25), made)
    try:
        yield learner
    finally:
        learner.close()


def seconds_of(learner: Any, given: Any, repeats: int) -> float:
    number = iter(range(10**9))
    return timed(lambda: learner.learn(given, np.array([0, next(number)], np.uint32)), repeats)


def scaling(meshes: Sequence[Mesh], names: Sequence[str], repeats: int) -> list[str]:
    load = os.getloadavg()[0]
    rows: list[list[str]] = []
    with session.join(cpus=4):
        for name in names:
            hidden, envs = MODELS[name]
            made = experiment(hidden)
            here = LearnerHere.new(made.agent, key_for(0, "init"))
            alone_ = seconds_of(here, trajectory(made, envs), repeats)
            rows.append([name, "in the driver", "", f"{envs * 128:,}", f"{1e3 * alone_:.1f}", "1.00", ""])
            note(" ".join(rows[-1]))
            for mesh in meshes:
                for kind, count in (("strong", envs), ("weak", envs * mesh.data)):
                    if kind == "weak" and mesh.data == 1:
                        continue
                    with group(made, mesh) as learner:
                        took = seconds_of(learner, trajectory(made, count), repeats)
                        own = statistics.median(learner._usual["learn"].fragments)
                    speed = alone_ / took * count / envs
                    cells = [name, str(mesh), kind, f"{count * 128:,}", f"{1e3 * took:.1f}", f"{speed:.2f}"]
                    rows.append([*cells, f"{1e3 * (took - own):.1f}"])
                    note(" ".join(rows[-1]))
    lines = heading("learn() over several processes", [{"load_before": load}])
    models = "; ".join(f"{name}: layers of {hidden}" for name, (hidden, _) in MODELS.items())
    lines += [
        f"PPO, 128 rows of each environment, 4 epochs of 4 minibatches. {models}. Strong: the rows are "
        "divided among learners; weak: each has as many. Speed is rows/s beside one learner in the driver. "
        "Orders are what the update takes longer in the driver than in the first learner: sending experience "
        "and calls (divided by the learners, the `dispatch` of costs.toml).",
        "",
        "| model | mesh | scaling | rows | ms per update | speed | of it, ms for orders |",
        "|---|---|---|---|---|---|---|",
    ]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


# -- recovery --------------------------------------------------------------------------------------------


def recovery(meshes: Sequence[Mesh], kills: int) -> list[str]:
    load, random = os.getloadavg()[0], Random(0)
    made = experiment((64, 64))
    given = trajectory(made, 16)
    lines = heading("Time to recover a learner", [{"load_before": load}])
    lines += [
        "PPO on 16 environments, layers of (64, 64). From SIGKILL of a random learner, as the next update is "
        "asked for, to the end of that update: all learners are started again, get the state of the last "
        "commit and repeat what was learned since. Programs come from the cache of compiled programs.",
        "",
        "| mesh | kills | median (s) | 95th percentile | maximum | updates made again (mean) |",
        "|---|---|---|---|---|---|",
    ]
    with session.join(cpus=4):
        for mesh in meshes:
            found: list[float] = []
            with group(made, mesh) as learner:
                seconds_of(learner, given, 20)
                for number in range(kills):
                    crew: Any = learner._crew
                    _, pid, _ = crew.identities()[random.randrange(mesh.size)]
                    begun = time.perf_counter()
                    os.kill(pid, signal.SIGKILL)
                    learner.learn(given, np.array([1, number], np.uint32))
                    found.append(time.perf_counter() - begun)
                    note(f"{mesh} {number}: {found[-1]:.2f} s")
                    for more in range(random.randrange(30)):
                        learner.learn(given, np.array([2, more], np.uint32))
                again = learner.losses.repeated / max(1, learner.losses.count)
            cells = [np.median(found), np.percentile(found, 95), max(found), again]
            lines.append(f"| {mesh} | {kills} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("exchange", "scaling", "recovery"))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--most", type=int, default=4, help="processes")
    parser.add_argument("--only", default="", help="models of `scaling`, by comma")
    parser.add_argument("--lock", type=Path, help="a file to hold a lock on while it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks", help="folder")
    options = parser.parse_args()
    configure(1)
    counts = [count for count in (2, 4) if count <= options.most]
    data = [Mesh(data=count) for count in counts]
    both = [*data, *(Mesh(model=count) for count in counts), Mesh(data=2, model=2)]
    names = options.only.split(",") if options.only else list(MODELS)
    with alone(options.lock):
        if options.what == "exchange":
            lines = exchange(counts, options.repeats)
        elif options.what == "scaling":
            meshes = [Mesh(), *(mesh for mesh in both if mesh.size <= options.most)]
            lines = scaling(meshes, names, options.repeats)
        else:
            lines = recovery(data, options.repeats)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"learners_{options.what}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
