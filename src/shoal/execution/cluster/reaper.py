"""Ends the Ray processes of a driver that died without doing so: started by path, standard library only.

Ray's own processes mostly follow a killed driver, but its agents live on for a minute and a stopped worker
for ever. So the driver starts this file as a process in a session of its own (Ctrl-C in the terminal does
not reach it), which sleeps until the driver has gone or has closed the pipe, then kills what is left of that
Ray and removes its temporary folder.

What belongs to that Ray is told by two things that its processes inherit. The environment: a mark that was
set only while Ray started, together with a command line or a raylet's number that only Ray gives. And files:
its raylet's log, open for writing, which tells those that overwrote their environment with a title, as Ray's
agents and workers do. Their descendants belong to it as well. Every kill is by process number *and* start
time.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

MARK = "SHOAL_RAY_MARK"
_RAYLET = b"RAY_RAYLET_PID="  # which a raylet gives to its agents and workers, and they to their children
_LOGS = ("raylet.", "worker-", "events/event_RAYLET")
_SWEEP_SECONDS = 9.0


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None where it is gone or this is not Linux."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[int, int | None]:
    """(parent, start time) of a process; (0, None) for one that is gone or waits to be collected."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  (pathlib would double the memory here)
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0, None
    if fields[0] in (b"Z", b"X"):
        return 0, None
    return int(fields[1]), int(fields[19])


def kill(pid: int, started: int) -> bool:
    """SIGKILL for the process that has this number and this start time; False where there is none (more).

    It also ends a process that is stopped. The file descriptor pins the process, so that another one that
    gets the same number between the look and the shot is not hit.
    """
    try:
        pinned = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # an old kernel or another system
        if start_time(pid) != started:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(pinned, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(pinned)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""


def _writes(pid: int, folder: str, driver: int) -> bool:
    """Whether a process has a file open for writing that a raylet leaves to all that it starts."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except OSError:
        return False
    for number in numbers:
        try:
            path = os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115
        except OSError:
            continue
        parent, logs, name = path.partition("/logs/")
        theirs = parent == folder if folder else "/session_" in parent and parent.endswith(f"_{driver}")
        if logs and theirs and name.startswith(_LOGS):
            for line in _read(f"/proc/{pid}/fdinfo/{number}").splitlines():
                if line.startswith(b"flags:") and int(line.split()[1], 8) & 3:
                    return True
    return False


def _marked(pid: int, mark: bytes, folder: str, driver: int) -> bool:
    """Whether a process has the mark, and what only Ray gives to a process."""
    variables = _read(f"/proc/{pid}/environ").split(b"\0")
    if mark not in variables:
        return False
    if any(variable.startswith(_RAYLET) for variable in variables):
        return True
    command = _read(f"/proc/{pid}/cmdline")
    return (
        folder.encode() in command if folder else b"/session_" in command and f"_{driver}".encode() in command
    )


def belonging(mark: str, driver: int, folder: str = "") -> dict[int, int]:
    """pid -> start time of the living processes of the Ray that was started under `mark` by `driver`.

    folder: that of Ray's session, where known; until then its name is told by the driver's number at its end.
    """
    marked = f"{MARK}={mark}".encode()
    parents: dict[int, int] = {}
    starts: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            parent, started = _stat(int(name))
            if started is not None:
                parents[int(name)], starts[int(name)] = parent, started
    own = {os.getpid(), driver}
    roots = {
        pid
        for pid in starts
        if pid not in own and (_marked(pid, marked, folder, driver) or _writes(pid, folder, driver))
    }
    found: dict[int, int] = {}
    for pid, started in starts.items():
        above, steps = pid, 0
        while above in parents and above not in roots and steps < len(parents):
            above, steps = parents[above], steps + 1
        if above in roots and pid not in own:
            found[pid] = started
    return found


def sweep(mark: str, driver: int, folder: str) -> None:
    """Kill what belongs to that Ray until twice nothing is found."""
    deadline = time.monotonic() + _SWEEP_SECONDS
    empty = 0
    while empty < 2 and time.monotonic() < deadline:
        found = belonging(mark, driver, folder)
        empty = 0 if found else empty + 1
        for pid, started in found.items():
            kill(pid, started)
        time.sleep(0.05)


def remove(folder: str) -> None:
    """Remove a folder of this user's and the link to it beside it; never what links in it name."""
    try:
        if not folder or os.path.islink(folder) or os.stat(folder).st_uid != os.getuid():  # noqa: PTH114, PTH116
            return
        latest = os.path.join(os.path.dirname(folder), "session_latest")  # noqa: PTH118, PTH120
        if os.path.islink(latest) and os.readlink(latest) == folder:  # noqa: PTH114, PTH115
            os.unlink(latest)  # noqa: PTH108
    except OSError:
        return
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = os.path.join(parent, name)  # noqa: PTH118
            try:
                if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                    os.rmdir(path)  # noqa: PTH106
                else:
                    os.unlink(path)  # noqa: PTH108
            except OSError:
                continue
    try:
        os.rmdir(folder)  # noqa: PTH106
    except OSError:
        return


def main(driver: int, started: int, mark: str) -> None:
    """Wait for the end of the driver or of standard input, a pipe which also brings the folder's name."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # who ends a whole process tree politely needs this one last
    wait = select.poll()
    wait.register(0, select.POLLIN | select.POLLHUP)
    try:
        pinned = os.pidfd_open(driver)
        wait.register(pinned, select.POLLIN)
    except (AttributeError, OSError):  # the pipe alone has to tell
        pinned = -1
    told = b""
    while start_time(driver) == started:
        ready = {number for number, _ in wait.poll()}
        if 0 in ready:
            part = os.read(0, 4096)
            if not part:
                break
            told += part
        elif pinned in ready:
            break
    os.set_blocking(0, False)
    try:
        while part := os.read(0, 4096):  # what a driver said just before it died
            told += part
    except BlockingIOError:
        pass
    folder = told.decode().strip()
    sweep(mark, driver, folder)
    remove(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
