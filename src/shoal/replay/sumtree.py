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

from shoal.replay.arrays import integers, module, multiply_high, put, put_rows, repeat, take
from shoal.types import Array

LEAST, MOST = 2.0**-40, 2.0**40  # the priorities of units that can be drawn lie between these


def zeros(units: int, xp: Any) -> Array:
    """A tree of that many leaves (rounded up to a power of two, at least 4), all 0."""
    return xp.zeros(2 * max(4, 1 << (units - 1).bit_length()), xp.float32)


def within(priorities: Array) -> Array:
    """Priorities cut to [LEAST, MOST]: float32 of any shape; what is not a number stays so."""
    xp = module(priorities)
    return xp.minimum(xp.maximum(priorities, xp.float32(LEAST)), xp.float32(MOST))


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
    """Make the ancestors of the leaves start ... start + count - 1 the sums that they should be.

    In each level a stretch wide enough for all levels is summed again, which near the root reaches into the
    levels below: their nodes are right already and come out the same.
    """
    size = tree.shape[0] // 2
    width = min(count // 2 + 1, size // 2)  # of nodes; half the leaves, and one for an odd start

    def up(now: tuple[Array, Any]) -> tuple[Array, Any]:
        tree, low = now
        low = low // 2
        first = low - (low + width - size) * (low + width > size)
        if isinstance(tree, jax.Array):
            pairs = jax.lax.dynamic_slice_in_dim(tree, 2 * first, 2 * width).reshape(width, 2)
            return put_rows(tree, first, pairs[:, 0] + pairs[:, 1]), low
        pairs = tree[2 * first : 2 * (first + width)]
        np.add(pairs[::2], pairs[1::2], out=tree[first : first + width])
        return tree, low

    start = start if isinstance(tree, jax.Array) else int(start)
    return repeat(module(tree), _depth(tree), up, (tree, start + size))[0]


def rebuild(tree: Array, width: int) -> Array:
    """Make all nodes above the level of `width` nodes the sums that they should be."""
    xp = module(tree)
    levels = [tree[width : 2 * width]]
    while width > 1:
        width //= 2
        pairs = levels[-1].reshape(width, 2)
        levels.append(pairs[:, 0] + pairs[:, 1])
    return put_rows(tree, 0, xp.concatenate([xp.zeros(1, xp.float32), *levels[:0:-1]]))


def update(tree: Array, index: Array, values: Array, chosen: Array) -> Array:
    """Give these units ([R]) these priorities where `chosen` (bool [R]). Of several for one unit the highest
    stays, whatever the order. Levels that have no more nodes than there are units are summed whole."""
    size = tree.shape[0] // 2
    if isinstance(tree, jax.Array):
        node = index + size
        leaf = jnp.where(chosen, node, 2 * size)  # beyond the end: dropped
        tree = tree.at[leaf].set(0.0, mode="drop").at[leaf].max(values, mode="drop")
    else:
        node = index[chosen] + size
        tree[node] = 0.0
        np.maximum.at(tree, node, values[chosen])
    width = min(size, 1 << index.shape[0].bit_length())

    def up(now: tuple[Array, Array]) -> tuple[Array, Array]:
        tree, node = now
        node = node >> 1
        pairs = take(tree.reshape(-1, 2), node)
        return put(tree, node, pairs[:, 0] + pairs[:, 1]), node

    tree, _ = repeat(module(tree), (size // width).bit_length() - 1, up, (tree, node))
    return rebuild(tree, width)


def sample(tree: Array, word: Array, more: Array) -> tuple[Array, Array, Array]:
    """Units drawn in proportion to their priorities, stratified: words uint32 [K, N] twice -> (unit, its
    priority, the sum of all), [K, N] each.

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
        return _descend(tree, point, below)
    unit = _descend_quickly(tree, point, below)
    return unit, leaves(tree, unit), total(tree)


def _depth(tree: Array) -> int:
    """Levels below the root."""
    return tree.shape[0].bit_length() - 2


def _descend(tree: Array, point: Array, below: Array) -> tuple[Array, Array, Array]:
    """The units that lie at `point`, refined by `below` half-way: what `sample` gives.

    Priority and sum are taken along on the way. An update of the tree waits for the units, so for this loop;
    were there another look at the tree, XLA could not know which comes first, and would copy the tree.
    """
    xp, depth = module(tree), _depth(tree)

    def down(now: tuple[Array, ...]) -> tuple[Array, ...]:
        node, point, _, most = now
        pairs = take(tree.reshape(-1, 2), node)
        left, right = pairs[..., 0], pairs[..., 1]
        go = (point >= left) & (right > 0)
        here, most = xp.where(go, right, left), xp.maximum(most, left + right)
        return 2 * node + go, xp.where(go, point - left, point), here, most

    nothing = xp.zeros(point.shape, xp.float32)
    now = (xp.ones(point.shape, integers(xp)), point, nothing, nothing)
    node, point, here, most = repeat(xp, depth // 2, down, now)
    node, _, here, most = repeat(xp, depth - depth // 2, down, (node, point + below, here, most))
    return node - tree.shape[0] // 2, here, most


def _descend_quickly(tree: np.ndarray, point: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The same for NumPy, without a look to the right. The few that rounding has led to where nothing is end
    at a leaf of 0, and go down again with the look."""
    depth = _depth(tree)
    now = point.copy()
    node, left, go = np.ones(now.shape, np.intp), np.empty_like(now), np.empty(now.shape, bool)
    for level in range(depth):
        if level == depth // 2:
            now += below
        node += node
        tree.take(node, out=left, mode="clip")
        np.greater_equal(now, left, out=go)
        left *= go
        now -= left
        node += go
    wrong = tree.take(node) <= 0
    node -= tree.shape[0] // 2
    if wrong.any():
        node[wrong] = _descend(tree, point[wrong], below[wrong])[0]
    return node
