"""Starting Ray here, joining it elsewhere, and leaving it: quietly, in bounded time, with one-line errors."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.errors import ShoalError
from shoal.execution.cluster import address as addresses
from shoal.execution.cluster import reaper

_STORE_BYTES = 2 << 30  # of object store: weights and fragments under way are far below it
_STORE_LEAST = 96 << 20  # Ray refuses less than about 75 MB

# Environment variables around `ray.init`, unless the user's environment has them. Ray reads some when it is
# imported, some when it starts its processes.
_QUIET = {
    # Ray prints each worker's death to stdout, whatever its log level; Shoal counts and reports them itself.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|The node with node id",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of today; older versions warn unless it is said
}
_FRUGAL = {
    "RAY_task_events_report_interval_ms": "0",  # a history of all tasks, for a dashboard that is not there
    "RAY_worker_niceness": "0",  # else 15: runners would starve beside whatever else the machine does
    # Else Ray starts an idle worker for each CPU while it starts itself, which takes the processor from what
    # has to be there first; and those that no runner takes stay, at 45 MB each.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}
# What `ray.init` starts beside the store and the scheduler, whatever it is told (Ray 2.60): an autoscaler, a
# reader of logs and the server of a dashboard, 47 to 56 MB and 0.8 s of processor time each; it waits for the
# last of them. They serve nobody on a Ray that lives for one program and prints nothing.
_SERVERS = ("start_monitor", "start_log_monitor", "start_api_server")
_IMPATIENT = {"RAY_NUM_REDIS_GET_RETRIES": "5", "RAY_gcs_server_port_wait_time_s": "5"}  # seconds; else 20


@dataclass(frozen=True)
class Connection:
    """This process's connection to a Ray: "host:port" of its GCS, and the job that we are there."""

    address: str
    job: str


def present() -> Connection | None:
    """The Ray that this process is connected to, whoever connected it."""
    module = sys.modules.get("ray")  # who has connected to Ray has imported it
    if module is None or not hasattr(module, "is_initialized") or not module.is_initialized():
        return None
    context = module.get_runtime_context()
    return Connection(context.gcs_address, context.get_job_id())


def watch(mark: str) -> subprocess.Popen[bytes] | None:
    """The reaper (see there) for a Ray about to start; None where there is no /proc to find processes by."""
    started = reaper.start_time(os.getpid())
    if started is None:
        return None
    command = [sys.executable, "-I", "-S", reaper.__file__, str(os.getpid()), str(started), mark]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )


def unwatch(watcher: subprocess.Popen[bytes] | None) -> None:
    """Tell the reaper that its time has come: it kills what is left, removes Ray's folder and ends."""
    if watcher is not None and watcher.stdin is not None:
        with contextlib.suppress(OSError):
            watcher.stdin.close()
        watcher.wait()


def new_mark() -> str:
    """What tells the processes of a Ray of ours from all others."""
    return uuid.uuid4().hex


def start(
    mark: str,
    watcher: subprocess.Popen[bytes] | None,
    cpus: float,
    store: int | None,
    runtime_env: Mapping[str, Any] | None,
    imported: Callable[[], None],
) -> Connection:
    """A Ray of our own: as many CPUs as there are cores, or more where the run needs them. `imported` is
    called once `ray` is."""
    # JAX warns of forks while it has threads. Ray's children only block SIGINT and then run another program,
    # so nothing of JAX is touched in them.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning, module="subprocess")
    total = max(os.cpu_count() or 1, math.ceil(cpus))
    with _environment({**_QUIET, **_FRUGAL}, {reaper.MARK: mark}), _without_servers():
        import ray

        imported()
        context: Any = ray.init(
            address="local",
            num_cpus=total,
            object_store_memory=_store_bytes() if store is None else store,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=dict(runtime_env) if runtime_env else None,
        )
    if watcher is not None and watcher.stdin is not None:
        watcher.stdin.write(context.address_info["session_dir"].encode())
        watcher.stdin.flush()
    return Connection(context.address_info["gcs_address"], ray.get_runtime_context().get_job_id())


def connect(asked: str, runtime_env: Mapping[str, Any] | None) -> Connection:
    """Join the cluster at an address, after a look whether it answers."""
    addresses.probe(addresses.found(asked))
    with _environment({**_QUIET, **_IMPATIENT}, {}):
        import ray

        context: Any = ray.init(
            address=asked,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=dict(runtime_env) if runtime_env else None,
        )
    return Connection(context.address_info["gcs_address"], ray.get_runtime_context().get_job_id())


def shutdown() -> None:
    """Leave Ray; one that this process started ends. Does nothing where there is none."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def translated(error: BaseException, asked: str | None) -> BaseException:
    """What Ray raised while it began, as a ShoalError of one line."""
    if isinstance(error, ShoalError) or not isinstance(error, Exception):
        return error
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if asked in (None, "local"):
        return ShoalError(f"Ray could not be started here: {text}")
    if "ersion mismatch" in text:
        return ShoalError(f"{_versions(str(error), asked)}: install the same versions on both sides")
    if re.search("AuthToken|Unauthenticated|AuthenticationError", _chain(error)):
        return ShoalError(
            f"the Ray cluster at {asked} wants an authentication token: set RAY_AUTH_MODE=token here, with "
            f"the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    return ShoalError(f"the Ray cluster at {asked} could not be joined: {text}")


def _chain(error: BaseException | None) -> str:
    """The names and texts of an error and of those that led to it."""
    texts: list[str] = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _versions(message: str, asked: str) -> str:
    """Both sides' versions, out of Ray's message."""
    found = re.findall(r"(?:Ray|Python): *([0-9]\S*)", message)
    if len(found) != 4:
        return f"the Ray cluster at {asked} and this process have different versions of Ray or Python"
    there, here = found[:2], found[2:]
    return (
        f"the Ray cluster at {asked} has Ray {there[0]} and Python {there[1]}, "
        f"this process has Ray {here[0]} and Python {here[1]}"
    )


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str], fixed: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes started in the block."""
    settings = {name: value for name, value in defaults.items() if name not in os.environ} | dict(fixed)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_servers() -> Iterator[None]:
    """A Ray that is started in the block does without `_SERVERS`. There is no option for that, so the methods
    that start them do nothing in here; a Ray that has no such methods starts what it will."""
    try:
        from ray._private.node import Node
    except ImportError:
        yield
        return
    plain = {name: vars(Node)[name] for name in _SERVERS if name in vars(Node)}
    for name in plain:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in plain.items():
            setattr(Node, name, method)


def _store_bytes() -> int:
    """At most 2 GiB, 30 % of the memory, and what shared memory has room for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = min(_STORE_BYTES, int(0.3 * memory))
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")
        room = int(0.9 * shared.f_bavail * shared.f_frsize)
        size = min(size, room) if room >= _STORE_LEAST else size
    return max(size, _STORE_LEAST)
