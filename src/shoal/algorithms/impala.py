"""IMPALA: actor-critic on somewhat old data, corrected by V-trace (Espeholt et al. 2018, arXiv:1802.01561).

whole fragments -> pi(action | obs), V(obs) as they are now -> V-trace -> policy gradient + value step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import optax

from shoal.actor import actor_for, stochastic
from shoal.checks import at_least, between, typed
from shoal.counters import as_float
from shoal.networks import NetworkFn
from shoal.returns import explained_variance, vtrace
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
class IMPALA:
    """Hyper-parameters of IMPALA. Steps are environment steps unless said otherwise."""

    learning_rate: float = 1e-3
    """Adam's step size. Raising it learns faster, until updates overshoot and the return collapses."""
    anneal_steps: int | None = None
    """The learning rate falls linearly to 0 over this many environment steps; None keeps it constant."""
    rollout_length: int = 32
    """Rows each environment contributes to an update. Raising it gives better advantages, rarer updates."""
    epochs: int = 1
    """Passes over each update's data. Raising it learns more per step; V-trace makes up for the drift."""
    minibatches: int = 1
    """Minibatches per epoch, of whole fragments. Raising it takes more, noisier steps; must divide them."""
    staleness: int = 4
    """Updates the acting policy may lag behind on a cluster. Raising it waits less, for older data."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, with more variance."""
    gae_lambda: float = 1.0
    """Lambda of V-trace; 1 is the paper's n-step target. Lowering it trusts the value more, returns less."""
    rho_bar: float = 1.0
    """Cut of the ratio that weighs each step; at least c_bar. Raising it is less biased, more variable."""
    c_bar: float = 1.0
    """Cut of the ratio that passes later errors back. Raising it is faster, with more variance."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus. Raising it keeps the policy exploring longer."""
    value_coefficient: float = 0.5
    """Weight of the squared value error beside the policy loss."""
    max_grad_norm: float | None = 40.0
    """Gradients with a larger global norm are scaled down to it; None never clips."""
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
        at_least(self, 1, "rollout_length", "epochs", "minibatches", "anneal_steps")
        at_least(self, 0, "entropy_coefficient", "value_coefficient", "memory", "staleness")
        between(self, 0, 1, "discount", "gae_lambda")
        at_least(self, 0, "initial_std", "learning_rate", "max_grad_norm", strictly=True)
        at_least(self, 0, "rho_bar", "c_bar", strictly=True)
        at_least(self, self.c_bar, "rho_bar")  # section 4.1

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of IMPALA for these spaces. Raises ShoalError for a space it cannot act in."""
        cfg = self
        network, distribution = actor_for(spec, cfg)
        optimizer = optax.scale_by_adam(eps=1e-5)

        def init(key: Key) -> State:
            return new_state(network.init(key), optimizer, {})

        def batches(state: State, experience: Trajectory, key: Key) -> Batch:
            del state
            exp = experience
            fragment = {
                "obs": exp.obs,
                "first": exp.first,
                "raw_action": exp.extras["raw_action"],
                "log_prob": exp.extras["log_prob"],
                "reward": exp.reward,
                "terminated": exp.terminated,
            }
            rows, count = as_rows(fragment, exp.carry, whole=True)
            return Batch(rows, minibatches(key, count, cfg.epochs, cfg.minibatches))

        def loss(params: Any, minibatch: Any) -> Sums:
            steps, carry = as_sequences(minibatch, whole=True)
            # One row more than there are actions: the last observation's value is the bootstrap.
            logits, values = network.unroll(params, carry, steps["obs"], steps["first"])
            logits, value = logits[:-1], values[:-1]
            mask = None if steps["obs"].mask is None else steps["obs"].mask[:-1]
            weight = 1.0 - steps["first"][1:].astype(jnp.float32)
            log_prob = distribution.log_prob(logits, mask, steps["raw_action"])
            log_prob = jnp.where(weight > 0, log_prob, 0.0)
            log_ratio = jnp.where(weight > 0, log_prob - steps["log_prob"], 0.0)
            advantage, target = vtrace(
                steps["reward"],
                steps["terminated"],
                steps["first"],
                values,
                log_ratio,
                cfg.discount,
                cfg.gae_lambda,
                cfg.rho_bar,
                cfg.c_bar,
            )
            policy = -log_prob * advantage  # the advantage holds rho already (section 4.2)
            error = jnp.square(value - target)
            entropy = distribution.entropy(logits, mask)
            total = policy + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy
            ratio = jnp.exp(log_ratio)
            metrics = {
                "loss/policy": policy,
                "loss/value": error,
                "policy/entropy": entropy,
                "policy/kl": (ratio - 1) - log_ratio,  # from the acting policy, as in PPO
                "policy/rho": jnp.minimum(ratio, cfg.rho_bar),
                "value/explained_variance": explained_variance(value, target, weight),
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
            plan=OnPolicy(
                rows=cfg.rollout_length,
                staleness=cfg.staleness,
                minibatches=cfg.minibatches,
                sequences=True,  # V-trace needs every row that follows
            ),
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
