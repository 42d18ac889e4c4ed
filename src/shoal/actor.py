"""How a stochastic policy acts: observation -> network -> distribution -> sample and log-probability."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from shoal.distributions import ActionDistribution, distribution_for
from shoal.networks import ActorCritic, NetworkFn, actor_critic
from shoal.types import Acting, Action, Array, Carry, EnvSpec, Extras, Observation, Params


class NetworkSettings(Protocol):
    """The fields by which an algorithm's dataclass describes its networks."""

    @property
    def hidden(self) -> tuple[int, ...]: ...
    @property
    def activation(self) -> str: ...
    @property
    def initial_std(self) -> float: ...
    @property
    def memory(self) -> int: ...
    @property
    def shared(self) -> bool: ...
    @property
    def network(self) -> NetworkFn | None: ...


def actor_for(
    spec: EnvSpec, settings: NetworkSettings, *, critic: bool = True
) -> tuple[ActorCritic, ActionDistribution]:
    """The network and the action distribution for these spaces. Raises ShoalError where there is none."""
    distribution = distribution_for(spec.action)
    network = actor_critic(
        spec,
        distribution.outputs,
        distribution.free,
        settings.network,
        hidden=settings.hidden,
        activation=settings.activation,
        memory=settings.memory,
        shared=settings.shared,
        critic=critic,
        free_init=math.log(settings.initial_std),
    )
    return network, distribution


def stochastic(
    network: ActorCritic, distribution: ActionDistribution
) -> Callable[[Params, Carry, Observation, Array, Acting], tuple[Action, Carry, Extras]]:
    """`act` of an Agent whose policy gives a distribution.

    extras: "raw_action" (as the distribution knows it, before offsets, scaling and clipping) and
    "log_prob" float32 [B], both of the action that was taken.
    """

    def act(
        params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
    ) -> tuple[Action, Carry, Extras]:
        logits, carry = network.step(params, carry, obs, first)
        sampled = distribution.sample(acting.key, logits, obs.mask)
        best = distribution.mode(logits, obs.mask)
        raw = jax.tree.map(lambda s, b: jnp.where(acting.explore, s, b), sampled, best)
        log_prob = distribution.log_prob(logits, obs.mask, raw)
        return distribution.to_env(raw), carry, {"raw_action": raw, "log_prob": log_prob}

    return act
