"""Kills or stops the env runners of a running pool, as an out-of-memory killer or a bad machine would."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from random import Random
from types import TracebackType
from typing import Any

from shoal.execution.cluster import reaper


class Killer:
    """A thread that sends SIGKILL to a random runner every `period` seconds, never to the last one alive.

    identities: gives runner -> (node, process number, start time), as `RayFleet.identities` does. Only
    processes of this machine can be hit.
    """

    def __init__(self, identities: Callable[[], Mapping[int, Any]], period: float, seed: int = 0) -> None:
        self._identities, self._period, self._random = identities, period, Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.killed: list[int] = []

    def living(self) -> dict[int, int]:
        """Runner -> process number."""
        known = dict(self._identities())
        return {n: pid for n, (_, pid, started) in known.items() if reaper.start_time(pid) == started}

    def strike(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """Send a signal to a random runner; which one it was. None: at most one lives."""
        living = self.living()
        if len(living) < 2:
            return None
        runner = self._random.choice(sorted(living))
        os.kill(living[runner], number)
        self.killed.append(runner)
        return runner

    def stop_one(self) -> int | None:
        """SIGSTOP: it stays there, and is silent."""
        return self.strike(signal.SIGSTOP)

    def _run(self) -> None:
        while not self._over.wait(self._period):
            self.strike()

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
