"""Learning over several devices of a process is learning on one, to rounding; what is split stays split.

Everything runs in child processes, which have four CPU devices from their start (see mesh_child.py): one for
the fast cases, one for the slow ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).with_name("mesh_child.py")
MESHES = ("data=2", "data=4", "model=2", "model=4", "2x2")

FAST = {
    "same": ["local/ppo/2x2", "local/sac/model=2", "compiled/ppo/2x2"],
    "repeated": ["repeated/ppo/2x2"],
    "divided": ["divided/ppo/2x2"],
    "exchanges": ["exchanges/ppo/data=2"],
    "clip": ["clip//model=2"],
    "moved": ["moved/ppo/local"],
    "resumed": ["resumed"],
}
EVERY = {
    "same": [
        *(f"local/{name}/{mesh}" for name in ("ppo", "impala", "dqn", "sac") for mesh in MESHES),
        *(f"local/ppo-memory/{mesh}" for mesh in ("data=4", "2x2")),
        *(
            f"compiled/{name}/{mesh}"
            for name in ("ppo", "ppo-memory", "impala", "dqn", "sac")
            for mesh in MESHES
        ),
    ],
    "repeated": [f"repeated/{name}/2x2" for name in ("impala", "dqn", "sac")],
    "divided": [
        f"divided/{name}/{mesh}" for name in ("ppo", "ppo-memory") for mesh in ("model=2", "model=4")
    ],
    "exchanges": ["exchanges/ppo-memory/data=4"],
    "clip": ["clip//2x2", "clip//model=4"],
    "moved": ["moved/dqn/compiled", "moved/ppo/compiled", "moved/dqn/local"],
    "resumed": [],
}
SLOW = {kind: [case for case in cases if case not in FAST[kind]] for kind, cases in EVERY.items()}


def run(folder: Path, cases: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    wanted = [case for some in cases.values() for case in some]
    command = [sys.executable, str(CHILD), str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=environment())
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"after {[row['case'] for row in rows]}: {done.stderr[-3000:]}"
    return {row["case"]: row for row in rows}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("fast"), FAST)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("slow"), SLOW)


def cases(kind: str) -> Any:
    """Each case with the name of the fixture that has its result."""
    return pytest.mark.parametrize(
        ("where", "case"),
        [
            *(("fast", case) for case in FAST[kind]),
            *(pytest.param("slow", case, marks=pytest.mark.slow) for case in SLOW[kind]),
        ],
    )


def result(request: pytest.FixtureRequest, where: str, case: str) -> dict[str, Any]:
    return request.getfixturevalue(where)[case]


@cases("same")
def test_the_parameters_and_metrics_of_one_device(request: Any, where: str, case: str) -> None:
    found = result(request, where, case)
    assert found["updates"] >= 20 and found["same_counts"]
    assert found["learned"] > 1e-3  # every leaf has gone far from where it began
    assert found["params"] < 1e-5 and found["opt"] < 1e-4
    assert {"loss/gradient_norm"} < found["metrics"].keys()
    assert max(found["metrics"].values()) < 1e-3, found["metrics"]
    if case.startswith("compiled"):  # each device along "data" has its own environments of the 8
        data = {"data=2": 2, "data=4": 4, "2x2": 2}.get(case.rpartition("/")[2], 1)
        assert set(found["stepped"]) == {8 // data}


@cases("repeated")
def test_the_same_bits_each_time(request: Any, where: str, case: str) -> None:
    assert result(request, where, case)["same_bits"]


@cases("divided")
def test_what_a_device_holds_is_its_part(request: Any, where: str, case: str) -> None:
    found = result(request, where, case)
    assert set(found["held"]) == {found["expected"]}  # as `shoal show` says
    parts = 4 if case.endswith("model=4") else 2
    assert found["expected"] < 1.1 * found["whole"] / parts
    assert not found["kernels_gathered"] and found["all_reduces"]


@cases("exchanges")
def test_a_gradient_is_one_exchange(request: Any, where: str, case: str) -> None:
    """And what explained variance needs in the whole minibatch are two, where each leaf could be one."""
    found = result(request, where, case)
    assert 1 <= found["each"] <= 3 < found["leaves"]


@cases("clip")
def test_clipping_takes_the_norm_of_the_whole(request: Any, where: str, case: str) -> None:
    found = result(request, where, case)
    assert found["most_parts"] == (4 if case.endswith("model=4") else 2)
    assert found["apart"] < 1e-6


@cases("moved")
def test_a_checkpoint_goes_on_over_any_mesh(request: Any, where: str, case: str) -> None:
    found = result(request, where, case)
    ways = {name: way for name, way in found.items() if " to " in name}
    assert ways.keys() == {"2x2 to one", "2x2 to model=4", "2x2 to 2x2", "one to 2x2"}
    for name, way in ways.items():
        begun, _, other = name.partition(" to ")
        assert way["restored"], name
        assert way["apart"] < 1e-5, name
        assert way["warned"] == (begun != other), name
        assert (way["recorded"] is None) == (other == "one"), name
    assert ways["2x2 to 2x2"]["same_bits"]


@cases("resumed")
def test_a_run_directory_remembers_its_mesh(request: Any, where: str, case: str) -> None:
    found = result(request, where, case)
    assert found["mesh"] == {"data": 2, "model": 1}
    assert found["then"] == {"name": "local", "envs": 8, "groups": 1} and found["warned"]
    assert found["played"] == 2
