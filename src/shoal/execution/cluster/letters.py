"""Things that travel as bytes, because Ray takes longer with a small object than with all else of its way.

Ray pickles with a Pickler written in Python, and keeps arrays apart so that nobody copies them. A network of
two layers takes 1.2 ms to be sent with an order and 0.6 ms to be received; as the bytes of the plain pickle,
pickling included, 0.4 and 0.3 ms. With large arrays it is the other way round.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from shoal import trees

MOST = 1 << 20  # bytes of arrays; above that, copies begin to count


def sealed(thing: Any) -> Any:
    """The bytes of a tree of arrays; the tree itself where it is large, or cannot be pickled plainly."""
    if sum(getattr(leaf, "nbytes", 0) for leaf in trees.leaves(thing)) > MOST:
        return thing
    try:
        return pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
    except Exception:  # whatever an object's own __reduce__ raises; Ray's own pickling knows more
        return thing


def opened(thing: Any) -> Any:
    """What was sealed; anything else as it is."""
    return pickle.loads(thing) if isinstance(thing, bytes) else thing


def pieces(letter: bytes, most: int) -> tuple[bytes, ...]:
    """The letter in parts of at most so many bytes, at least one."""
    return tuple(letter[at : at + most] for at in range(0, max(len(letter), 1), most))


def together(parts: Sequence[Any]) -> Any:
    """The letter again; where there is one part only, that part, whatever it is."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
