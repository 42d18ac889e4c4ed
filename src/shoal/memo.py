"""Results that are remembered where what they depend on can be compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def remembered(function: Callable[P, T], /) -> Callable[P, T]:
    """`function`, which must be pure, with its last 16 results kept; computed anew where an argument cannot
    be hashed.

    For what makes functions that JAX compiles: JAX remembers what it traced and compiled by the function
    object, so that a second run with equal settings in one process begins at once.
    """
    kept = lru_cache(maxsize=16)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            hash((args, tuple(kwargs.values())))
        except TypeError:
            return function(*args, **kwargs)
        return kept(*args, **kwargs)

    return call
