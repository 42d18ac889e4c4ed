"""What is stepped in place can't be stepped again after an iteration that broke off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shoal.errors import ShoalError


class Whole:
    """Whether environments and memories stand between two iterations.

    One that raised in its middle, for an environment's error or Ctrl-C, leaves them further than what was
    learned; to go on there, or to save it, would be another experiment, and nobody would see it.
    """

    def __init__(self) -> None:
        self._broken_off = False

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Around an iteration. Raises ShoalError where one before it broke off."""
        self.check()
        self._broken_off = True
        yield
        self._broken_off = False

    def check(self) -> None:
        """Raises ShoalError where an iteration broke off."""
        if self._broken_off:
            raise ShoalError(
                "an iteration broke off in its middle, with the environments further than what was learned: "
                "it can be evaluated, but can neither go on nor be saved; go on from its last checkpoint "
                "with Trainer.resume or Trainer.restore"
            )
