import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from shoal import PPO
from shoal.compiling import jit_once, one_compiles
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "new"))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def compiling(patience: float, entered: threading.Event, leave: threading.Event) -> threading.Thread:
    def work() -> None:
        with one_compiles(patience):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_one_compiles_and_then_all_go_on_together(cache: Path) -> None:
    first, second, third, leave = threading.Event(), threading.Event(), threading.Event(), threading.Event()
    threads = [compiling(20, first, leave)]
    assert first.wait(10)
    hold = threading.Event()
    threads += [compiling(20, second, hold), compiling(20, third, hold)]
    assert not second.wait(0.2) and not third.is_set()
    leave.set()
    assert second.wait(10) and third.wait(10), "those who waited wait no longer, not even for each other"
    hold.set()
    for thread in threads:
        thread.join()


def test_nobody_waits_for_ever_for_one_that_hangs(cache: Path) -> None:
    first, leave = threading.Event(), threading.Event()
    thread = compiling(20, first, leave)
    assert first.wait(10)
    begun = time.monotonic()
    with one_compiles(patience=0.2):
        waited = time.monotonic() - begun
    leave.set()
    thread.join()
    assert waited >= 0.2


def test_compiles_without_a_place_for_the_lock(cache: Path) -> None:
    (cache / "new").write_text("a file where the folder should be")
    with one_compiles():
        pass


@pytest.mark.as_in_use
def test_what_is_compiled_quickly_begins_as_what_is_not() -> None:
    agent = Experiment.of(Recipe(algorithm=PPO(), env={"env": "CartPole-v1"}), 0).agent
    quickly, well = (jit(agent.init)(key_for(0, "init")) for jit in (jit_once, jax.jit))
    for one, other in zip(jax.tree.leaves(quickly), jax.tree.leaves(well), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


FORKING = """
import os, threading
import jax, numpy as np
from shoal.compiling import jit_once, one_blas_thread

def fork():
    while True:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

matrix = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
qr = jax.jit(jax.numpy.linalg.qr)
compiled = qr.lower(matrix).compile()
threading.Thread(target=fork, daemon=True).start()
jit_once(jax.numpy.linalg.qr)(matrix)
with one_blas_thread():
    for _ in range(200):
        compiled(matrix)
os._exit(0)
"""


def test_a_decomposition_ends_while_another_thread_forks() -> None:
    """As Ray's start does beside the first parameters. With OpenBLAS's threads this hangs in a second."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, timeout=120)
