"""The line of a stepper to a policy actor: who is let in, and what is asked again."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shoal.execution.cluster import line
from shoal.execution.cluster.line import Caller, Line, frame

TOKEN = b"t" * 32


@contextmanager
def actor(answers: Any) -> Iterator[tuple[str, int]]:
    """A server whose callers are answered by answers(thing), or cut off where that is None."""
    loop, begun = asyncio.new_event_loop(), threading.Event()
    place: list[tuple[str, int]] = []

    def asked(thing: Any, caller: Caller) -> None:
        answer = answers(thing)
        if answer is None:
            caller._transport.abort()
        else:
            caller.answer(answer)

    async def serve() -> None:
        server = await loop.create_server(lambda: Caller(TOKEN, asked), "127.0.0.1", 0)
        place.append(server.sockets[0].getsockname())
        begun.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)
    try:
        yield place[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_what_is_asked_is_answered_whatever_its_size() -> None:
    with actor(lambda thing: thing * 2) as place:
        here = Line(lambda: place, TOKEN)
        for thing in (1, "text", b"x" * 3_000_000):
            assert here.ask(thing) == thing * 2
        here.close()


def test_a_broken_line_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PAUSE", 0.01)
    seen: list[Any] = []

    def answers(thing: Any) -> Any:
        seen.append(thing)
        return None if len(seen) < 3 else "at last"

    with actor(answers) as place:
        found: list[int] = []

        def find() -> tuple[str, int]:
            found.append(1)
            return place

        here = Line(find, TOKEN)
        assert here.ask("what") == "at last"
        here.close()
    assert seen == ["what"] * 3
    assert len(found) == 3  # the actor may be elsewhere by now


def test_an_actor_that_nobody_can_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PAUSE", 0.001)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        here = Line(taken.getsockname, TOKEN)
        with pytest.raises(ConnectionError, match="the policy actor cannot be reached"):
            here.ask(1)


@pytest.mark.parametrize("shown", [b"s" * 32, b"t" * 31, b"t" * 33])
def test_who_has_another_token_is_cut_off_and_not_unpickled(shown: bytes) -> None:
    asked: list[Any] = []
    with actor(lambda thing: asked.append(thing) or 1) as place, socket.create_connection(place) as caller:
        caller.sendall(frame(shown) + frame(b"not even a pickle"))
        caller.settimeout(10)
        with pytest.raises(ConnectionResetError):
            assert caller.recv(1) == b""
            raise ConnectionResetError
    assert asked == []
