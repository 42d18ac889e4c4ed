"""Layers in plain JAX: parameters are nested dicts of float32 arrays, functions of them are pure.

`networks.py` makes whole policies of these; `feedforward` turns any two functions init and apply into
a `Network`. N is any number of rows, F the width of the features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.errors import ShoalError, did_you_mean
from shoal.keys import normal
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from shoal.types import Array, Carry, Key, Params

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """Observations to features, perhaps with memory: a record of pure functions.

    init: key -> parameters, a nested dict of float32 arrays.
    begin: B -> the memory of B fresh episodes: zeros [B, ...], or () for a network without memory.
    step: (params, carry, x, first) -> (y, carry): one row, x a pytree of [B, ...], first bool [B].
    unroll: the same for T rows in time order: x of [T, B, ...], first bool [T, B] -> y and the last carry.

    y is float32 [..., F]. Both reset the memory wherever `first` is true, before they look at the row.
    """

    init: Callable[[Key], Params]
    begin: Callable[[int], Carry]
    step: Callable[[Params, Carry, Any, Array], tuple[jax.Array, Carry]]
    unroll: Callable[[Params, Carry, Any, Array], tuple[jax.Array, Carry]]


NetworkFn = Callable[[Space], Network]


def feedforward(init: Callable[[Key], Params], apply: Callable[[Params, Any], jax.Array]) -> Network:
    """A network without memory; `apply(params, x)` takes a pytree of [N, ...] and gives [N, F]."""

    def step(params: Params, carry: Carry, x: Any, first: Array) -> tuple[jax.Array, Carry]:
        return apply(params, x), carry

    def unroll(params: Params, carry: Carry, x: Any, first: Array) -> tuple[jax.Array, Carry]:
        rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), x)
        y = apply(params, rows)
        return y.reshape(*first.shape, *y.shape[1:]), carry

    return Network(init=init, begin=lambda size: (), step=step, unroll=unroll)


def activation_named(name: str) -> Callable[[jax.Array], jax.Array]:
    """tanh, relu, silu or gelu. Raises ShoalError for another name."""
    if name not in ACTIVATIONS:
        raise ShoalError(f"unknown activation {name!r}; {did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def noise(key: Key, *shapes: Sequence[int]) -> list[jax.Array]:
    """Standard normal arrays of these shapes, from one draw: it compiles faster than a draw for each."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = jnp.split(normal(key, int(ends[-1])), ends[:-1]) if shapes else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def orthogonal(noise: jax.Array, gain: float) -> jax.Array:
    """Normal noise [..., rows, columns] -> matrices with orthogonal columns (or rows, if these are fewer).

    Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear networks": Q of
    the QR decomposition, with signs such that it is uniform over all such matrices, times gain.
    """
    wide = noise.shape[-2] < noise.shape[-1]
    packed, scales = jnp.linalg.qr(jnp.swapaxes(noise, -1, -2) if wide else noise, mode="raw")
    packed = jnp.swapaxes(packed, -1, -2)  # as NumPy has it, "raw" is transposed
    q = jax.lax.linalg.householder_product(packed, scales)
    q = q * (gain * jnp.sign(jnp.diagonal(packed, axis1=-2, axis2=-1)))[..., None, :]
    return jnp.swapaxes(q, -1, -2) if wide else q


def dense_init(noise: jax.Array, gain: float) -> Params:
    """{"kernel": orthogonal [inputs, outputs], "bias": zeros [outputs]} from noise of the kernel's shape."""
    return {"kernel": orthogonal(noise, gain), "bias": jnp.zeros(noise.shape[-1], jnp.float32)}


def dense(params: Params, x: jax.Array) -> jax.Array:
    """[..., inputs] -> [..., outputs]."""
    return x @ params["kernel"] + params["bias"]


def mlp_init(key: Key, inputs: int, hidden: Sequence[int]) -> Params:
    """{"layers_0": {"kernel", "bias"}, ...}, kernels orthogonal with gain sqrt(2)."""
    kernels = noise(key, *itertools.pairwise((inputs, *hidden)))
    return {f"layers_{i}": dense_init(kernel, math.sqrt(2.0)) for i, kernel in enumerate(kernels)}


def mlp(params: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """[..., inputs] -> [..., hidden[-1]]: each layer followed by the activation."""
    for i in range(sum(name.startswith("layers_") for name in params)):
        x = activation(dense(params[f"layers_{i}"], x))
    return x


@dataclass(frozen=True)
class _Convolutions:
    filters: tuple[tuple[int, int, int], ...]  # (output channels, side of the square kernel, stride)
    features: int

    @property
    def smallest(self) -> int:
        """The least height and width, in pixels, that leave one output pixel."""
        side = 1
        for _, kernel, stride in reversed(self.filters):
            side = (side - 1) * stride + kernel
        return side


# Mnih et al. 2015, "Human-level control through deep reinforcement learning", Methods.
NATURE = _Convolutions(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512)
# Young and Tian 2019, "MinAtar", for images of about 10 x 10.
MINATAR = _Convolutions(((16, 3, 1),), 128)


def is_image(space: Space) -> bool:
    """Whether `torso` puts convolutions on it: a uint8 Box of 2 to 4 axes, at least 3 pixels a side."""
    if not isinstance(space, Box) or space.dtype != "uint8" or len(space.shape) not in (2, 3, 4):
        return False
    return min(_image_shape(space)[:2]) >= MINATAR.smallest


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] < min(shape[1:])


def _image_shape(space: Box) -> tuple[int, int, int]:
    """(height, width, channels)."""
    shape = space.shape
    if len(shape) == 2:
        return (*shape, 1)
    if len(shape) == 4:
        return (shape[1], shape[2], shape[0] * shape[3])
    return (shape[1], shape[2], shape[0]) if _channels_first(shape) else (shape[0], shape[1], shape[2])


def _as_image(space: Box, x: jax.Array) -> jax.Array:
    """[N, *shape] -> float32 [N, height, width, channels]; moved about as bytes, which is cheaper."""
    if len(space.shape) == 4 or _channels_first(space.shape):
        x = jnp.moveaxis(x, 1, 3)
    return _scaled(space, x.reshape(x.shape[0], *_image_shape(space)))


def convolutions(space: Box) -> _Convolutions:
    """The Nature network where the image is large enough (36 pixels a side), else MinAtar's."""
    side = min(_image_shape(space)[:2])
    if side < MINATAR.smallest:
        raise ShoalError(f"an image of shape {space.shape} is too small for a 3x3 convolution; flatten it")
    return NATURE if side >= NATURE.smallest else MINATAR


def cnn_init(key: Key, space: Box) -> Params:
    """{"conv_0": {"kernel" [h, w, in, out], "bias"}, ..., "dense": {"kernel", "bias"}}, gain sqrt(2)."""
    net = convolutions(space)
    height, width, channels = _image_shape(space)
    shapes: list[tuple[int, ...]] = []
    for filters, side, stride in net.filters:
        shapes.append((side, side, channels, filters))
        height, width, channels = (height - side) // stride + 1, (width - side) // stride + 1, filters
    shapes.append((height * width * channels, net.features))
    *kernels, last = noise(key, *shapes)
    params: Params = {"dense": dense_init(last, math.sqrt(2.0))}
    for i, kernel in enumerate(kernels):
        layer = dense_init(kernel.reshape(-1, kernel.shape[-1]), math.sqrt(2.0))
        params[f"conv_{i}"] = layer | {"kernel": layer["kernel"].reshape(kernel.shape)}
    return params


def cnn(params: Params, space: Box, x: jax.Array) -> jax.Array:
    """Images [N, *space.shape] -> features [N, 512] (128 for small images), relu throughout."""
    x = _as_image(space, x)
    for i, (_, _, stride) in enumerate(convolutions(space).filters):
        layer = params[f"conv_{i}"]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["bias"])
    return jax.nn.relu(dense(params["dense"], x.reshape(x.shape[0], -1)))


def gru_init(key: Key, inputs: int, size: int) -> Params:
    """{"input": {"kernel" [inputs, 3 size], "bias"}, "hidden": {"kernel" [size, 3 size], "bias" [size]}}.

    The three blocks are the reset gate, the update gate and the candidate; each is orthogonal.
    """

    def beside(blocks: jax.Array) -> jax.Array:
        return jnp.swapaxes(blocks, 0, 1).reshape(blocks.shape[1], 3 * size)

    x, h = noise(key, (3, inputs, size), (3, size, size))
    return {
        "input": {"kernel": beside(orthogonal(x, 1.0)), "bias": jnp.zeros(3 * size, jnp.float32)},
        "hidden": {"kernel": beside(orthogonal(h, 1.0)), "bias": jnp.zeros(size, jnp.float32)},
    }


def gru(params: Params, h: jax.Array, gates: jax.Array) -> jax.Array:
    """The next memory [B, size] from the last one and `gates` = dense(params["input"], x) [B, 3 size].

    Cho et al. 2014, with the reset gate applied after the matrix product as cuDNN does:
    r = s(W_r x + U_r h), z = s(W_z x + U_z h), n = tanh(W_n x + r * (U_n h + b)), h' = (1 - z) n + z h.
    """
    size = h.shape[-1]
    recurrent = h @ params["hidden"]["kernel"]
    r, z = jnp.split(jax.nn.sigmoid(gates[..., : 2 * size] + recurrent[..., : 2 * size]), 2, axis=-1)
    n = jnp.tanh(gates[..., 2 * size :] + r * (recurrent[..., 2 * size :] + params["hidden"]["bias"]))
    return n + z * (h - n)


def _scaled(space: Box, x: jax.Array) -> jax.Array:
    """float32; bytes divided by the greatest value that the space allows (255 for images)."""
    x = jnp.asarray(x).astype(jnp.float32)
    if space.dtype == "uint8":
        x = x * np.float32(1.0 / max(float(space.bounds()[1].max(initial=1.0)), 1.0))
    return x


def leaves(space: Space, x: Any = None, path: str = "") -> Iterator[tuple[str, Space, Any]]:
    """(path, space, x's part) of every simple space in a nested one, in the order JAX flattens it."""
    if isinstance(space, Tuple):
        for i, inner in enumerate(space.spaces):
            yield from leaves(inner, None if x is None else x[i], f"{path}.{i}" if path else str(i))
    elif isinstance(space, Dict):
        for name, inner in space.spaces:
            yield from leaves(inner, None if x is None else x[name], f"{path}.{name}" if path else name)
    else:
        yield path, space, x


def flat_size(space: Space) -> int:
    """The width of what `flatten` gives."""
    match space:
        case Box() | MultiBinary():
            return math.prod(space.shape)
        case Discrete():
            return space.n
        case MultiDiscrete():
            return sum(space.nvec)
        case _:
            return sum(flat_size(inner) for _, inner, _ in leaves(space))


def flatten(space: Space, x: Any) -> jax.Array:
    """An observation as float32 [..., flat_size(space)]: pytree of [..., *shape] arrays, any leading axes.

    Boxes as they are (bytes divided by the space's upper bound); Discrete as one-hot; MultiDiscrete as
    one-hots side by side; MultiBinary as zeros and ones; Dict (sorted by name) and Tuple side by side.
    """
    match space:
        case Box():
            return _in_rows(_scaled(space, x), space.shape)
        case MultiBinary():
            return _in_rows(jnp.asarray(x).astype(jnp.float32), space.shape)
        case Discrete():
            choices = np.arange(space.start, space.start + space.n)
            return (jnp.asarray(x)[..., None] == choices).astype(jnp.float32)
        case MultiDiscrete():
            start = space.start or (0,) * len(space.nvec)
            entry = np.repeat(np.arange(len(space.nvec)), space.nvec)
            choices = np.concatenate([np.arange(s, s + n) for s, n in zip(start, space.nvec, strict=True)])
            return (jnp.asarray(x)[..., entry] == choices).astype(jnp.float32)
        case _:
            return jnp.concatenate([flatten(inner, part) for _, inner, part in leaves(space, x)], axis=-1)


def _in_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))
