"""Ctrl-C at any line of some modules, as a test wants it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """at: numbers of lines of these modules, counted as they are executed, before which KeyboardInterrupt is
    raised. raised: how often it was."""

    def __init__(self, modules: Collection[ModuleType], at: Collection[int] = ()) -> None:
        self._files = {module.__file__ for module in modules}
        self._at = set(at)
        self.lines, self.raised = 0, 0

    def until_done(self, action: Callable[[], T]) -> T:
        """Again and again, as somebody does who goes on after an interruption."""
        while True:
            before = sys.gettrace()
            sys.settrace(self._called)  # Python takes it away whenever it raises
            try:
                return action()
            except KeyboardInterrupt:
                continue
            finally:
                sys.settrace(before)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines in self._at:
                self.raised += 1
                raise KeyboardInterrupt
        return self._line
