"""Q-networks: observation -> torso (MLP, CNN, your own) [-> GRU memory] -> head -> outputs [..., A, Z].

Heads, Z numbers for each of A actions (Z = 1: the action's value; more: its distribution):

    plain        one linear layer
    dueling      a value and advantages, each from a hidden layer of its own (Wang et al. 2016)
    noisy        linear layers whose weights are random by a learned amount, in either (Fortunato et al. 2018)

The hidden layers of a dueling or noisy head are as wide as the features below them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from shoal.keys import fold, normal, uniform
from shoal.layers import Network, NetworkFn, activation_named, dense, dense_init, noise
from shoal.networks import has_memory, recurrent, torso, width_of
from shoal.types import Array, Carry, EnvSpec, Key, Observation, Params


@dataclass(frozen=True, kw_only=True)
class QNetwork:
    """Action values, as pure functions.

    init: key -> {"torso": ..., "head": ...}. begin: B -> memory; () if there is none.
    step: (params, carry, observation of [B, ...], first [B], noise) -> outputs [B, A, Z], carry.
    unroll: (params, carry, observation of [T, B, ...], first [T, B], noise) -> outputs [T, B, A, Z], carry.
    noise: keys uint32 [..., 2] -> float32 [..., M], for `step` and `unroll`: one row for each of their rows,
        or one for all; zeros make a noisy network its own mean. M is 0 for a network that is not noisy.
    recurrent: whether there is memory, so that rows must be learned from in time order.
    """

    init: Callable[[Key], Params]
    begin: Callable[[int], Carry]
    step: Callable[[Params, Carry, Observation, Array, Array], tuple[jax.Array, Carry]]
    unroll: Callable[[Params, Carry, Observation, Array, Array], tuple[jax.Array, Carry]]
    noise: Callable[[Key], jax.Array]
    recurrent: bool


@dataclass(frozen=True, kw_only=True)
class Head:
    """Features [..., F] -> outputs [..., A, Z].

    init: key -> params. apply: (params, features, noise [..., M]) -> outputs. noise: M.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, jax.Array, Array], jax.Array]
    noise: int


def q_network(
    spec: EnvSpec,
    actions: int,
    size: int = 1,
    network: NetworkFn | None = None,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
    memory: int = 0,
    dueling: bool = False,
    noisy_std: float | None = None,
) -> QNetwork:
    """A Q-network with `size` numbers for each of `actions`; it sees what the policy sees, nothing else.

    network: space -> torso; None takes `torso(space, hidden, activation)`. memory: size of a GRU after the
    torso, 0 for none. noisy_std: the noise that a noisy head begins with (sigma_0 of Fortunato et al. 2018);
    None: not noisy. Raises ShoalError for a torso that gives no features [B, F].
    """
    build: NetworkFn = network or (lambda space: torso(space, hidden, activation))
    if memory:
        build = recurrent(build, memory)
    body: Network = build(spec.observation)
    width = width_of(body, spec.observation)
    top = _head(width, actions, size, activation, dueling, noisy_std)

    def init(key: Key) -> Params:
        own = fold(key, np.arange(2))
        return {"torso": body.init(own[0]), "head": top.init(own[1])}

    def step(
        params: Params, carry: Carry, obs: Observation, first: Array, noise: Array
    ) -> tuple[jax.Array, Carry]:
        y, carry = body.step(params["torso"], carry, obs.policy, first)
        return top.apply(params["head"], y, noise), carry

    def unroll(
        params: Params, carry: Carry, obs: Observation, first: Array, noise: Array
    ) -> tuple[jax.Array, Carry]:
        y, carry = body.unroll(params["torso"], carry, obs.policy, first)
        return top.apply(params["head"], y, noise), carry

    def factors(key: Key) -> jax.Array:
        if not top.noise:
            return jnp.zeros((*key.shape[:-1], 0), jnp.float32)
        x = normal(key, top.noise)
        return jnp.sign(x) * jnp.sqrt(jnp.abs(x))  # f of section 3 (b)

    return QNetwork(
        init=jax.jit(init),
        begin=body.begin,
        step=step,
        unroll=unroll,
        noise=factors,
        recurrent=has_memory(body),
    )


def _head(
    width: int, actions: int, size: int, activation: str, dueling: bool, noisy_std: float | None
) -> Head:
    act = activation_named(activation)
    layer = _dense_layer() if noisy_std is None else _noisy_layer(noisy_std)
    streams = {"value": size, "advantage": actions * size} if dueling else {"value": actions * size}
    deep = dueling or noisy_std is not None
    shapes: dict[str, tuple[int, int]] = {}
    for name, columns in streams.items():
        if deep:
            shapes[f"{name}_hidden"] = (width, width)
        shapes[name] = (width, columns)
    ends = np.cumsum([0] + [layer.noise(shape) for shape in shapes.values()])
    parts = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(shapes)}

    def make(key: Key) -> Params:
        own = fold(key, np.arange(len(shapes)))
        gains = [math.sqrt(2.0) if name.endswith("hidden") else 1.0 for name in shapes]
        return {
            name: layer.init(own[i], shape, gain)
            for i, ((name, shape), gain) in enumerate(zip(shapes.items(), gains, strict=True))
        }

    def stream(params: Params, name: str, y: jax.Array, noise: Array) -> jax.Array:
        if deep:
            hidden = f"{name}_hidden"
            y = act(layer.apply(params[hidden], y, noise[..., parts[hidden]]))
        return layer.apply(params[name], y, noise[..., parts[name]])

    def outputs(params: Params, y: jax.Array, noise: Array) -> jax.Array:
        value = stream(params, "value", y, noise)
        if not dueling:
            return value.reshape(*y.shape[:-1], actions, size)
        advantage = stream(params, "advantage", y, noise).reshape(*y.shape[:-1], actions, size)
        centred = advantage - jnp.mean(advantage, axis=-2, keepdims=True)
        return value[..., None, :] + centred  # Wang et al. 2016, eq. 9

    return Head(init=make, apply=outputs, noise=int(ends[-1]))


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """init: (key, (inputs, outputs), gain) -> params. noise: how many random numbers a row takes."""

    init: Callable[[Key, tuple[int, int], float], Params]
    apply: Callable[[Params, jax.Array, Array], jax.Array]
    noise: Callable[[tuple[int, int]], int]


def _dense_layer() -> _Layer:
    return _Layer(
        init=lambda key, shape, gain: dense_init(noise(key, shape)[0], gain),
        apply=lambda params, x, noise: dense(params, x),
        noise=lambda shape: 0,
    )


def _noisy_layer(std: float) -> _Layer:
    """Means uniform within 1 / sqrt(inputs), deviations std / sqrt(inputs) (Fortunato et al. 2018, 3.2)."""

    def init(key: Key, shape: tuple[int, int], gain: float) -> Params:
        del gain
        inputs, outputs = shape
        bound = 1.0 / math.sqrt(inputs)
        means = (2.0 * uniform(jnp.asarray(key), inputs * outputs + outputs) - 1.0) * bound
        return {
            "kernel": means[outputs:].reshape(shape),
            "bias": means[:outputs],
            "kernel_std": jnp.full(shape, std * bound, jnp.float32),
            "bias_std": jnp.full(outputs, std * bound, jnp.float32),
        }

    return _Layer(init=init, apply=noisy_dense, noise=sum)


def noisy_dense(params: Params, x: jax.Array, noise: Array) -> jax.Array:
    """[..., inputs] -> [..., outputs], with factorised noise [..., inputs + outputs] on weights and biases.

    Weight (i, j) is kernel + kernel_std * noise_i * noise_j (Fortunato et al. 2018, eq. 10), so that noise of
    its own for each row costs one more matrix product, and no matrix of a row's own.
    """
    inputs = params["kernel"].shape[0]
    before, after = noise[..., :inputs], noise[..., inputs:]
    return dense(params, x) + ((x * before) @ params["kernel_std"] + params["bias_std"]) * after
