"""Q(observation, action) for continuous actions: several critics of one form, and their target copies.

    observation ++ action -> MLP -> Q               (images first through a CNN)
    network=(observation) ++ action -> MLP -> Q     (a network of the user's)

Each critic has a torso of its own. They are entries of a dict and not one stacked array: a matrix product of
two matrices runs faster on the CPU than a batch of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.errors import ShoalError
from shoal.keys import fold, normal
from shoal.layers import Network, NetworkFn, dense, dense_init, feedforward, noise
from shoal.networks import ActorCritic, has_memory, torso, width_of
from shoal.spaces import Box, Dict, Space
from shoal.types import Array, EnvSpec, Key, Observation, Params
from shoal.value_targets import n_step_sums


@dataclass(frozen=True, kw_only=True)
class Critics:
    """init: key -> {"critic_0": {"torso", "head"}, ...}. values: (params, observation [N, ...], raw action
    [N, d] in [-1, 1]) -> a list of float32 [N], one for each critic."""

    init: Callable[[Key], Params]
    values: Callable[[Params, Observation, Array], list[jax.Array]]


def critics_for(
    spec: EnvSpec,
    actions: int,
    count: int,
    network: NetworkFn | None,
    *,
    hidden: Sequence[int],
    activation: str,
) -> Critics:
    """`count` critics of raw actions [N, actions].

    They see what the policy sees and, where the environment shows the critic more, that too: a `network` is
    then built for the space {"critic": ..., "policy": ...}. Raises ShoalError for a network with memory.
    """
    space = spec.observation
    if spec.critic is not None:
        space = Dict.of({"critic": spec.critic, "policy": spec.observation})
    body = _joined(space, actions, network, hidden, activation)
    names = [f"critic_{i}" for i in range(count)]

    def one(key: Key) -> Params:
        own = fold(key, np.arange(2))
        head = dense_init(noise(own[0], (hidden[-1], 1))[0], 1.0)
        return {"torso": body.init(own[1]), "head": head}

    def init(key: Key) -> Params:
        return {name: one(fold(key, i)) for i, name in enumerate(names)}

    def values(params: Params, obs: Observation, action: Array) -> list[jax.Array]:
        seen = obs.policy if spec.critic is None else {"critic": obs.critic, "policy": obs.policy}
        x = {"action": action, "observation": seen}
        first = jnp.zeros(action.shape[0], jnp.bool_)
        outputs = []
        for name in names:
            y, _ = body.step(params[name]["torso"], (), x, first)
            outputs.append(dense(params[name]["head"], y)[..., 0])
        return outputs

    return Critics(init=jax.jit(init), values=values)


def _joined(
    space: Space, actions: int, network: NetworkFn | None, hidden: Sequence[int], activation: str
) -> Network:
    """A torso of {"action", "observation"}."""

    def joint(observation: Space) -> Network:
        inputs = {"action": Box((actions,), -1.0, 1.0), "observation": observation}
        return torso(Dict.of(inputs), hidden, activation)

    if not hidden:
        raise ShoalError("a critic needs at least one hidden layer to join observation and action")
    if network is None:
        return joint(space)
    own = network(space)
    rest = joint(Box((width_of(own, space),)))
    without_memory(own)

    def init(key: Key) -> Params:
        keys = fold(key, np.arange(2))
        return {"network": own.init(keys[0]), "joint": rest.init(keys[1])}

    def apply(params: Params, x: Any) -> jax.Array:
        first = jnp.zeros(x["action"].shape[0], jnp.bool_)
        y, _ = own.step(params["network"], (), x["observation"], first)
        return rest.step(params["joint"], (), {"action": x["action"], "observation": y}, first)[0]

    return feedforward(init, apply)


def without_memory(network: Network | ActorCritic) -> None:
    """Raises ShoalError for a network with memory: a transition does not say what came before it."""
    if has_memory(network):
        raise ShoalError("single transitions are learned from here, so network= must have no memory; use PPO")


def polyak(target: Params, online: Params, tau: float) -> Params:
    """(1 - tau) * target + tau * online, leaf by leaf."""
    return jax.tree.map(lambda t, x: t + tau * (x - t), target, online)


def least(values: list[jax.Array]) -> jax.Array:
    """The smallest of several critics' values, row by row."""
    return reduce(jnp.minimum, values)


def minibatch_rows(drawn: Any, discount: float, key: Key, noises: int) -> dict[str, Any]:
    """K minibatches of `Transitions` as rows [K, N, ...] to learn from.

    Rewards are summed up to what follows them, whose value is to be multiplied by "onward". "noise" is a
    tuple of standard normal arrays [K, N, d]: drawn here, so that a row keeps its own wherever it is learned
    from, and the gradients of parts of a minibatch add up to that of the whole.
    """
    reward, onward = n_step_sums(drawn.reward, drawn.steps, drawn.terminated, discount)
    action = jnp.asarray(drawn.action)
    noise = normal(key, noises * action.size).reshape(noises, *action.shape)
    return {
        "obs": drawn.obs,
        "next_obs": drawn.next_obs,
        "action": action,
        "reward": reward,
        "onward": onward,
        "noise": tuple(noise),
        "weight": drawn.weight,
    }
