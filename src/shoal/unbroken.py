"""What can't be done again after it broke off in its middle must not go on as if it had not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shoal.errors import ShoalError


class Unbroken:
    """Whether a run stands between two iterations.

    An iteration that broke off, for an environment's error or Ctrl-C, leaves environments, parameters and
    counts at different places; to go on from there, or to save it, would be another experiment, and nobody
    would see it.
    """

    def __init__(self) -> None:
        self._under_way = False

    def begin(self) -> None:
        """An iteration, or the part of it that can't be done again. Raises ShoalError after one that never
        ended."""
        self.check()
        self._under_way = True

    def end(self) -> None:
        self._under_way = False

    @property
    def whole(self) -> bool:
        return not self._under_way

    def check(self) -> None:
        """Raises ShoalError after an iteration that never ended, and within one."""
        if self._under_way:
            raise ShoalError(
                "an iteration broke off in its middle: to go on from there, or to save it, would be another "
                "run; go on from the last checkpoint with Trainer.resume or Trainer.restore"
            )

    @contextmanager
    def step(self) -> Iterator[None]:
        """`begin`, and `end` unless something is raised."""
        self.begin()
        yield
        self.end()
