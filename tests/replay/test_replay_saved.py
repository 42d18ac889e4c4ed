"""A replay in a checkpoint: what comes back is what was saved, and every fault is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from replay_histories import history, layout

from shoal import checkpoint
from shoal.errors import ShoalError
from shoal.keys import key_for
from shoal.replay import Layout, Memory, draw, empty, insert, load, save, stored

SHAPE = layout(2, rows=2, capacity=24, prioritized=True)
PAST = history(3, 80, 2)


def fresh(shape: Layout = SHAPE) -> Memory:
    return empty(shape, PAST.fragment(0, shape.fragment), np)


def after(fragments: int) -> Memory:
    memory = fresh()
    for i in range(fragments):
        memory = insert(SHAPE, memory, PAST.fragment(2 * i, 2))
    return memory


@pytest.mark.parametrize("fragments", [0, 1, 5, 13, 20])
def test_through_a_checkpoint(tmp_path: Path, fragments: int) -> None:
    memory = after(fragments)
    checkpoint.save(tmp_path / "c", {"run": {"replay": save(SHAPE, memory)}}, {})
    loaded = load(SHAPE, fresh(), checkpoint.load(tmp_path / "c").arrays, "run/replay")
    assert stored(SHAPE, loaded) == stored(SHAPE, memory)
    key = key_for(0, "x")
    jax.tree.map(
        np.testing.assert_array_equal, draw(SHAPE, loaded, key, 2, 8), draw(SHAPE, memory, key, 2, 8)
    )


def test_only_what_is_filled_is_saved_and_nothing_is_copied() -> None:
    memory = after(3)
    saved = save(SHAPE, memory)
    assert saved["obs"].policy.shape[0] == 7 and saved["reward"].shape[0] == 6
    assert np.shares_memory(saved["obs"].policy, memory.obs.policy)
    assert np.shares_memory(saved["priorities"]["leaves"], memory.priorities.tree)


def flat(fragments: int = 5) -> dict[str, Any]:
    return {f"r/{p}": a.copy() for p, a in checkpoint.flatten(save(SHAPE, after(fragments))).items()}


@pytest.mark.parametrize("path", sorted(flat()))
def test_every_array_that_is_missing_or_other_is_an_error(path: str) -> None:
    whole = flat()
    load(SHAPE, fresh(), whole, "r")
    array = whole[path]
    faults = {
        "missing": None,
        "dtype|int32": array.astype(np.float64),
        "shape|int32": array[None],
        "shape |int32": np.concatenate([array, array]) if array.ndim else np.stack([array, array]),
    }
    for says, changed in faults.items():
        broken = {p: a for p, a in whole.items() if p != path} | ({} if changed is None else {path: changed})
        with pytest.raises(ShoalError, match=says) as error:
            load(SHAPE, fresh(), broken, "r")
        assert path in str(error.value) and "\n" not in str(error.value)


def test_a_save_that_is_absent_or_empty_is_an_error_never_an_empty_replay() -> None:
    for arrays in ({}, {"other/head": np.int32(0)}):
        with pytest.raises(ShoalError, match="missing r/"):
            load(SHAPE, fresh(), arrays, "r")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("head", 3, "damaged"),
        ("head", -2, "damaged"),
        ("head", 26, "damaged"),
        ("filled", 8, "damaged"),
        ("filled", 12, "damaged"),
        ("rows", 28, "28 rows"),
        ("priorities/top", np.nan, "out of range"),
        ("priorities/leaves", -1.0, "out of range"),
        ("priorities/leaves", np.inf, "out of range"),
        ("priorities/leaves", np.nan, "out of range"),
    ],
)
def test_numbers_that_cannot_be_are_an_error(path: str, value: float, says: str) -> None:
    broken = flat()
    place = broken[f"r/{path}"]
    if place.ndim:
        place[1] = value
    else:
        broken[f"r/{path}"] = np.asarray(value, place.dtype)
    with pytest.raises(ShoalError, match=says):
        load(SHAPE, fresh(), broken, "r")


def test_a_replay_of_another_kind_is_an_error() -> None:
    with pytest.raises(ShoalError, match="unexpected r/priorities/leaves"):
        uniform = layout(2, rows=2, capacity=24)
        load(uniform, fresh(uniform), flat(), "r")
    with pytest.raises(ShoalError, match="rows"):
        larger = layout(2, rows=2, capacity=32, prioritized=True)
        load(larger, fresh(larger), flat(), "r")


RESIDENT = """
import gc, resource, sys
import jax, numpy as np
from replay_histories import history, layout
from shoal.keys import key_for
from shoal.replay import draw, empty, insert, reprioritize

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

rows, envs = 100, 8
shape = layout(envs, rows=rows, capacity=1_000_000, n_step=3, prioritized=True)
fragment = history(0, rows, envs).fragment(0, rows)

def use(shape, memory, fragments):
    for i in range(fragments):
        memory = insert(shape, memory, fragment)
        drawn = draw(shape, memory, key_for(0, "x", i), 4, 256)
        memory = reprioritize(shape, memory, drawn.index, np.ones((4, 256), np.float32), 4)
    return memory

small = layout(envs, rows=rows, capacity=10_000, n_step=3, prioritized=True)
use(small, empty(small, fragment, np), 5)
gc.collect()
before = resident()
memory = use(shape, empty(shape, fragment, np), shape.rows // rows + 1)
gc.collect()
arrays = sum(x.nbytes for x in jax.tree.leaves(memory))
print(shape.rows * envs, arrays, resident() - before)
"""


def test_a_million_small_transitions_take_their_arrays_and_little_more() -> None:
    """Measured in a process of its own, filled, drawn from, and given priorities."""
    here = str(Path(__file__).parent)
    env = {"PYTHONPATH": here, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    rows, arrays, resident = map(int, result.stdout.split())
    assert rows >= 1_000_000
    assert 0.9 * arrays < resident <= 1.1 * arrays
    # The observation once (policy 8, critic 4, mask 2), the flags, the action, the reward and the sum tree.
    assert arrays <= rows * (8 + 4 + 2 + 2 + 8 + 4) + 2**21 * 4 + 100
