"""Policies and values as `Network` values: records of pure functions over nested dicts of arrays.

    observation -> torso (MLP, CNN) [-> GRU memory] -> features [..., F] -> policy head, value head

An algorithm's `network=` is a `NetworkFn`, a function from a space to a torso. Write one in plain JAX
with `feedforward`, or bring a module of Flax or Equinox with `from_linen`, `from_nnx`, `from_equinox`.
Initialisation follows "The 37 implementation details of PPO" (Huang et al. 2022): orthogonal, gain
sqrt(2) for hidden layers, 0.01 for the policy's head, 1 for the value's head; biases zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.adapters import from_equinox, from_linen, from_nnx
from shoal.errors import ShoalError
from shoal.keys import fold
from shoal.layers import (
    Network,
    NetworkFn,
    activation_named,
    cnn,
    cnn_init,
    convolutions,
    dense,
    dense_init,
    feedforward,
    flat_size,
    flatten,
    gru,
    gru_init,
    is_image,
    leaves,
    mlp,
    mlp_init,
    noise,
)
from shoal.spaces import Box, Dict, Space, zeros
from shoal.types import Array, Carry, EnvSpec, Key, Observation, Params

__all__ = [
    "ActorCritic",
    "Network",
    "NetworkFn",
    "actor_critic",
    "convolutional",
    "feedforward",
    "flat_size",
    "flatten",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "has_memory",
    "recurrent",
    "torso",
    "width_of",
]


def torso(space: Space, hidden: Sequence[int] = (64, 64), activation: str = "tanh") -> Network:
    """The usual network for a space, without heads and without memory.

    Images (uint8 Boxes, see `convolutional`) pass through a CNN and `hidden` is not used; everything
    else is flattened (see `flatten`: one-hot for discrete spaces) and passes through an MLP with these
    hidden layers. In Dict and Tuple spaces each image has its own CNN, whose features join the rest
    before the MLP. Activations: tanh, relu, silu, gelu. Raises ShoalError for another.
    """
    act = activation_named(activation)
    if any(width < 1 for width in hidden):
        raise ShoalError(f"hidden layers need at least one unit each, not {tuple(hidden)}")
    if isinstance(space, Box) and is_image(space):
        return convolutional(space)
    images = {path: inner for path, inner, _ in leaves(space) if isinstance(inner, Box) and is_image(inner)}
    width = sum(
        convolutions(images[path]).features if path in images else flat_size(inner)
        for path, inner, _ in leaves(space)
    )

    def init(key: Key) -> Params:
        params = mlp_init(key, width, hidden)
        if images:
            params["images"] = {
                path: cnn_init(fold(key, i), image) for i, (path, image) in enumerate(images.items())
            }
        return params

    def apply(params: Params, x: Any) -> jax.Array:
        parts = [
            cnn(params["images"][path], images[path], part) if path in images else flatten(inner, part)
            for path, inner, part in leaves(space, x)
        ]
        return mlp(params, parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1), act)

    return feedforward(init, apply)


def convolutional(space: Space) -> Network:
    """A CNN for a Box of 2 to 4 axes: [H, W], [H, W, C], [stack, H, W], [stack, H, W, C].

    Of three axes, the first is the stack (so the channels) if it is the shortest. From 36 pixels a side
    it is the network of Mnih et al. 2015 (512 features), below that MinAtar's (Young and Tian 2019: 16
    filters of 3x3, then 128 features). Bytes are divided by the space's upper bound (255) on the device.
    Raises ShoalError for other spaces and for sides under 3 pixels.
    """
    if not isinstance(space, Box) or len(space.shape) not in (2, 3, 4):
        raise ShoalError(f"a convolutional network needs an image, a Box of 2 to 4 axes, and not {space}")
    convolutions(space)
    return feedforward(lambda key: cnn_init(key, space), lambda params, x: cnn(params, space, x))


def recurrent(inner: NetworkFn, size: int) -> NetworkFn:
    """A network function, then a GRU with a memory of `size` numbers (Cho et al. 2014), which is its output.

    E.g. `network=recurrent(torso, 128)`. `unroll` runs the inner network and the GRU's input product on
    all T * B rows at once and scans over the rest alone. The memory begins as zeros.
    """
    if size < 1:
        raise ShoalError(f"a memory of {size} numbers cannot hold anything; give at least 1")

    def build(space: Space) -> Network:
        return _with_memory(inner(space), space, size)

    return build


def _with_memory(inner: Network, space: Space, size: int) -> Network:
    width = width_of(inner, space)
    deep = has_memory(inner)

    def init(key: Key) -> Params:
        own = fold(key, np.arange(2))
        return {"torso": inner.init(own[0]), "memory": gru_init(own[1], width, size)}

    def begin(rows: int) -> Carry:
        memory = {"memory": jnp.zeros((rows, size), jnp.float32)}
        return memory | {"torso": inner.begin(rows)} if deep else memory

    def packed(memory: jax.Array, below: Carry) -> Carry:
        return {"memory": memory} | ({"torso": below} if deep else {})

    def below(carry: Carry) -> Carry:
        return carry["torso"] if deep else ()

    def row(params: Params, h: jax.Array, gates: jax.Array, first: Array) -> jax.Array:
        return gru(params["memory"], jnp.where(jnp.asarray(first)[:, None], 0.0, h), gates)

    def step(params: Params, carry: Carry, x: Any, first: Array) -> tuple[jax.Array, Carry]:
        y, inside = inner.step(params["torso"], below(carry), x, first)
        h = row(params, carry["memory"], dense(params["memory"]["input"], y), first)
        return h, packed(h, inside)

    def unroll(params: Params, carry: Carry, x: Any, first: Array) -> tuple[jax.Array, Carry]:
        y, inside = inner.unroll(params["torso"], below(carry), x, first)
        gates = dense(params["memory"]["input"], y)

        def body(h: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            h = row(params, h, *now)
            return h, h

        last, out = jax.lax.scan(body, carry["memory"], (gates, jnp.asarray(first)))
        return out, packed(last, inside)

    return Network(init=init, begin=begin, step=step, unroll=unroll)


def width_of(network: Network, space: Space) -> int:
    """The width F of a network's features, found without computing.

    Raises ShoalError unless it is a Network that turns B observations into floats [B, F].
    """
    if not isinstance(network, Network):
        raise ShoalError(f"network= must be a function from a space to a Network, not to {network!r}")
    rows = 2
    y = jax.eval_shape(
        lambda key, x, first: network.step(network.init(key), network.begin(rows), x, first)[0],
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), zeros(space, (rows,))),
        jax.ShapeDtypeStruct((rows,), jnp.bool_),
    )
    if not (isinstance(y, jax.ShapeDtypeStruct) and len(y.shape) == 2 and y.shape[0] == rows):
        raise ShoalError(f"a network must turn {rows} observations into [{rows}, F] features, not into {y}")
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ShoalError(f"a network's features must be floats, not {y.dtype}")
    return y.shape[1]


@dataclass(frozen=True, kw_only=True)
class ActorCritic:
    """A policy and its value, as pure functions.

    init: key -> {"policy": ..., "value": ...} and {"torso": ...} if it is shared.
    acting: the part of the parameters that `step` needs.
    begin: B -> memory; () if there is none.
    step: (acting parameters, carry, observation of [B, ...], first [B]) -> logits [B, outputs + free], carry.
    unroll: (parameters, carry, observation of [T, B, ...], first [T, B]) -> logits [T, B, outputs + free]
        and values [T, B], float32 (zeros without a critic).
    recurrent: whether there is memory, so that rows must be learned from in time order.
    """

    init: Callable[[Key], Params]
    acting: Callable[[Params], Params]
    begin: Callable[[int], Carry]
    step: Callable[[Params, Carry, Observation, Array], tuple[jax.Array, Carry]]
    unroll: Callable[[Params, Carry, Observation, Array], tuple[jax.Array, jax.Array]]
    recurrent: bool


def actor_critic(
    spec: EnvSpec,
    outputs: int,
    free: int,
    network: NetworkFn | None = None,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    memory: int = 0,
    shared: bool = False,
    critic: bool = True,
    free_init: float = 0.0,
) -> ActorCritic:
    """A policy head of `outputs` numbers, `free` learned constants appended to it, and a value.

    network: space -> torso; None takes `torso(space, hidden, activation)`. memory: size of a GRU after
    the torso, 0 for none. shared: one torso for both, else the value has its own (and its own memory,
    which then travels in the carry). critic: False leaves the value out. Where the environment shows
    the critic more than the policy, the value's torso gets the space and the observation
    {"critic": ..., "policy": ...}; that needs shared=False, else ShoalError.
    """
    if critic and shared and spec.critic is not None:
        raise ShoalError(
            f"{spec.id} shows the critic more than the policy, so they can't share a torso; set shared=False"
        )
    build: NetworkFn = network or (lambda space: torso(space, hidden, activation))
    if memory:
        build = recurrent(build, memory)
    policy_net = build(spec.observation)
    policy_width = value_width = width_of(policy_net, spec.observation)
    value_net = None  # the value's own torso, if it has one
    if critic and not shared:
        value_space = spec.observation
        if spec.critic is not None:
            value_space = Dict.of({"policy": spec.observation, "critic": spec.critic})
        value_net = build(value_space)
        value_width = width_of(value_net, value_space)
    remembers = {"policy": has_memory(policy_net), "value": value_net is not None and has_memory(value_net)}

    def init(key: Key) -> Params:
        own = fold(key, np.arange(3))
        policy_noise, value_noise = noise(own[0], (policy_width, outputs), (value_width, 1))
        policy: Params = {"head": dense_init(policy_noise, 0.01)}
        if free:
            policy["free"] = jnp.full(free, free_init, jnp.float32)
        body = {"torso": policy_net.init(own[1])}
        params = body | {"policy": policy} if shared else {"policy": body | policy}
        if critic:
            params["value"] = {"head": dense_init(value_noise, 1.0)}
            if value_net is not None:
                params["value"]["torso"] = value_net.init(own[2])
        return params

    def acting(params: Params) -> Params:
        part = {"torso": params["torso"]} if shared else {}
        part["policy"] = params["policy"]
        if remembers["value"]:
            part["value"] = {"torso": params["value"]["torso"]}
        return part

    def begin(size: int) -> Carry:
        carry = {}
        if remembers["policy"]:
            carry["policy"] = policy_net.begin(size)
        if value_net is not None and remembers["value"]:
            carry["value"] = value_net.begin(size)
        return carry or ()

    def memory_of(carry: Carry, role: str) -> Carry:
        return carry[role] if remembers[role] else ()

    def logits(params: Params, y: jax.Array) -> jax.Array:
        head = dense(params["policy"]["head"], y)
        if not free:
            return head
        constants = jnp.broadcast_to(params["policy"]["free"], (*y.shape[:-1], free))
        return jnp.concatenate([head, constants], axis=-1)

    def torso_of(params: Params) -> Params:
        return params["torso"] if shared else params["policy"]["torso"]

    def seen(obs: Observation) -> Any:
        return obs.policy if spec.critic is None else {"critic": obs.critic, "policy": obs.policy}

    def step(params: Params, carry: Carry, obs: Observation, first: Array) -> tuple[jax.Array, Carry]:
        y, after = policy_net.step(torso_of(params), memory_of(carry, "policy"), obs.policy, first)
        new = {"policy": after} if remembers["policy"] else {}
        if value_net is not None and remembers["value"]:
            _, new["value"] = value_net.step(params["value"]["torso"], carry["value"], seen(obs), first)
        return logits(params, y), new or ()

    def unroll(params: Params, carry: Carry, obs: Observation, first: Array) -> tuple[jax.Array, jax.Array]:
        y, _ = policy_net.unroll(torso_of(params), memory_of(carry, "policy"), obs.policy, first)
        if not critic:
            return logits(params, y), jnp.zeros(first.shape, jnp.float32)
        v = y
        if value_net is not None:
            v, _ = value_net.unroll(params["value"]["torso"], memory_of(carry, "value"), seen(obs), first)
        return logits(params, y), dense(params["value"]["head"], v)[..., 0]

    return ActorCritic(
        # Compiled as a whole: one operation at a time, drawing the noise compiles for seconds.
        init=jax.jit(init),
        acting=acting,
        begin=begin,
        step=step,
        unroll=unroll,
        recurrent=any(remembers.values()),
    )


def has_memory(network: Network | ActorCritic) -> bool:
    """Whether it carries anything from row to row."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: network.begin(1))))
