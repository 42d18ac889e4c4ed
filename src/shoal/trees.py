"""Nested tuples, NamedTuples, lists and dicts of arrays without JAX, for processes that do not load it.

A leaf is anything else; None is an empty tree, as in JAX. Dicts are taken in the order of their sorted keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def leaves(tree: Any) -> list[Any]:
    """All leaves, in order."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]


def fill(tree: Any, new: Iterator[Any]) -> Any:
    """The tree with its leaves taken, in order, from `new`."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        made = {key: fill(tree[key], new) for key in sorted(tree)}
        return {key: made[key] for key in tree}
    if isinstance(tree, tuple | list):
        parts = [fill(part, new) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return next(new)


def each(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """function(leaf, leaf of others ...) in the place of every leaf; all have the same structure."""
    columns = zip(leaves(tree), *map(leaves, others), strict=True)
    return fill(tree, (function(*column) for column in columns))
