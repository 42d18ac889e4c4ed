"""Where a Ray cluster is and whether it answers, in seconds: Ray itself waits long, or ends the program."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from shoal.errors import ShoalError

PROBE_SECONDS = 5.0  # for the connection, and again for the answer
# HTTP/2, which gRPC speaks: a client says this and an empty SETTINGS frame, and gets a SETTINGS frame.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4


def check(asked: str | None) -> None:
    """Refuse what cannot be an address of a cluster's GCS. None and "local" stand for a Ray of our own."""
    if asked in (None, "local", "auto"):
        return
    if "://" in asked:
        raise ShoalError(
            f"Ray address {asked!r}: Shoal does not run over Ray Client; on a machine of the cluster give "
            f"its own address, such as {_host(asked)}:6379, or submit the program with `ray job submit`"
        )
    _split(asked)


def found(asked: str) -> str:
    """The "host:port" that an address stands for; "auto" is RAY_ADDRESS, else what `ray start` wrote down."""
    if asked != "auto":
        return asked
    told = os.environ.get("RAY_ADDRESS")
    if told and told != "auto":
        check(told)
        return told
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    try:
        return (folder / "ray_current_cluster").read_text().strip()
    except OSError:
        raise ShoalError(
            "Ray address 'auto': no Ray cluster runs on this machine; start one with `ray start --head`, "
            "give its host:port, or leave the address out"
        ) from None


def probe(address: str) -> None:
    """Raise a ShoalError, within seconds, unless something there answers as gRPC does."""
    host, port = _split(address)
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise ShoalError(
            f"no Ray cluster answers at {address} ({why}): check that it runs and that the port is that of "
            f"its GCS, 6379 unless told otherwise"
        ) from None
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ShoalError(
            f"what answers at {address} is not a Ray cluster: give the port of its GCS, 6379 unless told "
            f"otherwise (8265 is its dashboard's)"
        )


def same(one: str, other: str) -> bool:
    """Whether two addresses name the same place: hosts by name or by number, and "localhost" for any."""
    if "auto" in (one, other) or "local" in (one, other):
        return False
    (host, port), (host2, port2) = _split(one), _split(other)
    if port != port2:
        return False
    try:
        known, known2 = ({info[4][0] for info in socket.getaddrinfo(name, port)} for name in (host, host2))
        return bool(known & known2) or known <= {"127.0.0.1", "::1"}
    except OSError:
        return host == host2


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ShoalError(
            f"Ray address {address!r}: give it as host:port, such as 10.0.0.1:6379, or as 'auto'"
        )
    return host.strip("[]"), int(port)


def _host(asked: str) -> str:
    return asked.split("://", 1)[1].rpartition(":")[0] or "10.0.0.1"
