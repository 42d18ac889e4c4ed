"""Memory of processes: what they have freed is given back, what stays is not looked through for garbage."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager


def give_back() -> None:
    """XLA's compiler leaves 130 MB free, but still in the process's hands, where the allocator is glibc's.
    Elsewhere this does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


@contextmanager
def settling() -> Iterator[None]:
    """Around what an actor imports, builds and compiles to be ready. All that stays while the actor does:
    looking for garbage in it would take a tenth of the time meanwhile, and more of everything later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        give_back()
