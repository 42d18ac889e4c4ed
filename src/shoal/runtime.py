"""How JAX is set up in this process: before its first computation, once.

The number of threads is part of an experiment, since 1 and 2 XLA threads give different bits.
"""

from __future__ import annotations

import os
import platform
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


def configure(threads: int) -> int:
    """Set JAX up for this process and return the thread count that holds.

    threads: XLA's CPU threads. Where JAX is already running with another count a warning says so, and
    the true one is returned, to be recorded.
    """
    # For small networks on few cores a synchronous call costs a third of an asynchronous one.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _use_cache(threads)
    if not xla_bridge.backends_are_initialized():
        os.environ[_VARIABLE] = str(threads)
        jax.devices()  # starts JAX now, while the variable says what we mean
        _started["threads"] = threads
        return threads
    running = _started.get("threads") or int(os.environ.get(_VARIABLE) or os.cpu_count() or 1)
    if running != threads:
        warnings.warn(
            f"JAX already runs with {running} threads in this process, not {threads}: results are those of "
            f"threads={running}. Create the Trainer before JAX is used, or pass threads={running}",
            stacklevel=3,
        )
    return running


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
