"""REINFORCE: the Monte Carlo policy gradient (Williams 1992; Sutton and Barto 2018, section 13.3-13.4).

fragments -> returns to the end of the episode -> one gradient step on log pi(a|s) * (return - baseline).

Without a baseline the return of a step counts the rewards to the end of the episode or of the fragment,
whichever comes first: the estimate is the exact gradient of the expected return within a fragment, which
is the episode's where `rollout_length` exceeds its length. With the baseline, V(s) also stands in for the
rewards that a fragment or a time limit cut off.
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
from shoal.returns import discounted_returns
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
class REINFORCE:
    """Hyper-parameters of REINFORCE. Steps are environment steps unless said otherwise."""

    learning_rate: float = 3e-3
    """Adam's step size. Raising it learns faster, until updates overshoot and the return collapses."""
    anneal_steps: int | None = None
    """The learning rate falls linearly to 0 over this many environment steps; None keeps it constant."""
    rollout_length: int = 256
    """Rows that each environment contributes to an update; best longer than an episode."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, with more variance."""
    baseline: bool = True
    """Subtract a learned V(s) from the returns: the same gradient in expectation, with less variance."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus. Raising it keeps the policy exploring longer."""
    value_coefficient: float = 0.5
    """Weight of the baseline's squared error beside the policy loss."""
    max_grad_norm: float | None = None
    """Gradients with a larger global norm are scaled down to it; None never clips."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (an image alone has its CNN's instead); none: a linear policy."""
    activation: Literal["tanh", "relu", "silu", "gelu"] = "tanh"
    """The hidden layers' activation."""
    initial_std: float = 0.6
    """Standard deviation that continuous actions begin with, in half widths of their range. It is learned."""
    memory: int = 0
    """Units of a GRU memory between the hidden layers and the heads; 0 has no memory."""
    shared: bool = False
    """Policy and baseline share their hidden layers."""
    network: NetworkFn | None = None
    """A function from observation space to Network, in place of the built-in layers (Python only)."""

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 1, "rollout_length", "anneal_steps")
        at_least(self, 0, "entropy_coefficient", "value_coefficient", "memory")
        between(self, 0, 1, "discount")
        at_least(self, 0, "initial_std", "learning_rate", "max_grad_norm", strictly=True)

    def bind(self, spec: EnvSpec) -> Agent:
        """REINFORCE for these spaces, as pure functions. Raises ShoalError for a space it cannot act in."""
        cfg = self
        network, distribution = actor_for(spec, cfg, critic=cfg.baseline)
        optimizer = optax.scale_by_adam(eps=1e-5)

        def init(key: Key) -> State:
            return new_state(network.init(key), optimizer, {})

        def batches(state: State, experience: Trajectory, key: Key) -> Batch:
            exp = experience
            # Zeros without a baseline, so that the same lines serve both.
            _, value = network.unroll(state.params, exp.carry, exp.obs, exp.first)
            steps = {
                "obs": jax.tree.map(lambda x: x[:-1], exp.obs),
                "first": exp.first[:-1],
                "raw_action": exp.extras["raw_action"],
                "value": value[:-1],
                "return": discounted_returns(exp.reward, exp.terminated, exp.first, value, cfg.discount),
                "weight": exp.weight,
            }
            rows, count = as_rows(steps, exp.carry, whole=network.recurrent)
            return Batch(rows, minibatches(key, count, epochs=1, count=1))

        def loss(params: Any, minibatch: Any) -> Sums:
            steps, carry = as_sequences(minibatch, whole=network.recurrent)
            logits, value = network.unroll(params, carry, steps["obs"], steps["first"])
            mask, weight = steps["obs"].mask, steps["weight"]
            log_prob = distribution.log_prob(logits, mask, steps["raw_action"])
            policy = -jnp.where(weight > 0, log_prob, 0.0) * (steps["return"] - steps["value"])
            entropy = distribution.entropy(logits, mask)
            total = policy - cfg.entropy_coefficient * entropy
            metrics = {"loss/policy": policy, "policy/entropy": entropy}
            if cfg.baseline:
                metrics["loss/value"] = jnp.square(value - steps["return"])
                total = total + cfg.value_coefficient * metrics["loss/value"]
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
