"""How tests compile: in a hurry, where what is asked does not depend on it, or as for users.

Compiling takes most of the tests' time, in a hurry a quarter of that; bits and speed are others then.
"""

from __future__ import annotations

import os
from typing import Any

import jax

HURRIED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
_VARIABLE = "SHOAL_TESTS_HURRY"  # for the processes that tests start and that call `follow`

try:
    from jax._src import compiler as _compiler  # JAX has options for one jit, and none for all

    _plain: Any = _compiler.get_compile_options
except (ImportError, AttributeError):  # another JAX: everything is compiled as for users, and takes longer
    _compiler = _plain = None


def _hurried(*args: Any, **kwargs: Any) -> Any:
    options = _plain(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, *HURRIED.items()]
    return options


def hurry(wanted: bool) -> None:
    """From now on compile in a hurry, or as for users. What was compiled the other way is forgotten."""
    os.environ[_VARIABLE] = str(int(wanted))
    options = _hurried if wanted else _plain
    if _compiler is not None and _compiler.get_compile_options is not options:
        setattr(_compiler, "get_compile_options", options)  # noqa: B010  (so that pyright looks away)
        jax.clear_caches()


def follow() -> None:
    """In a process that a test started: compile as that test does."""
    hurry(os.environ.get(_VARIABLE) == "1")
