"""A long run under kills, stops, resizes and checkpoints holds on to nothing: see soak.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from soak import Sample, complaints

MINUTES = float(os.environ.get("SHOAL_SOAK_MINUTES", "20"))


def made_up(**grows: float) -> list[Sample]:
    """Samples of 20 minutes with noise as there is, in which some things grow by so much in all."""
    random = Random(0)
    samples = []
    for i in range(121):
        runners = random.randint(2, 4)
        told = Sample(
            seconds=10.0 * i,
            env_steps=1000 * i,
            rss=340 + random.gauss(0, 1),
            pss=800.0,
            anon={"driver": 180.0, "EnvRunner": runners * random.gauss(90, 10)},
            store=0.5 + random.random(),
            threads=40 + random.randint(0, 1),
            files=39 + random.randint(0, 2),
            runners=runners,
            wanted=3,
            actors=runners,
            **dict.fromkeys(("kills", "stops", "restarts", "hung", "moves", "saves", "resizes"), i),
        )
        more = {name: getattr(told, name) + grow * i / 120 for name, grow in grows.items() if name != "anon"}
        anon = {**told.anon, "raylet": 20 + grows.get("anon", 0.0) * i / 120}
        samples.append(replace(told, anon=anon, **more))
    return [*samples, replace(samples[-1], seconds=1210.0, runners=3, actors=3)]


def test_what_grows_is_found_and_noise_is_not() -> None:
    assert complaints(made_up()) == []
    for name, grow, line in (
        ("rss", 30.0, "resident memory of the driver"),
        ("anon", 30.0, "anonymous memory of the driver and Ray"),
        ("store", 5.0, "object store"),
        ("threads", 6.0, "threads"),
        ("files", 8.0, "open files"),
    ):
        (found,) = complaints(made_up(**{name: grow}))
        assert found.startswith(line)
    left = made_up()
    left[-1] = replace(left[-1], runners=4)
    assert complaints(left) == ["3 runners wanted, 4 processes, 3 actors"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["impala", "ppo"])
def test_a_soak(algorithm: str, tmp_path: Path) -> None:
    """In a process of its own, so that nothing but the run is seen in it."""
    program = [sys.executable, str(Path(__file__).with_name("soak.py")), str(tmp_path / "soak")]
    subprocess.run([*program, "--minutes", str(MINUTES), "--algorithm", algorithm], check=True)
    lines = (tmp_path / "soak" / "samples.jsonl").read_text().splitlines()
    samples = [Sample(**json.loads(line)) for line in lines]
    print(samples[len(samples) // 5], samples[-1], sep="\n")
    assert samples[-1].kills >= 2 * MINUTES and samples[-1].restarts >= samples[-1].kills
    assert complaints(samples) == []
