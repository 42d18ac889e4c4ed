"""The Ray that a run lives on: joined where there is one, else started here and ended with the last run.

One process has one Ray, and its runs share it. `ray` is imported only when a session begins. Ray's processes
die with the *thread* that started them, so that thread (`_keep`) lives as long as the session. Because it is
not the main thread, `ray.init` leaves the program's SIGTERM handler alone, and Ctrl-C ends the waiting only.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import ShoalError
from shoal.execution.cluster import address as addresses
from shoal.execution.cluster import launch, reaper

JOIN_SECONDS = 40.0  # for joining a cluster: an address that does not answer is given up in a quarter of it
START_SECONDS = 120.0  # for starting Ray here, on however slow a machine


@dataclass(frozen=True)
class Node:
    """A machine (a raylet) of the cluster that lives. `resources` are its totals, by Ray's names."""

    id: str
    host: str
    resources: Mapping[str, float]


@dataclass(eq=False)
class _Ray:
    """The one Ray of this process, shared by its sessions."""

    asked: str | None  # the address as given
    ours: bool = False  # Shoal starts it
    users: int = 0
    connection: launch.Connection | None = None
    made: bool = False  # Shoal made the connection, and ends it
    error: BaseException | None = None
    imported: threading.Event = field(default_factory=threading.Event)  # or it failed
    ready: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    watcher: subprocess.Popen[bytes] | None = None


_lock = threading.RLock()
_ray: _Ray | None = None


@dataclass(eq=False)
class Session:
    """One run's hold on Ray. `close` lets go; the last to do so ends a Ray that Shoal started.

    ours: Shoal started this Ray, here, for itself. address: "host:port" of its GCS.
    """

    address: str
    ours: bool
    _shared: _Ray = field(repr=False)
    _closed: bool = field(default=False, repr=False)

    def totals(self) -> dict[str, float]:
        """Resources of all living nodes together, used or not: {"CPU": 8.0, "GPU": 1.0, ...}."""
        total: dict[str, float] = {}
        for node in self.nodes():
            for name, amount in node.resources.items():
                total[name] = total.get(name, 0.0) + amount
        return total

    def nodes(self) -> tuple[Node, ...]:
        """The living nodes."""
        import ray

        living = (node for node in ray.nodes() if node["Alive"])
        return tuple(Node(n["NodeID"], n["NodeManagerAddress"], dict(n["Resources"])) for n in living)

    def check_room(self, who: str, each: Mapping[str, float]) -> None:
        """Raises ShoalError unless some machine has what each of these asks for."""
        if any(all(n <= node.resources.get(name, 0.0) for name, n in each.items()) for node in self.nodes()):
            return
        asked = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
        raise ShoalError(
            f"each {who} asks for {asked}, but no machine of the Ray at {self.address} has that: ask for "
            f"less for each {who}"
        )

    def close(self) -> None:
        """Let go of Ray. Closing twice does nothing the second time."""
        with _lock:
            if self._closed:
                return
            self._closed = True
            self._shared.users -= 1
            if self._shared.users == 0:
                _end(self._shared)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(
    address: str | None = None,
    *,
    cpus: float = 1,
    resources: Mapping[str, float] | None = None,
    store: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> None:
    """Begin to join or start Ray in the background; `join` waits for it and raises what went wrong.

    The arguments are those that `join` will get. `release` ends what nobody joined.
    """
    _begin(address, cpus, resources or {}, store, runtime_env)


def join(
    address: str | None = None,
    *,
    cpus: float,
    gpus: float = 0,
    resources: Mapping[str, float] | None = None,
    store: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Session:
    """Join a Ray cluster, or start Ray here.

    address: "host:port" of the cluster's GCS, or "auto" for what `ray start` began on this machine. None: the
        Ray that this process has initialised already, else the cluster that RAY_ADDRESS names (as in a
        submitted job), else a Ray of our own.
    cpus, gpus, resources: what the run will occupy in all; compared with what the cluster has.
    store: bytes of object store on a Ray of our own; by default 2 GiB, at most 30 % of the memory.
    runtime_env: Ray's runtime environment for all workers of the run.

    Raises ShoalError, in one line and within seconds, where the address does not answer, the cluster has
    another Ray or Python version, or has less than is asked. Nothing is left running then.
    """
    with _lock:
        shared = _begin(address, cpus, resources or {}, store, runtime_env)
        session = Session("", shared.ours, shared)
        shared.users += 1
        try:
            limit = START_SECONDS if shared.ours else JOIN_SECONDS
            if not shared.ready.wait(limit):
                raise ShoalError(_silent(shared, limit))
            if shared.error is not None:
                raise shared.error
            assert shared.connection is not None
            session.address = shared.connection.address
            _check_resources(session, {"CPU": cpus, "GPU": gpus, **(resources or {})})
        except BaseException:
            session.close()
            raise
        return session


def release() -> None:
    """End a Ray that was prepared and that no session uses."""
    with _lock:
        if _ray is not None and _ray.users == 0:
            _end(_ray)


def process_identity() -> tuple[str, int, int]:
    """(node, process number, start time) of the calling worker, for `kill_process`."""
    import ray

    pid = os.getpid()
    return ray.get_runtime_context().get_node_id(), pid, reaper.start_time(pid) or 0


def kill_process(node_id: str, pid: int, started: int) -> None:
    """SIGKILL for the worker that `process_identity` told, also when it is stopped, and for no other process.

    On this node it is done when this returns. Elsewhere a task that takes no CPU is sent to that node, and
    its result is not waited for: where the node is gone, so is the process.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node_id == ray.get_runtime_context().get_node_id():
        reaper.kill(pid, started)
        return
    there: Any = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(reaper.kill)
    sent = task.options(scheduling_strategy=there).remote(pid, started)
    sent.future().add_done_callback(lambda done: done.exception())  # looked at, or Ray would print it


def _begin(
    address: str | None,
    cpus: float,
    resources: Mapping[str, float],
    store: int | None,
    runtime_env: Mapping[str, Any] | None,
) -> _Ray:
    """The process's Ray, begun where there is none yet."""
    global _ray
    with _lock:
        asked = address or os.environ.get("RAY_ADDRESS") or None
        addresses.check(asked)
        if _ray is not None and _ray.ready.is_set() and not _lives(_ray):
            _end(_ray)  # it failed, or a ray.shutdown() of the user's ended it
        if _ray is not None:
            if address is not None and not _same(address, _ray):
                raise ShoalError(_elsewhere(address, _ray))
            return _ray
        if (connection := launch.present()) is not None:
            there = _Ray(None, connection=connection)
            if address is not None and not _same(address, there):
                raise ShoalError(_elsewhere(address, there))
            there.ready.set()
            _ray = there
            return there
        ours = asked in (None, "local")
        if ours and (custom := [name for name, amount in resources.items() if amount > 0]):
            raise ShoalError(
                f"a Ray that is started here has no {', '.join(map(repr, custom))}: give the address of a "
                f"cluster that has it, or ask for CPUs and GPUs only"
            )
        _ray = shared = _Ray(asked, ours=ours, made=True)
        mark = launch.new_mark()

        def begin() -> launch.Connection:
            if asked is None or ours:
                return launch.start(mark, shared.watcher, cpus, store, runtime_env, shared.imported.set)
            shared.imported.set()
            return launch.connect(asked, runtime_env)

        shared.watcher = launch.watch(mark) if ours else None
        threading.Thread(target=_keep, args=(shared, begin), name="shoal-ray", daemon=True).start()
        # Beside Python of ours that import would take twice as long, and Ray's own processes, which are what
        # runs beside us, begin after it.
        shared.imported.wait()
        return shared


def _keep(shared: _Ray, begin: Callable[[], launch.Connection]) -> None:
    """The thread that Ray's processes live and die with."""
    try:
        shared.connection = begin()
    except BaseException as error:
        shared.error = launch.translated(error, shared.asked)
    shared.imported.set()
    unwanted = shared.over.is_set()  # who asked for it did not wait
    if shared.error is not None or unwanted:
        launch.shutdown()
    shared.ready.set()
    if shared.error is None:
        shared.over.wait()


def _end(shared: _Ray) -> None:
    """Leave that Ray, and end it where Shoal started it."""
    global _ray
    if _ray is shared:
        _ray = None
    if shared.ready.is_set():
        if shared.made and _lives(shared):
            launch.shutdown()
        shared.over.set()
    else:
        shared.over.set()
        if shared.ours:
            shared.ready.wait(START_SECONDS)
    launch.unwatch(shared.watcher)


def _lives(shared: _Ray) -> bool:
    return shared.error is None and launch.present() == shared.connection


def _same(address: str, there: _Ray) -> bool:
    """Whether an address names the Ray that is in use."""
    if address in ("auto", "local") and (there.ours or not there.made):
        return True
    if address == there.asked:
        return True
    return there.connection is not None and addresses.same(address, there.connection.address)


def _elsewhere(address: str, there: _Ray) -> str:
    place = there.connection.address if there.connection else there.asked or "this machine"
    right = "close the other trainers" if there.made else "leave the address out, or call ray.shutdown()"
    return f"this process is on the Ray at {place} already, so it cannot join {address!r}: {right} first"


def _silent(shared: _Ray, seconds: float) -> str:
    if shared.ours:
        return (
            f"Ray did not start here within {seconds:.0f} s: see its logs under /tmp/ray/session_latest/logs"
        )
    return f"the Ray cluster at {shared.asked} did not let us in within {seconds:.0f} s: see `ray status`"


def _check_resources(session: Session, asked: Mapping[str, float]) -> None:
    totals = session.totals()
    for name, amount in asked.items():
        there = totals.get(name, 0.0)
        if amount > there:
            where = "the Ray started here" if session.ours else f"the Ray cluster at {session.address}"
            known = ", ".join(f"{totals[key]:g} {key}" for key in sorted(totals) if _countable(key))
            right = (
                f"ask for at most {there:g} (fewer runners, or less for each)" if there else "ask for none"
            )
            raise ShoalError(
                f"the run asks for {amount:g} {name}, but {where} has {there:g} (in all: {known or 'nothing'}"
                f"): {right}, or join a cluster that has it"
            )


def _countable(resource: str) -> bool:
    return ":" not in resource and resource not in ("memory", "object_store_memory")
