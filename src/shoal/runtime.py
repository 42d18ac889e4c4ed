"""How JAX is set up in this process: before its first computation, once.

The number of threads is part of an experiment, since 1 and 2 XLA threads give different bits.
"""

from __future__ import annotations

import os
import platform
import re
import warnings
from pathlib import Path

import jax
from jax._src import xla_bridge  # no public way to ask whether JAX has started (jax-ml/jax 0.10)

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


_started: dict[str, int] = {}
