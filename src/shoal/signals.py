"""Interrupting a run: the first signal asks it to stop where it can be saved, the second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

INTERRUPTED = 130  # the exit code of a program that was interrupted
_SHOW_CURSOR = b"\x1b[?25h\n"  # a live panel hides it


class Signals:
    """SIGINT and SIGTERM during a `with` block of the main thread; `requested` is true after the first.

    on_first is called from another thread. That thread reads the signals from the interpreter's wake-up
    pipe, because a Python handler would have to wait until a long call, such as XLA compiling, returns.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.requested = False
        self._on_first = on_first

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        both = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, lambda *_: None) for number in both}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] not in self._before:
                continue
            if self.requested:
                if sys.stdout is not None and sys.stdout.isatty():
                    os.write(sys.stdout.fileno(), _SHOW_CURSOR)
                os._exit(INTERRUPTED)
            self.requested = True
            self._on_first()


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C in this block raises KeyboardInterrupt at its end, whatever else the block raises, and a second
    one at once.

    Only where Python's own handler would have raised it: somebody else's is left alone, and so are threads,
    which get no signals, and blocks within such a block.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    interrupted = False

    def first(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(RuntimeError):  # where it was writing just then
            print("interrupted: stopping after this iteration; once more stops at once", file=sys.stderr)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt
