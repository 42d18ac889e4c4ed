"""A2C: advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, run synchronously).

short fragments -> V(obs) -> advantages -> one gradient step on the policy gradient and the value error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from shoal.actor import actor_for, stochastic
from shoal.checks import at_least, between, typed
from shoal.counters import as_float
from shoal.networks import NetworkFn
from shoal.returns import explained_variance, gae, normalized
from shoal.sequences import as_rows, as_sequences
from shoal.sgd import (
    Sums,
    count_steps,
    descend,
    gradient_of,
    learner,
    linear_decay,
    mean_gradient,
    minibatches,
    new_state,
    over_all_rows,
)
from shoal.types import Agent, Batch, EnvSpec, Gradient, Key, OnPolicy, State, Trajectory


@dataclass(frozen=True, kw_only=True)
class A2C:
    """Hyper-parameters of A2C. Steps are environment steps unless said otherwise."""

    learning_rate: float = 7e-4
    """RMSprop's step size. Raising it learns faster, until updates overshoot and the return collapses."""
    anneal_steps: int | None = None
    """The learning rate falls linearly to 0 over this many environment steps; None keeps it constant."""
    rollout_length: int = 8
    """Rows each environment contributes to an update. Raising it gives better advantages, rarer updates."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, with more variance."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is the n-step advantage of the paper."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus. Raising it keeps the policy exploring longer."""
    value_coefficient: float = 0.5
    """Weight of the squared value error beside the policy loss."""
    max_grad_norm: float | None = 0.5
    """Gradients with a larger global norm are scaled down to it; None never clips."""
    normalize_advantages: bool = False
    """Shift and scale each update's advantages to mean 0 and deviation 1."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (an image alone has its CNN's instead)."""
    activation: Literal["tanh", "relu", "silu", "gelu"] = "tanh"
    """The hidden layers' activation."""
    initial_std: float = 0.6
    """Standard deviation that continuous actions begin with, in half widths of their range. It is learned."""
    memory: int = 0
    """Units of a GRU memory between the hidden layers and the heads; 0 has no memory."""
    shared: bool = False
    """Policy and value share hidden layers: cheaper for images; separate ones learn small tasks better."""
    network: NetworkFn | None = None
    """A function from observation space to Network, in place of the built-in layers (Python only)."""

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 1, "rollout_length", "anneal_steps")
        at_least(self, 0, "entropy_coefficient", "value_coefficient", "memory")
        between(self, 0, 1, "discount", "gae_lambda")
        at_least(self, 0, "initial_std", "learning_rate", "max_grad_norm", strictly=True)

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of A2C for these spaces. Raises ShoalError for a space it cannot act in."""
        cfg = self
        network, distribution = actor_for(spec, cfg)
        optimizer = optax.scale_by_rms(decay=0.99, eps=1e-5, eps_in_sqrt=False)

        def init(key: Key) -> State:
            return new_state(network.init(key), optimizer, {})

        def batches(state: State, experience: Trajectory, key: Key) -> Batch:
            exp = experience
            _, value = network.unroll(state.params, exp.carry, exp.obs, exp.first)
            advantage, target = gae(
                exp.reward, exp.terminated, exp.first, value, cfg.discount, cfg.gae_lambda
            )
            steps = {
                "obs": jax.tree.map(lambda x: x[:-1], exp.obs),
                "first": exp.first[:-1],
                "raw_action": exp.extras["raw_action"],
                "advantage": normalized(advantage, exp.weight) if cfg.normalize_advantages else advantage,
                "target": target,
                "weight": exp.weight,
            }
            rows, count = as_rows(steps, exp.carry, whole=network.recurrent)
            return Batch(rows, minibatches(key, count, epochs=1, count=1))

        def loss(params: Any, minibatch: Any) -> Sums:
            steps, carry = as_sequences(minibatch, whole=network.recurrent)
            logits, value = network.unroll(params, carry, steps["obs"], steps["first"])
            mask, weight = steps["obs"].mask, steps["weight"]
            log_prob = distribution.log_prob(logits, mask, steps["raw_action"])
            policy = -jnp.where(weight > 0, log_prob, 0.0) * steps["advantage"]
            error = jnp.square(value - steps["target"])
            entropy = distribution.entropy(logits, mask)
            total = policy + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy
            metrics = {
                "loss/policy": policy,
                "loss/value": error,
                "policy/entropy": entropy,
                "value/explained_variance": explained_variance(value, steps["target"], weight),
            }
            return over_all_rows(total, metrics, weight)

        def grads(state: State, minibatch: Any, key: Key) -> Gradient:
            del key
            return gradient_of(loss, state.params, minibatch)

        def apply(state: State, gradient: Gradient) -> State:
            mean = mean_gradient(gradient.sum, gradient.weight, cfg.max_grad_norm)
            rate = linear_decay(cfg.learning_rate, cfg.anneal_steps, as_float(state.env_steps))
            return descend(state, mean, optimizer, rate)

        return Agent(
            plan=OnPolicy(rows=cfg.rollout_length),
            init=init,
            policy=lambda state: network.acting(state.params),
            begin=network.begin,
            act=stochastic(network, distribution),
            batches=batches,
            grads=grads,
            apply=apply,
            observe=count_steps,
            learn=learner(batches, grads, apply, count_steps),
        )


def A3C(**changes: Any) -> A2C:
    """A2C with the settings of Mnih et al. 2016, section 8, to be run asynchronously, on a ParameterServer;
    `changes` are A2C's fields.

    Five steps of each environment make a gradient; policy and value share their layers; the optimizer's
    statistics are shared by all workers, as the paper found best. The paper draws the learning rate for each
    game and lets it fall to 0: set learning_rate and anneal_steps.
    """
    return A2C(**{"rollout_length": 5, "shared": True, "max_grad_norm": 40.0, **changes})
