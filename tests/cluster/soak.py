"""Trains on runners that are killed, stopped, added and taken away, and samples what the run holds on to.

    python tests/cluster/soak.py FOLDER --minutes 20 --algorithm impala

FOLDER/samples.jsonl gets a line every few seconds; `complaints` says of these lines what grows. Judged is
memory that was written to (the anonymous part of PSS): of files that are mapped, such as Ray's and JAX's
libraries, a process has the larger share the fewer others on the machine use them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import gymnasium as gym
import numpy as np
from killer import Killer
from slow import Slow

SAMPLE_SECONDS = 10.0
KILL_SECONDS = 10.0  # between two SIGKILLs
STOP_SECONDS = 45.0  # SIGSTOPs
RESIZE_SECONDS = 30.0
SAVE_SECONDS = 15.0
LEAST, MOST = 2, 4  # runners
# MB that may be added after the first fifth. Ray's GCS keeps some 30 kB of every actor that there was;
# runners differ by how young they are.
RSS_BOUND, OTHERS_BOUND, RUNNERS_BOUND, STORE_BOUND = 16.0, 16.0, 48.0, 2.0
WIDTH = 1000  # numbers in an observation, so that fragments and parameters go through the object store


class Wide(gym.ObservationWrapper):
    """Observations with many zeros."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)

    def observation(self, observation: Any) -> Any:
        return np.concatenate([observation, np.zeros(WIDTH - len(observation), np.float32)])


@dataclass(frozen=True)
class Sample:
    """Megabytes: rss: resident memory of this process; pss: of this process and of all that it began; anon:
    its anonymous part, by what they are; store: used in the object store. runners: processes of runners;
    wanted: how many there should be. actors: that Ray's GCS holds to be alive."""

    seconds: float
    env_steps: int
    rss: float
    pss: float
    anon: dict[str, float]
    store: float
    threads: int
    files: int
    runners: int
    wanted: int
    actors: int
    kills: int
    stops: int
    restarts: int
    hung: int
    moves: int
    saves: int
    resizes: int


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # the process has ended
        return ""


def below(root: int) -> list[int]:
    """All processes that a process began, and they in turn."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (stat := read(f"/proc/{place.name}/stat")):
            parents[int(place.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def field(text: str, name: str) -> float:
    """A line of /proc in kB, as MB."""
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:")) / 1024


def kind(pid: int) -> str:
    if pid == os.getpid():
        return "driver"
    command = read(f"/proc/{pid}/cmdline").replace("\0", " ")
    for name in ("ray::EnvRunner", "ray::IDLE", "gcs_server", "raylet/raylet", "reaper.py"):
        if name in command:
            return name.rpartition("/")[2].rpartition("::")[2]
    return "other"


def memory() -> tuple[float, dict[str, float], int]:
    """(PSS in MB, its anonymous part by kind of process, processes of runners)."""
    pss, anon, runners = 0.0, {}, 0
    for pid in [os.getpid(), *below(os.getpid())]:
        name, told = kind(pid), read(f"/proc/{pid}/smaps_rollup")
        pss += field(told, "Pss")
        anon[name] = round(anon.get(name, 0.0) + field(told, "Pss_Anon"), 1)
        runners += name == "EnvRunner"
    return round(pss, 1), anon, runners


def store() -> float:
    """MB of the object store in use. (Ray's node statistics would ask each worker, also a stopped one.)"""
    import ray

    name = "object_store_memory"
    return (ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)) / 2**20


def actors() -> int:
    import ray._private.state

    return len(ray._private.state.state.actor_table(None, None, "ALIVE"))


@dataclass
class Counts:
    stops: int = 0
    saves: int = 0
    resizes: int = 0


def sample(trainer: Any, killer: Killer, counts: Counts, seconds: float) -> Sample:
    pool = trainer._run._pool
    pss, anon, runners = memory()
    return Sample(
        seconds=round(seconds, 1),
        env_steps=trainer._progress.env_steps,
        rss=round(field(read("/proc/self/status"), "VmRSS"), 1),
        pss=pss,
        anon=anon,
        store=round(store(), 3),
        threads=int(read("/proc/self/status").partition("Threads:")[2].split()[0]),
        files=len(list(Path("/proc/self/fd").iterdir())),
        runners=runners,
        wanted=pool.wanted,
        actors=actors(),
        kills=len(killer.killed) - counts.stops,
        restarts=pool.counts.restarts,
        hung=pool.counts.hung,
        moves=pool.counts.moves,
        **asdict(counts),
    )


def make(algorithm: str, run_dir: Path) -> Any:
    from shoal import PPO, Cluster, Trainer
    from shoal.algorithms.impala import IMPALA

    chosen = IMPALA(rollout_length=32) if algorithm == "impala" else PPO(rollout_length=32, minibatches=4)
    on = Cluster(runners=3, envs=16, groups=8, cpus=0.25, patience=4.0)
    return Trainer(
        chosen,
        "CartPole-v1",
        on=on,
        wrappers=[Slow, Wide],
        run_dir=run_dir,
        checkpoint_seconds=None,
        sinks=(),
    )


def settled(trainer: Any, seconds: float = 60.0) -> bool:
    """Train on, with nothing done to it, until there are as many runners as there should be."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        trainer.train()
        wanted = trainer._run._pool.wanted
        if memory()[2] == wanted == actors():
            return True
    return False


def soak(folder: Path, minutes: float, algorithm: str, seed: int = 0) -> Iterator[Sample]:
    """Samples, the last one when all is quiet again."""
    random, counts = Random(seed), Counts()
    with make(algorithm, folder / "run") as trainer:
        pool = trainer._run._pool
        trainer.train()
        begun = time.monotonic()
        due = {
            "sample": SAMPLE_SECONDS,
            "stop": STOP_SECONDS,
            "resize": RESIZE_SECONDS,
            "save": SAVE_SECONDS,
        }
        due = {name: begun + seconds for name, seconds in due.items()}
        with Killer(pool._fleet.identities, KILL_SECONDS, seed) as killer:
            while (now := time.monotonic()) < begun + 60 * minutes:
                trainer.train()
                if now >= due["stop"]:
                    counts.stops += killer.stop_one() is not None
                    due["stop"] = now + STOP_SECONDS
                if now >= due["resize"]:
                    pool.resize(random.randint(LEAST, MOST), "as drawn")
                    counts.resizes += 1
                    due["resize"] = now + RESIZE_SECONDS
                if now >= due["save"]:
                    trainer.save()
                    counts.saves += 1
                    due["save"] = now + SAVE_SECONDS
                if now >= due["sample"]:
                    yield sample(trainer, killer, counts, now - begun)
                    due["sample"] = now + SAMPLE_SECONDS
        assert settled(trainer), (memory(), actors(), pool.wanted)
        yield sample(trainer, killer, counts, time.monotonic() - begun)


def growth(samples: list[Sample], values: list[float]) -> tuple[float, float]:
    """(how much a value grew from the first fifth to the end, the standard error of that), beside what the
    number of runners explains: least squares over time and runners."""
    rest = slice(len(samples) // 5, None)
    seconds = np.array([s.seconds for s in samples[rest]])
    runners = np.array([s.runners for s in samples[rest]], float)
    rows = np.stack([np.ones_like(seconds), seconds - seconds.mean(), runners - runners.mean()], 1)
    y = np.array(values[rest])
    found, *_ = np.linalg.lstsq(rows, y, rcond=None)
    noise = np.sum((y - rows @ found) ** 2) / max(1, len(y) - 3)
    error = np.sqrt(noise * np.linalg.pinv(rows.T @ rows)[1, 1])
    span = seconds[-1] - seconds[0]
    return float(found[1] * span), float(error * span)


def complaints(samples: list[Sample]) -> list[str]:
    """What should not have grown and has, after the first fifth: beyond its bound, and beyond doubt (two
    standard errors). And what is left over when all is quiet, in the last sample."""
    runners = [s.anon.get("EnvRunner", 0.0) for s in samples]
    others = [sum(s.anon.values()) - s.anon.get("EnvRunner", 0.0) for s in samples]
    found = []
    for name, values, bound in (
        ("resident memory of the driver, MB", [s.rss for s in samples], RSS_BOUND),
        ("anonymous memory of the driver and Ray, MB", others, OTHERS_BOUND),
        ("anonymous memory of runners, MB", runners, RUNNERS_BOUND),
        ("object store, MB", [s.store for s in samples], STORE_BOUND),
        ("threads of the driver", [float(s.threads) for s in samples], 2.0),
        ("open files of the driver", [float(s.files) for s in samples], 3.0),
    ):
        grown, error = growth(samples, values)
        if grown - 2 * error > bound:
            found.append(f"{name}: grew by {grown:.1f} (+- {error:.1f}), allowed are {bound}")
    last = samples[-1]
    if not last.runners == last.actors == last.wanted:
        found.append(f"{last.wanted} runners wanted, {last.runners} processes, {last.actors} actors")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--algorithm", choices=["impala", "ppo"], default="impala")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    samples = []
    with (options.folder / "samples.jsonl").open("w") as file:
        for one in soak(options.folder, options.minutes, options.algorithm, options.seed):
            samples.append(one)
            file.write(json.dumps(asdict(one)) + "\n")
            file.flush()


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:2]])
    main()
