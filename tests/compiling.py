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
    "xla_cpu_parallel_codegen_split_count": 1,
}
_VARIABLE = "SHOAL_TESTS_HURRY"  # for the processes that tests start and that call `follow`
_OURS = " ".join(f"--{name}={str(value).lower()}" for name, value in HURRIED.items())
_GIVEN = os.environ.get("XLA_FLAGS", "").removesuffix(_OURS).strip()

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
    """From now on compile in a hurry, or as for users; what was compiled the other way is forgotten.

    So do processes that are started from now on, whatever they are. XLA reads its flags when it starts: here
    they change nothing; there they hold from the beginning, and a program gets the same bits as here.
    """
    os.environ[_VARIABLE] = str(int(wanted))
    options = _hurried if wanted else _plain
    if _compiler is None:
        return
    os.environ["XLA_FLAGS"] = f"{_GIVEN} {_OURS}".strip() if wanted else _GIVEN
    if _compiler.get_compile_options is not options:
        setattr(_compiler, "get_compile_options", options)  # noqa: B010  (so that pyright looks away)
        jax.clear_caches()


def follow() -> None:
    """In a process that was forked for a test: compile as that test does."""
    hurry(os.environ.get(_VARIABLE) == "1")
