"""Joining, sharing and leaving Ray; what is left of a driver that was killed; errors in one line."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ShoalError
from shoal.execution.cluster import reaper, session

# A cluster that "was there": two nodes on this machine, the second with a resource of its own.
HOST = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, include_dashboard=False))
cluster.add_node(num_cpus=1, resources={"far": 1}, include_dashboard=False)
cluster.wait_for_nodes(timeout=60)
print(json.dumps(dict(address=cluster.address)), flush=True)
sys.stdin.read()
cluster.shutdown()
"""

# A driver with two actors, one with a child of its own and one that is stopped; it answers to lines.
DRIVER = """
import json, os, signal, subprocess, sys
from shoal.execution.cluster import session
address = json.loads(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: None)  # as a run does
held = session.join(address, cpus=2)
import ray
class Worker:
    def begin(self, *command):
        return session.process_identity(), subprocess.Popen(command).pid if command else 0
    def ping(self):
        return "alive"
Worker = ray.remote(num_cpus=0)(Worker)
one, other = Worker.remote(), Worker.remote()
(_, first, _), child = ray.get(one.begin.remote("sleep", "100"))
(_, second, _), _ = ray.get(other.begin.remote())
folder = ray.get_runtime_context().get_session_name()
print(json.dumps(dict(workers=[first, second], child=child, folder=folder, ours=held.ours)), flush=True)
for line in sys.stdin:
    if line.strip() == "ping":
        print(json.dumps(ray.get([one.ping.remote(), other.ping.remote()], timeout=20)), flush=True)
    if line.strip() == "stop":
        os.kill(second, signal.SIGSTOP)
        print(json.dumps("stopped"), flush=True)
held.close()
"""


def environment(**more: str) -> dict[str, str]:
    """Ray as users have it, but for its workers: at nice 15 they would starve beside other tests."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {**given, "RAY_worker_niceness": "0", **more}


def read(process: subprocess.Popen[str], seconds: float = 90) -> Any:
    """The next line that a process prints, which must be JSON."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "no answer"
    return json.loads(process.stdout.readline())


def say(process: subprocess.Popen[str], line: str) -> Any:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return read(process)


@contextmanager
def python(program: str, *arguments: str, errors: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment(**more),
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        print(errors.read_text())  # for pytest to show
        raise
    finally:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(timeout=30)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def descendants(root: int) -> dict[int, int]:
    """pid -> start time of all that a process began, itself left out."""
    parents = {int(p.name): reaper._stat(int(p.name))[0] for p in Path("/proc").iterdir() if p.name.isdigit()}
    found: dict[int, int] = {}
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        started = reaper.start_time(pid)
        if above == root and pid != root and started is not None:
            found[pid] = started
    return found


def gone(processes: dict[int, int], seconds: float) -> list[str]:
    """The command lines of those that still live after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid, started in processes.items() if reaper.start_time(pid) == started]
        if not left or time.monotonic() > deadline:
            return [reaper._read(f"/proc/{pid}/cmdline").decode() for pid in left]
        time.sleep(0.05)


def started(pid: int) -> int:
    value = reaper.start_time(pid)
    assert value is not None
    return value


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    errors = tmp_path_factory.mktemp("host") / "errors"
    with python(HOST, errors=errors, RAY_AUTH_MODE="disabled") as host:
        yield read(host)["address"]


def test_a_killed_driver_leaves_nothing_of_its_ray(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with python(DRIVER, "null", errors=errors) as driver:
        told = read(driver)
        assert told["ours"]
        folder = Path("/tmp/ray") / told["folder"]
        assert folder.is_dir()
        os.killpg(driver.pid, signal.SIGINT)  # Ctrl-C in the terminal
        assert say(driver, "ping") == ["alive", "alive"]
        assert say(driver, "stop") == "stopped"
        bystander = subprocess.Popen(["sleep", "100"], env=environment(SHOAL_RAY_MARK="of another"))
        processes = descendants(driver.pid)
        assert {*told["workers"], told["child"]} <= set(processes)
        assert len(processes) >= 8  # GCS, raylet, its two agents, ..., the workers and the reaper
        driver.kill()
        assert gone(processes, 10) == []
        assert not folder.exists()
        assert bystander.poll() is None
        bystander.kill()
        bystander.wait()
    assert errors.read_text() == ""


def test_a_driver_that_closes_leaves_nothing_not_even_a_stopped_worker(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with python(DRIVER, "null", errors=errors) as driver:
        told = read(driver)
        assert say(driver, "stop") == "stopped"
        processes = descendants(driver.pid)
        assert driver.stdin is not None
        driver.stdin.close()
        assert driver.wait(timeout=30) == 0
        assert gone(processes, 1) == []
        assert not (Path("/tmp/ray") / told["folder"]).exists()
    assert errors.read_text() == ""


def test_a_killed_driver_leaves_a_joined_ray_as_it_was(address: str, tmp_path: Path) -> None:
    with python(DRIVER, json.dumps(address), errors=tmp_path / "errors") as driver:
        told = read(driver)
        assert not told["ours"]
        workers = {pid: started(pid) for pid in (*told["workers"], told["child"])}
        os.kill(driver.pid, signal.SIGKILL)
        assert gone(workers, 10) == []
    with session.join(address, cpus=1) as held:
        assert len(held.nodes()) == 2
        assert held.totals()["CPU"] == 3


def test_sessions_share_one_connection_and_the_last_one_ends_it(address: str) -> None:
    import ray

    first = session.join(address, cpus=1)
    second = session.join(address, cpus=3, resources={"far": 1})
    third = session.join(cpus=1)
    assert first.address == second.address == third.address == address
    assert not first.ours
    for held in (first, first, second):
        held.close()
        held.close()
        assert ray.is_initialized()
    third.close()
    assert not ray.is_initialized()


def test_a_ray_that_the_program_began_is_used_and_left_alone(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        with session.join(cpus=1) as held:
            assert held.address == address
            assert not held.ours
        with pytest.raises(
            ShoalError, match=r"is on the Ray at .* already, so it cannot join '10\.9\.9\.9:6379'"
        ):
            session.join("10.9.9.9:6379", cpus=1)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    with session.join(address, cpus=1):  # and after it ended, another begins
        pass


def test_a_session_prepared_is_the_one_joined(address: str) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    session.prepare(address)
    with session.join(address, cpus=1) as held:
        assert held.address == address
        assert signal.getsignal(signal.SIGTERM) is before
    session.prepare(address)
    session.release()
    until = time.monotonic() + 20
    while ray.is_initialized() or any(t.name == "shoal-ray" for t in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_more_than_the_cluster_has(address: str) -> None:
    for asked, line in (
        ({"cpus": 8}, f"asks for 8 CPU, but the Ray cluster at {address} has 3 .*3 CPU, 1 far.*at most 3"),
        ({"cpus": 1, "gpus": 2}, "asks for 2 GPU, but .* has 0 .*: ask for none"),
        ({"cpus": 1, "resources": {"near": 1}}, "asks for 1 near, but .* has 0"),
    ):
        with pytest.raises(ShoalError, match=line) as raised:
            session.join(address, **asked)
        assert "\n" not in str(raised.value)
    with pytest.raises(ShoalError, match="a Ray that is started here has no 'near'"):
        session.join("local", cpus=1, resources={"near": 1})


def test_another_version_of_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "2.1.0")
    begun = time.monotonic()
    with pytest.raises(
        ShoalError, match=r"has Ray 2\.[\d.]+ and Python .*, this process has Ray 2\.1\.0 and"
    ) as raised:
        session.join(address, cpus=1)
    assert time.monotonic() - begun < 10
    assert "\n" not in str(raised.value)
    assert not ray.is_initialized()


@contextmanager
def answering(reply: bytes | None) -> Iterator[str]:
    """A server that answers whatever it hears with `reply`, or not at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        over = threading.Event()
        held: list[socket.socket] = []

        def serve() -> None:
            while not over.is_set():
                try:
                    held.append(server.accept()[0])
                except TimeoutError:
                    continue
                if reply is not None:
                    held[-1].recv(1000)
                    held[-1].sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join()
            for connection in held:
                connection.close()


def refusal(address: str) -> str:
    begun = time.monotonic()
    with pytest.raises(ShoalError) as raised:
        session.join(address, cpus=1)
    assert time.monotonic() - begun < 8
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_address_where_no_ray_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "(connection refused)" in refusal(f"127.0.0.1:{port}")
    assert "no Ray cluster runs on this machine" in refusal("auto")
    assert "give it as host:port" in refusal("somewhere")
    assert "`ray job submit`" in refusal("ray://somewhere:10001")
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web:
        assert "is not a Ray cluster" in refusal(web)
    with answering(None) as silent:
        assert "(no answer)" in refusal(silent)
    assert not any(thread.name == "shoal-ray" for thread in threading.enumerate())


def test_a_stopped_worker_is_killed_here_and_on_another_node(address: str) -> None:
    with session.join(address, cpus=1):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        class Worker:
            def identity(self) -> tuple[str, int, int]:
                return session.process_identity()

        remote: Any = ray.remote(num_cpus=0)(Worker)
        near = ray.get_runtime_context().get_node_id()
        here: Any = {"scheduling_strategy": NodeAffinitySchedulingStrategy(near, soft=False)}
        for options, is_here in ((here, True), ({"resources": {"far": 0.5}}, False)):
            actor = remote.options(**options).remote()
            node, pid, begun = ray.get(actor.identity.remote())
            assert (node == near) == is_here
            os.kill(pid, signal.SIGSTOP)
            session.kill_process(node, pid, begun + 1)
            assert gone({pid: begun}, 1.5)
            session.kill_process(node, pid, begun)
            assert gone({pid: begun}, 10) == []


def test_only_that_very_process_is_killed() -> None:
    process = subprocess.Popen(["sleep", "100"])
    begun = started(process.pid)
    assert not reaper.kill(process.pid, begun + 1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)
    assert reaper.kill(process.pid, begun)
    assert process.wait() == -signal.SIGKILL
    assert not reaper.kill(process.pid, begun)


def test_the_reaper_knows_its_own(tmp_path: Path) -> None:
    """Neither the mark alone, nor a log that is only read, makes a process one of Ray's."""
    folder = tmp_path / "session_1"
    (folder / "logs").mkdir(parents=True)
    log = folder / "logs" / "raylet.out"
    log.touch()
    marked = environment(SHOAL_RAY_MARK="m")
    with log.open("a") as written, log.open() as only_read:
        cases = {
            "mark alone": (subprocess.Popen(["sleep", "100"], env=marked), False),
            "reader": (
                subprocess.Popen(["tail", "-f", str(log)], stdin=only_read, stdout=subprocess.DEVNULL),
                False,
            ),
            "writer": (subprocess.Popen(["sleep", "100"], stdout=written, env={}), True),
            "mark and command": (
                subprocess.Popen(
                    [sys.executable, "-c", "input()", str(folder)], stdin=subprocess.PIPE, env=marked
                ),
                True,
            ),
            "mark and raylet": (
                subprocess.Popen(["sleep", "100"], env={**marked, "RAY_RAYLET_PID": "1"}),
                True,
            ),
        }
    try:
        time.sleep(0.1)
        found = reaper.belonging("m", os.getpid(), str(folder))
        for name, (process, theirs) in cases.items():
            assert (process.pid in found) == theirs, name
    finally:
        for process, _ in cases.values():
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


def test_a_folder_is_removed_but_not_what_its_links_name(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    folder = tmp_path / "session_1"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "file").touch()
    (folder / "link").symlink_to(kept)
    (tmp_path / "session_latest").symlink_to(folder)
    reaper.remove(str(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()
