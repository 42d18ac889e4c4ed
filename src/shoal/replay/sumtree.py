"""A binary sum tree over priorities, for whole batches at a time (Schaul et al. 2016, appendix B.2.1).

float32 [2 * P], P a power of two: node 1 is the root, the children of node i are 2 i and 2 i + 1, the leaf of
unit j is P + j, node 0 is not used. A parent is always exactly left + right, one rounded addition, so that
the tree is a function of its leaves alone, and NumPy and XLA agree bit for bit. A batch goes down level by
level, all its members at once; so does a repair go up.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.replay.arrays import integers, module, multiply_high, put, put_rows, rows_at, take
from shoal.types import Array

LEAST, MOST = 2.0**-40, 2.0**40  # the priorities of units that can be drawn lie between these


def zeros(units: int, xp: Any) -> Array:
    """A tree of that many leaves (rounded up to a power of two, at least 4), all 0."""
    return xp.zeros(2 * max(4, 1 << (units - 1).bit_length()), xp.float32)


def leaves(tree: Array, index: Array) -> Array:
    """The priorities of these units."""
    return take(tree, index + tree.shape[0] // 2)


def total(tree: Array) -> Array:
    """float32 [], the sum of all priorities."""
    return tree[1]


def put_leaves(tree: Array, index: Array, values: Array) -> Array:
    """Write leaves; `repair` must follow."""
    return put(tree, index + tree.shape[0] // 2, values)


def repair(tree: Array, start: Any, count: int) -> Array:
    """Make the ancestors of the leaves start ... start + count - 1 the sums that they should be."""
    level = tree.shape[0] // 2  # the number of nodes in this level, and its first node
    low, width = start + level, count
    while level > 1:
        level //= 2
        low, width = low // 2, width // 2 + 1  # one more than needed, where both ends are even
        if width >= level:
            low, width = level, level
        else:
            low = low - (low + width - 2 * level) * (low + width > 2 * level)
        pairs = rows_at(tree, 2 * low, 2 * width).reshape(width, 2)
        tree = put_rows(tree, low, pairs[:, 0] + pairs[:, 1])
    return tree


def update(tree: Array, index: Array, values: Array, chosen: Array) -> Array:
    """Give these units ([R]) these priorities where `chosen` (bool [R]). Of several for one unit the highest
    stays, whatever the order."""
    size = tree.shape[0] // 2
    if isinstance(tree, jax.Array):
        node = index + size
        leaf = jnp.where(chosen, node, 2 * size)  # beyond the end: dropped
        tree = tree.at[leaf].set(0.0, mode="drop").at[leaf].max(values, mode="drop")
    else:
        node = index[chosen] + size
        tree[node] = 0.0
        np.maximum.at(tree, node, values[chosen])
    level = size
    while level > 1:
        level //= 2
        if level <= node.shape[0]:
            pairs = tree[2 * level : 4 * level].reshape(level, 2)
            tree = put_rows(tree, level, pairs[:, 0] + pairs[:, 1])
        else:
            node = node >> 1
            tree = put(tree, node, take(tree, 2 * node) + take(tree, 2 * node + 1))
    return tree


def sample(tree: Array, word: Array, more: Array) -> Array:
    """Units drawn in proportion to their priorities, stratified: words uint32 [K, N] twice -> [K, N].

    The sum is cut into N equal stretches and one number is drawn from each. The sum is a float32, M * grid
    with 2^23 <= M < 2^24, so a stretch is a range of integers below M, and the number drawn an integer times
    the grid: exact. A large tree needs finer steps than that: half-way down, where sums are smaller, `more`
    fills in the bits below the grid. No product is rounded, so none can be fused with a difference to other
    bits. A unit of priority 0 is never drawn while another has more.
    """
    xp = module(tree)
    n = word.shape[-1]
    whole = xp.where(total(tree) > 0, total(tree), xp.float32(1)).view(xp.uint32)
    mantissa = (whole & xp.uint32(0x7FFFFF)) | xp.uint32(0x800000)
    grid = (((whole >> xp.uint32(23)) - xp.uint32(23)) << xp.uint32(23)).view(xp.float32)
    k = xp.arange(n + 1, dtype=xp.uint32)
    bound = k * (mantissa // xp.uint32(n)) + (k * (mantissa % xp.uint32(n))) // xp.uint32(n)
    low = bound[:-1].astype(integers(xp))
    point = (low + multiply_high(word, bound[1:] - bound[:-1])).astype(xp.float32) * grid
    below = (more >> xp.uint32(8)).astype(xp.float32) * (grid * xp.float32(2.0**-24))
    if isinstance(tree, jax.Array):
        return _descend_traced(tree, point, below)
    return _descend_fast(tree, point, below)


def _depths(tree: Array) -> tuple[int, int]:
    depth = tree.shape[0].bit_length() - 2
    return depth // 2, depth - depth // 2


def _careful_step(xp: Any, tree: Array, node: Array, point: Array) -> tuple[Array, Array]:
    """One level down: to the right where the point lies there and anything is there."""
    pairs = take(tree.reshape(-1, 2), node)
    left, right = pairs[..., 0], pairs[..., 1]
    go = (point >= left) & (right > 0)
    return 2 * node + go, xp.where(go, point - left, point)


def _descend_traced(tree: Array, point: Array, below: Array) -> Array:
    def step(_: Any, now: tuple[Array, Array]) -> tuple[Array, Array]:
        return _careful_step(jnp, tree, *now)

    upper, lower = _depths(tree)
    node, point = jax.lax.fori_loop(0, upper, step, (jnp.ones(point.shape, jnp.int32), point))
    node, _ = jax.lax.fori_loop(0, lower, step, (node, point + below))
    return node - tree.shape[0] // 2


def _descend_careful(tree: Array, point: Array, below: Array) -> Array:
    upper, lower = _depths(tree)
    node: Array = np.ones(point.shape, np.intp)
    for _ in range(upper):
        node, point = _careful_step(np, tree, node, point)
    point = point + below
    for _ in range(lower):
        node, point = _careful_step(np, tree, node, point)
    return node - tree.shape[0] // 2


def _descend_fast(tree: np.ndarray, point: np.ndarray, below: np.ndarray) -> np.ndarray:
    """As the careful descent, without looking to the right. Where nothing was there, rounding has led to a
    leaf of 0; those few go down again with care."""
    upper, lower = _depths(tree)
    now = point.copy()
    node, left, go = np.ones(now.shape, np.intp), np.empty_like(now), np.empty(now.shape, bool)
    for level in range(upper + lower):
        if level == upper:
            now += below
        node <<= 1
        tree.take(node, out=left, mode="clip")
        np.greater_equal(now, left, out=go)
        left *= go
        now -= left
        node += go
    wrong = tree.take(node) <= 0
    node -= tree.shape[0] // 2
    if wrong.any():
        node[wrong] = _descend_careful(tree, point[wrong], below[wrong])
    return node
