"""The norm of a gradient, also where nobody holds all of it.

Who holds a share of the parameters runs `apply` twice: once in `recorded`, which tells the squares of its own
share for every norm that `apply` takes, and then in `given`, with the norms of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shoal.types import Array

_elsewhere: ContextVar[Callable[[Any], Array] | None] = ContextVar("norm", default=None)


def global_norm(tree: Any) -> Array:
    """The L2 norm of all leaves together: float32 []."""
    taken = _elsewhere.get()
    return optax.tree.norm(tree) if taken is None else taken(tree)


@contextmanager
def recorded() -> Iterator[list[Array]]:
    """Notes the squared norm of each tree whose `global_norm` is taken in the block, in order: float32 [].

    To be returned by the function that is traced in the block, so no norm may be taken within a branch or a
    loop of it.
    """
    squares: list[Array] = []

    def local(tree: Any) -> Array:
        total = jnp.float32(0) + sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
        squares.append(total)
        return jnp.sqrt(total)

    with _taken(local):
        yield squares


@contextmanager
def given(norms: Sequence[Array]) -> Iterator[None]:
    """`global_norm` gives these in the block, in order, whatever it is asked for."""
    left = iter(norms)
    with _taken(lambda tree: next(left)):
        yield


@contextmanager
def _taken(how: Callable[[Any], Array]) -> Iterator[None]:
    token = _elsewhere.set(how)
    try:
        yield
    finally:
        _elsewhere.reset(token)
