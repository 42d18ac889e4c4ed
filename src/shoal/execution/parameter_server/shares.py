"""How a State is divided among parameter shards, and put together again.

All parameters, one after another, are one long vector, of which every shard owns a contiguous range: so
shards are equal in size to one number. What follows a parameter (the optimizer's moments, target networks)
lies with it. The rest (counters, running statistics, flags) is small, and every shard has all of it.

A shard's State has the structure of the whole one, with flat slices, some of them empty, in the place of
what is divided. Optimizers and target updates work number by number, so `Agent.apply` runs on it unchanged;
`check` makes sure of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import norms
from shoal.errors import ShoalError
from shoal.keys import key_for, uniform
from shoal.memo import remembered
from shoal.replay.arrays import module
from shoal.types import Agent, Array, Gradient, Params, State

TOLERANCE = 1e-4  # of the largest number in a leaf: what rounding may do in two steps
APPLIED = 2  # steps that `check` makes


class Slice(NamedTuple):
    """What a shard publishes. vector: float32 [n], its share of the parameters and of what in `extra` follows
    them. rest: the leaves of `extra` that are not divided, env_steps and updates, in JAX's order."""

    version: int
    vector: np.ndarray
    rest: list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """count: shards. form: the whole State, of jax.ShapeDtypeStruct. follows: for each leaf of it, in JAX's
    order, the number of the parameter that it lies with; None: it is not divided."""

    count: int
    form: State
    follows: tuple[int | None, ...]

    @staticmethod
    def of(agent: Agent, count: int) -> Shares:
        """Raises ShoalError where the parameters are of several dtypes, or fewer than shards."""
        return _shares(agent, count)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameters, in JAX's order."""
        return [leaf.shape for leaf in jax.tree.leaves(self.form.params)]

    @cached_property
    def size(self) -> int:
        """Parameters in all, in numbers."""
        return sum(map(prod, self.shapes))

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Each shard's range of the vector of all parameters."""
        return list(pairwise(s * self.size // self.count for s in range(self.count + 1)))

    @cached_property
    def ranges(self) -> list[list[tuple[int, int]]]:
        """[shard][parameter]: the range of the flattened parameter that the shard owns, perhaps empty."""
        ends = np.cumsum([0, *map(prod, self.shapes)])
        return [
            [(max(lo, a) - a, max(min(hi, b), max(lo, a)) - a) for a, b in pairwise(map(int, ends))]
            for lo, hi in self.bounds
        ]

    def cut(self, state: State, shard: int) -> State:
        """A shard's State; a single shard's is the whole. Leaves: arrays as they are in `state`."""
        if self.count == 1:
            return state
        leaves, structure = jax.tree.flatten(state)
        ranges = self.ranges[shard]
        cut = [
            x if p is None else x.reshape(-1)[slice(*ranges[p])]
            for x, p in zip(leaves, self.follows, strict=True)
        ]
        return jax.tree.unflatten(structure, cut)

    def join(self, parts: Sequence[State]) -> State:
        """The whole State from all shards', NumPy leaves. The rest is the first one's."""
        if self.count == 1:
            return jax.tree.map(np.asarray, parts[0])
        columns = zip(*map(jax.tree.leaves, parts), strict=True)
        forms, structure = jax.tree.flatten(self.form)
        leaves = [
            np.asarray(column[0]) if p is None else np.concatenate(column).reshape(form.shape)
            for column, p, form in zip(columns, self.follows, forms, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves)

    # -- gradients ---------------------------------------------------------------------------------------

    def vectors(self, gradient: Params) -> list[Array]:
        """The gradient as each shard's share of it: float32 [n]. Of NumPy or JAX arrays, as are all here."""
        leaves = jax.tree.leaves(gradient)
        flat = module(leaves[0]).concatenate([g.reshape(-1) for g in leaves])
        return [flat[lo:hi] for lo, hi in self.bounds]

    def sliced(self, vector: Array, shard: int) -> Params:
        """A shard's share of a gradient with the structure of the parameters."""
        if self.count == 1:
            return self.whole([vector])
        sizes = [hi - lo for lo, hi in self.ranges[shard]]
        parts = [vector[b - n : b] for n, b in zip(sizes, np.cumsum(sizes), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.form.params), parts)

    def whole(self, vectors: Sequence[Array]) -> Params:
        """The gradient again, from all shards' shares."""
        flat = module(vectors[0]).concatenate(list(vectors))
        ends = np.cumsum([0, *map(prod, self.shapes)])
        parts = [flat[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), self.shapes, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.form.params), parts)

    # -- what workers are sent ---------------------------------------------------------------------------

    @cached_property
    def _seen(self) -> tuple[list[int], list[int]]:
        """The leaves of a State, less its optimizer's, that are divided, and that are not."""
        before = len(jax.tree.leaves(self.form.params))
        hidden = range(before, before + len(jax.tree.leaves(self.form.opt)))
        seen = [i for i in range(len(self.follows)) if i not in hidden]
        divided = [i for i in seen if self.follows[i] is not None]
        return divided, [i for i in seen if self.follows[i] is None]

    def published(self, state: State) -> tuple[Array, list[Array]]:
        """(vector, rest) of a `Slice`, from a shard's State."""
        leaves = jax.tree.leaves(state)
        divided, rest = self._seen
        return module(leaves[0]).concatenate([leaves[i].reshape(-1) for i in divided]), [
            leaves[i] for i in rest
        ]

    def received(self, slices: Sequence[Slice]) -> State:
        """The State less its optimizer's (), from what all shards published. NumPy leaves."""
        divided, rest = self._seen
        forms, found = jax.tree.leaves(self.form), {}
        at = [0] * self.count
        for i in divided:
            parts, parameter = [], self.follows[i]
            assert parameter is not None
            for s, published in enumerate(slices):
                lo, hi = self.ranges[s][parameter]
                parts.append(published.vector[at[s] : at[s] + hi - lo])
                at[s] += hi - lo
            found[i] = (np.concatenate(parts) if len(parts) > 1 else parts[0]).reshape(forms[i].shape)
        found |= zip(rest, slices[0].rest, strict=True)
        return jax.tree.unflatten(
            jax.tree.structure(self.form._replace(opt=())), [found[i] for i in sorted(found)]
        )


@remembered
def _shares(agent: Agent, count: int) -> Shares:
    form = jax.eval_shape(agent.init, key_for(0, "form"))
    shares = Shares(count=count, form=form, follows=followed(form))
    if len({leaf.dtype for leaf in jax.tree.leaves(form.params)}) != 1:
        raise ShoalError("a parameter server needs parameters of one dtype, such as float32")
    if shares.size < count:
        raise ShoalError(f"{shares.size} parameters cannot be divided among shards={count}: ask for fewer")
    return shares


def followed(form: State) -> tuple[int | None, ...]:
    """For each leaf of a State, the number of the parameter that it follows, by path and shape.

    A leaf of `opt` or `extra` follows the parameter whose path it has, with other names before or within it
    (`opt.mu[path]`, `extra["dqn_target"][path]`), or, less its owner's name, a part of it from behind
    (`extra["sac_target"]["critic_0"]`, of `["critic"]["critic_0"]`), where there is only one such.
    """
    flat = jax.tree_util.tree_flatten_with_path
    names = lambda path: tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)  # noqa: E731
    params = [(names(path), leaf) for path, leaf in flat(form.params)[0]]

    def owner(path: tuple[str, ...], leaf: Any) -> int | None:
        alike = [(i, p) for i, (p, x) in enumerate(params) if (x.shape, x.dtype) == (leaf.shape, leaf.dtype)]
        within = sorted(((len(p), i) for i, p in alike if _within(p, path)), reverse=True)
        if within:
            return within[0][1]
        behind = [i for i, p in alike if len(path) > 1 and p[-len(path) + 1 :] == path[1:]]
        return behind[0] if len(behind) == 1 else None

    found: list[int | None] = []
    for path, leaf in flat(form)[0]:
        field, *inner = names(path)
        if field == "params":
            found.append(len(found))
        else:
            found.append(owner(tuple(inner), leaf) if field in ("opt", "extra") else None)
    return tuple(found)


def _within(part: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether all names of `part` are in `path`, in their order, the last at its end."""
    left = iter(path)
    return bool(part) and part[-1] == path[-1] and all(name in left for name in part)


def norms_taken(agent: Agent, shares: Shares) -> int:
    """How many norms `apply` takes."""

    def squares(state: State) -> list[Array]:
        with norms.recorded() as found:
            agent.apply(state, Gradient(state.params, jnp.float32(1), _Any()))
        return found

    return len(jax.eval_shape(squares, shares.form))


class _Any(dict[str, Any]):
    """Metrics of whatever name, for PPO's early stop looks at one: sums of 0."""

    def __missing__(self, name: str) -> Array:
        return jnp.float32(0)


def check(agent: Agent, shares: Shares, state: State, *, numbers_alone: bool = False) -> None:
    """Raises ShoalError unless steps on shares are steps on the whole, to rounding, clipping included. Makes
    some of both, with random gradients, from this state.

    numbers_alone: also where there is one share, since some numbers of a gradient will come without others.
    """
    count = 2 if numbers_alone else min(shares.count, 2)
    two = Shares(count=count, form=shares.form, follows=shares.follows)

    @jax.jit
    def both(whole: State, parts: list[State], vectors: list[Array]) -> tuple[State, list[State]]:
        weight = jnp.float32(1)
        with norms.recorded() as squares:
            whole = agent.apply(whole, Gradient(two.whole(vectors), weight, _Any()))
        taken = [jnp.sqrt(square) for square in squares]
        for s, vector in enumerate(vectors):
            with norms.given(taken):
                parts[s] = agent.apply(parts[s], Gradient(two.sliced(vector, s), weight, _Any()))
        return whole, parts

    try:
        whole, parts = state, [two.cut(state, s) for s in range(two.count)]
        for n in range(APPLIED):
            random = 2.0 * np.asarray(uniform(key_for(0, "check", n), two.size)) - 1.0
            whole, parts = both(whole, parts, [random[lo:hi] for lo, hi in two.bounds])
        whole, joined = jax.device_get(whole), two.join(jax.device_get(parts))
    except jax.errors.UnexpectedTracerError:
        raise ShoalError(
            "this algorithm clips within a branch of its apply, where a parameter server cannot supply the "
            "norm: clip before the branch"
        ) from None
    except (TypeError, ValueError) as error:  # a leaf that broadcasts, or has another shape afterwards
        raise ShoalError(f"{_UNFIT} ({str(error).splitlines()[0][:120]})") from None
    paths = jax.tree_util.tree_leaves_with_path(whole)
    for (path, a), b in zip(paths, jax.tree.leaves(joined), strict=True):
        scale = np.abs(a).max(initial=0) or 1.0
        if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=TOLERANCE * scale):
            raise ShoalError(f"{_UNFIT} (state{jax.tree_util.keystr(path)} differs)")


_UNFIT = (
    "this algorithm's optimizer cannot be divided among parameter shards, because it does not treat each "
    "number by itself: use shards=1, and no top-k compression"
)
