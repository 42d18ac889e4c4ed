"""How what is compiled once for a run is compiled and run: quickly, by one process for all, in one thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax

from shoal.runtime import cache_folder

P = ParamSpec("P")
R = TypeVar("R")


def jit_once(function: Callable[P, R]) -> Callable[P, R]:
    """`jax.jit` of what is called once: compiling it well would take longer than it then runs. Its bits may
    differ from `jax.jit`'s, so all that shall agree on them come by it. LAPACK runs in `one_blas_thread`."""
    hurried = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    jitted = jax.jit(function, compiler_options=hurried if jax.default_backend() == "cpu" else None)

    def once(*args: P.args, **kwargs: P.kwargs) -> R:
        compiled = jitted.lower(*args, **kwargs).compile()
        with one_blas_thread():
            return jax.block_until_ready(compiled(*args, **kwargs))

    return once


def one_blas_thread() -> Any:
    """A context in which what JAX asks of LAPACK, a QR decomposition say, is done in the thread that asks.

    OpenBLAS ends its threads when any thread forks, as Ray's start does in one beside this, and who waits for
    one of them then waits for ever. To be entered once LAPACK is loaded, which lowering does.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


@contextmanager
def one_compiles(patience: float = 10.0) -> Iterator[None]:
    """Around what several processes are about to compile alike: one does, and the others wait until they will
    find it in the cache. patience: seconds; who waited for so long (the one may hang) compiles too."""
    folder = Path(jax.config.values["jax_compilation_cache_dir"] or cache_folder())
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl

        lock = os.open(folder / "compiling.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):  # no such locks here, or nowhere to keep one
        yield
        return

    def taken(how: int) -> bool:
        with suppress(OSError):
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return True
        return False

    try:
        if not taken(fcntl.LOCK_EX):
            until = time.monotonic() + patience
            while not taken(fcntl.LOCK_SH) and time.monotonic() < until:
                time.sleep(0.01)
            fcntl.flock(lock, fcntl.LOCK_UN)  # what is in the cache can be read by all at once
        yield
    finally:
        os.close(lock)
