"""What all tests share: JAX set up as a run sets it up, a compilation cache of the tests' own, and a compiler
that hurries where the programs are small."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import pytest

# Before JAX starts, and inherited by the processes that tests start.
os.environ.setdefault("SHOAL_CACHE", str(Path(tempfile.gettempdir()) / f"shoal-test-cache-{os.getuid()}"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from shoal.runtime import configure

configure(threads=1)

# Compiling takes most of the tests' time, a quarter of it so. Bits and speed are others then.
HURRIED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
# What runs here is compiled as it is for users: where bits are compared between programs or processes, and
# where much is computed.
AS_IN_USE = {"agreement", "chaos", "cluster", "learning"}


def compile_options() -> Any:
    """JAX's function that says how a program is compiled (there are options for one jit, and none for all).

    None in a JAX that has no such function: everything is compiled as in use then, and takes longer."""
    try:
        from jax._src import compiler

        return compiler.get_compile_options
    except (ImportError, AttributeError):
        return None


PLAIN = compile_options()


def hurried(*args: Any, **kwargs: Any) -> Any:
    options = PLAIN(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, *HURRIED.items()]
    return options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile in a hurry, unless the test's folder or a mark `as_in_use` asks for what users get.

    Processes that tests start are not concerned."""
    if PLAIN is None:
        return
    from jax._src import compiler

    in_use = item.path.parent.name in AS_IN_USE or item.get_closest_marker("as_in_use")
    wanted = PLAIN if in_use else hurried
    if compiler.get_compile_options is not wanted:
        compiler.get_compile_options = wanted
        jax.clear_caches()  # so that no test runs what another one had compiled the other way
