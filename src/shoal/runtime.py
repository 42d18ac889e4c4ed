"""How JAX is set up in this process: before its first computation, once.

The number of threads is part of an experiment, since 1 and 2 XLA threads give different bits.
"""

from __future__ import annotations

import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
from jax._src import xla_bridge  # no public way to ask whether JAX has started (jax-ml/jax 0.10)

P = ParamSpec("P")
R = TypeVar("R")

_VARIABLE = "NPROC"  # XLA's CPU client sizes its thread pool by it when it starts


def cache_folder() -> Path:
    """Where compiled programs are kept between runs: $SHOAL_CACHE, else shoal/ in the user's cache folder."""
    own = os.environ.get("SHOAL_CACHE")
    if own:
        return Path(own)
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "shoal"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"


def configure(threads: int, devices: int = 1) -> int:
    """Set JAX up for this process and return the thread count that holds.

    threads: XLA's CPU threads. Where JAX is already running with another count a warning says so, and
    the true one is returned, to be recorded. devices: as how many of them the CPU is to show itself, where
    JAX has not started and nobody has said it before. XLA takes a thread for each, if that is more.
    """
    # For small networks on few cores a synchronous call costs a third of an asynchronous one.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    started = xla_bridge.backends_are_initialized()
    if not started and devices > 1 and _cpu_devices() is None:
        jax.config.update("jax_num_cpu_devices", devices)
    shown = _cpu_devices() or 1
    wanted, running = max(threads, min(devices, shown)), max(threads, shown)
    if started:
        before = _started.get("threads") or int(os.environ.get(_VARIABLE) or os.cpu_count() or 1)
        running = max(before, shown)
    _use_cache(running)
    if not started:
        os.environ[_VARIABLE] = str(threads)
        jax.devices()  # starts JAX now, while the variable says what we mean
        _started["threads"] = running
    if running == wanted:
        return threads
    warnings.warn(
        f"JAX already runs with {running} threads in this process, not {wanted}: results are those of "
        f"threads={running}. Create the Trainer before JAX is used, or pass threads={running}"
        if started
        else f"the CPU shows itself as {shown} devices, so JAX runs with {running} threads, not {wanted}: "
        f"results are those of threads={running}",
        stacklevel=3,
    )
    return running


def _cpu_devices() -> int | None:
    """As how many devices the CPU was told to show itself; None: nobody has said it."""
    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    said = jax.config.values["jax_num_cpu_devices"]
    return said if said >= 0 else int(flag[1]) if flag else None


def _use_cache(threads: int) -> None:
    """Keep compiled programs, those of each thread count apart: XLA divides work by it when it compiles, and
    JAX's cache does not look at it, so that one count's program would be run with another's bits."""
    given = getattr(jax.config, "jax_compilation_cache_dir", None)
    if given and Path(given).name.startswith("threads_"):
        return
    if not given:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    folder = Path(given) if given else cache_folder() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder / f"threads_{threads}"))


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


_started: dict[str, int] = {}
