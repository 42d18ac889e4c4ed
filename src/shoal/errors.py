"""What a user is told when something is wrong: one line that says what, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShoalError(ValueError):
    """A mistake in what the user gave. The command line prints its one line and no traceback."""


def did_you_mean(word: str, candidates: Iterable[str], close: float = 0.5) -> str:
    """ "did you mean 'x'?" for the nearest candidate, else "known are a, b, c". close: in [0, 1], how alike
    it must be."""
    names = sorted(candidates)
    near = difflib.get_close_matches(word, names, n=1, cutoff=close)
    if not near:
        near = [n for n in names if n.lower() == word.lower()]
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def told(error: BaseException) -> str:
    """An exception in one line: its type and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
