"""Modules of Flax and Equinox as networks: `network=from_nnx(...)` and the like.

    module --(once)--> plain nested dict of arrays + a pure function of it

After that nothing of the framework is left in the parameters, so that acting and learning go through
plain `jax.jit` (`nnx.jit` and `eqx.filter_jit` cost 0.2 to 0.8 ms a call), and checkpoints, transport and
optimisers see the same nested dicts as everywhere. Each framework is imported only when it is used.

A module sees the observation as the environment gives it: bytes are bytes, Discrete is an integer, Dict
is a dict (of {"critic", "policy"} for a critic that sees more). `flatten(space, x)` makes float32 rows of
anything. It gives features; the heads are added to it, and memory by `memory=` or `recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.errors import ShoalError, told
from shoal.layers import Network, NetworkFn, feedforward
from shoal.spaces import Space, zeros
from shoal.types import Key, Params

if TYPE_CHECKING:
    from flax import linen, nnx


def from_linen(module: linen.Module) -> NetworkFn:
    """A Flax Linen module that maps [N, ...] to [N, F], as `network=`.

        class Torso(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.tanh(nn.Dense(64)(x))

        PPO(network=from_linen(Torso()))

    Raises ShoalError if the module has collections beside "params" (batch statistics, say), which no
    gradient would change, or cannot be called with observations alone (it draws).
    """
    from flax.core import meta

    def build(space: Space) -> Network:
        example = zeros(space, (1,))

        def variables(key: Key) -> Any:
            return meta.unbox(module.init(_prng(key), example))

        def apply(params: Params, x: Any) -> Any:
            return module.apply({"params": params}, x)

        name = type(module).__name__
        found = _tried(name, space, variables, _KEY)
        if others := set(found) - {"params"}:
            raise _has_state(name, sorted(others))
        _tried(name, space, apply, found.get("params", {}), example)
        return feedforward(lambda key: _plain(variables(key).get("params", {})), apply)

    return build


def from_nnx(make: Callable[[Space, nnx.Rngs], Callable[..., Any]]) -> NetworkFn:
    """A Flax NNX module that maps [N, ...] to [N, F], as `network=`; `make(space, rngs)` creates it.

        class Torso(nnx.Module):
            def __init__(self, inputs, rngs):
                self.layer = nnx.Linear(inputs, 64, rngs=rngs)

            def __call__(self, x):
                return nnx.tanh(self.layer(x))

        PPO(network=from_nnx(lambda space, rngs: Torso(space.shape[0], rngs)))

    Raises ShoalError if the module has variables other than `nnx.Param` (batch statistics, dropout's
    random state), which no gradient would change.
    """
    from flax import nnx

    def build(space: Space) -> Network:
        def split(key: Key) -> tuple[Any, Any, Any]:
            graph, params, rest = nnx.split(make(space, nnx.Rngs(_prng(key))), nnx.Param, ...)
            return graph, params, rest

        graph, shapes, rest = jax.eval_shape(split, _KEY)
        if jax.tree.leaves(rest):
            variables = jax.tree.leaves(rest, is_leaf=lambda v: isinstance(v, nnx.Variable))
            raise _has_state("the NNX module", sorted({type(v).__name__ for v in variables}))
        paths = _paths(nnx.to_pure_dict(shapes))

        def init(key: Key) -> Params:
            return _nested(paths, jax.tree.leaves(nnx.to_pure_dict(split(key)[1])))

        def apply(params: Params, x: Any) -> jax.Array:
            state = jax.tree.unflatten(jax.tree.structure(shapes), _leaves(paths, params))
            return nnx.merge(graph, state)(x)

        return feedforward(init, apply)

    return build


def from_equinox(make: Callable[[Space, jax.Array], Callable[..., Any]]) -> NetworkFn:
    """An Equinox module that maps one observation to [F], as `network=`; `make(space, key)` creates it.

        PPO(network=from_equinox(lambda space, key: eqx.nn.MLP(space.shape[0], 64, 64, 2, key=key)))

    The module is written for a single sample, as Equinox has it, and is vmapped over the rows. Its
    floating-point arrays are the parameters; all else in it stays constant. Raises ShoalError if it cannot
    be called with an observation alone (it draws, or keeps a state).
    """
    import equinox as eqx

    def build(space: Space) -> Network:
        def parameters(key: Key) -> Any:
            return eqx.filter(make(space, _prng(key)), eqx.is_inexact_array)

        def is_parameter(leaf: Any) -> bool:
            return isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)

        shaped = eqx.filter_eval_shape(lambda key: make(space, _prng(key)), jnp.asarray(_KEY))
        arrays, constant = eqx.partition(shaped, is_parameter)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(constant)):
            # Integer arrays have values that matter: make one module for good.
            _, constant = eqx.partition(make(space, _prng(_KEY)), eqx.is_inexact_array)
        paths, structure = _paths(arrays), jax.tree.structure(arrays)

        def apply(params: Params, x: Any) -> jax.Array:
            module = eqx.combine(jax.tree.unflatten(structure, _leaves(paths, params)), constant)
            return jax.vmap(module)(x)

        params = _nested(paths, jax.tree.leaves(arrays))
        _tried("the Equinox module", space, apply, params, zeros(space, (1,)))
        return feedforward(lambda key: _nested(paths, jax.tree.leaves(parameters(key))), apply)

    return build


_KEY = np.zeros(2, np.uint32)


def _prng(key: Key) -> jax.Array:
    """A key of `jax.random`."""
    return jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")


def _tried(module: str, space: Space, function: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of what `function` gives; what it raises, in one line."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        raise ShoalError(
            f"{module} cannot be called with observations alone, here of {space}: {told(error)} (layers that "
            "draw, or keep a state, cannot be used)"
        ) from error


def _has_state(module: str, kinds: list[str]) -> ShoalError:
    names = ", ".join(kinds)
    return ShoalError(f"{module} keeps {names} beside its parameters; use layers that have parameters only")


def _plain(tree: Any) -> Params:
    return {name: _plain(part) for name, part in tree.items()} if hasattr(tree, "items") else tree


def _paths(tree: Any) -> list[tuple[str, ...]]:
    """The way to each leaf, in the order of `jax.tree.leaves`, by names and numbers."""

    def name(entry: Any) -> str:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute))
        return str(entry)

    return [tuple(map(name, path)) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _nested(paths: list[tuple[str, ...]], values: list[Any]) -> Params:
    params: Params = {}
    for path, value in zip(paths, values, strict=True):
        part = params
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = value
    return params


def _leaves(paths: list[tuple[str, ...]], params: Params) -> list[Any]:
    """The arrays of `_nested`, back in the order of the paths."""
    values = []
    for path in paths:
        value = params
        for name in path:
            value = value[name]
        values.append(value)
    return values
