"""What all tests share: JAX set up as a run sets it up, a compilation cache of the tests' own, and a compiler
that hurries where the programs are small."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Before JAX starts, and inherited by the processes that tests start.
os.environ.setdefault("SHOAL_CACHE", str(Path(tempfile.gettempdir()) / f"shoal-test-cache-{os.getuid()}"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nobody looks at the lines that a program comes from.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Ray decides once for each process whether it wants tokens: one that had a Ray of its own, which
# wants them where ~/.ray/auth_token is, could not use a cluster without.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Ray runs workers at nice 15: those of clusters that tests start would starve beside the tests that compute.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (as Ray reads it)

from compiling import hurry

from shoal.runtime import configure

configure(threads=1)
gc.set_threshold(200_000, 20, 20)  # JAX makes many objects that stay, and each look at them all takes long

# What runs here is compiled as it is for users, since bits of two programs are compared; and so are all long
# tests, which compute much.
AS_IN_USE = {"agreement"}

# What starts a Ray, or has one for a module, and mostly waits: one worker has it all.
RAY = (
    "tests/cluster/test_bad_input.py",
    "tests/cluster/test_driver.py",
    "tests/cluster/test_invariance.py",
    "tests/cluster/test_session.py",
    "tests/cluster/test_trainer_cluster.py",
    "tests/learners/test_learners.py",
    "tests/parameter_server/test_on_ray.py",
)
LONG = ("tests/agreement/", "tests/chaos/", "tests/test_docs.py", "tests/test_every_space.py")
TOGETHER = "tests/agreement/test_mesh.py"  # one process runs all of its cases


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of `RAY` to one worker. Of the others, those of a file, which often compile the same, to one
    that is free, files with many tests first; and at the end those of `LONG` one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class RayApart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(RAY):
                return "ray"
            alone = nodeid.startswith(LONG) and not nodeid.startswith(TOGETHER)
            return nodeid if alone else nodeid.partition("::")[0]

    return RayApart(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile in a hurry, unless the folder or a mark `as_in_use` or `slow` asks for what users get."""
    marked = any(item.get_closest_marker(name) for name in ("as_in_use", "slow"))
    hurry(not marked and item.path.parent.name not in AS_IN_USE)
