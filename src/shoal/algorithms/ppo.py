"""PPO: proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347).

fragments -> V(obs) -> GAE advantages -> epochs of shuffled minibatches -> clipped policy step + value step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
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
class PPO:
    """Hyper-parameters of PPO. Steps are environment steps unless said otherwise."""

    learning_rate: float = 3e-4
    """Adam's step size. Raising it learns faster, until updates overshoot and the return collapses."""
    anneal_steps: int | None = None
    """The learning rate falls linearly to 0 over this many environment steps; None keeps it constant."""
    rollout_length: int = 128
    """Rows each environment contributes to an update. Raising it gives better advantages, rarer updates."""
    epochs: int = 10
    """Passes over each update's data. Raising it learns more per step, and drifts from the data's policy."""
    minibatches: int = 4
    """Minibatches per epoch. Raising it gives more, noisier gradient steps; must divide the rows."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, with more variance."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation. Raising it trusts returns more, the value less."""
    clip: float = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut: bigger takes bigger steps."""
    value_clip: float | None = None
    """Likewise for the value, in reward units; None (off) is better in most studies."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus. Raising it keeps the policy exploring longer."""
    value_coefficient: float = 0.5
    """Weight of the squared value error beside the policy loss."""
    max_grad_norm: float | None = 0.5
    """Gradients with a larger global norm are scaled down to it; None never clips."""
    normalize_advantages: bool = True
    """Shift and scale each update's advantages to mean 0 and deviation 1."""
    target_kl: float | None = None
    """An update stops once the mean KL from the acting policy exceeds 1.5 times this; None: never."""
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
        at_least(self, 1, "rollout_length", "epochs", "minibatches")
        at_least(self, 0, "entropy_coefficient", "value_coefficient", "memory")
        between(self, 0, 1, "discount", "gae_lambda")
        at_least(
            self,
            0,
            "initial_std",
            "learning_rate",
            "clip",
            "value_clip",
            "max_grad_norm",
            "target_kl",
            strictly=True,
        )
        at_least(self, 1, "anneal_steps")

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of PPO for these spaces. Raises ShoalError for a space it cannot act in."""
        cfg = self
        network, distribution = actor_for(spec, cfg)
        optimizer = optax.scale_by_adam(eps=1e-5)
        extra = {} if cfg.target_kl is None else {"ppo_stopped": np.zeros((), bool)}

        def init(key: Key) -> State:
            return new_state(network.init(key), optimizer, extra)

        def batches(state: State, experience: Trajectory, key: Key) -> Batch:
            exp = experience
            _, value = network.unroll(state.params, exp.carry, exp.obs, exp.first)
            advantage, target = gae(
                exp.reward, exp.terminated, exp.first, value, cfg.discount, cfg.gae_lambda
            )
            if cfg.normalize_advantages:
                advantage = normalized(advantage, exp.weight)
            steps = {
                "obs": jax.tree.map(lambda x: x[:-1], exp.obs),
                "first": exp.first[:-1],
                "raw_action": exp.extras["raw_action"],
                "log_prob": exp.extras["log_prob"],
                "value": value[:-1],
                "advantage": advantage,
                "target": target,
                "weight": exp.weight,
            }
            rows, count = as_rows(steps, exp.carry, whole=network.recurrent)
            return Batch(rows, minibatches(key, count, cfg.epochs, cfg.minibatches))

        def loss(params: Any, minibatch: Any) -> Sums:
            steps, carry = as_sequences(minibatch, whole=network.recurrent)
            logits, value = network.unroll(params, carry, steps["obs"], steps["first"])
            mask, weight, advantage = steps["obs"].mask, steps["weight"], steps["advantage"]
            log_prob = distribution.log_prob(logits, mask, steps["raw_action"])
            log_ratio = jnp.where(weight > 0, log_prob - steps["log_prob"], 0.0)
            ratio = jnp.exp(log_ratio)
            surrogate = jnp.minimum(
                ratio * advantage, jnp.clip(ratio, 1 - cfg.clip, 1 + cfg.clip) * advantage
            )  # equation 7
            error = jnp.square(value - steps["target"])
            if cfg.value_clip is not None:
                near = steps["value"] + jnp.clip(value - steps["value"], -cfg.value_clip, cfg.value_clip)
                error = jnp.maximum(error, jnp.square(near - steps["target"]))
            entropy = distribution.entropy(logits, mask)
            total = -surrogate + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy
            metrics = {
                "loss/policy": -surrogate,
                "loss/value": error,
                "policy/entropy": entropy,
                "policy/kl": (ratio - 1) - log_ratio,  # Schulman's k3 estimator: unbiased, never negative
                "policy/clip_fraction": (jnp.abs(ratio - 1) > cfg.clip).astype(jnp.float32),
                "value/explained_variance": explained_variance(steps["value"], steps["target"], weight),
            }
            return over_all_rows(total, metrics, weight)

        def grads(state: State, minibatch: Any, key: Key) -> Gradient:
            del key
            return gradient_of(loss, state.params, minibatch)

        def apply(state: State, gradient: Gradient) -> State:
            mean = mean_gradient(gradient.sum, gradient.weight, cfg.max_grad_norm)
            rate = linear_decay(cfg.learning_rate, cfg.anneal_steps, as_float(state.env_steps))
            after = descend(state, mean, optimizer, rate)
            if cfg.target_kl is None:
                return after
            kl = gradient.metrics["policy/kl"] / jnp.maximum(gradient.weight, 1e-8)
            stopped = state.extra["ppo_stopped"] | (kl > 1.5 * cfg.target_kl)
            kept = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), state, after)
            return kept._replace(extra={**state.extra, "ppo_stopped": stopped})

        def observe(state: State, experience: Trajectory) -> State:
            return count_steps(state._replace(extra={**state.extra, **extra}), experience)

        return Agent(
            plan=OnPolicy(rows=cfg.rollout_length, minibatches=cfg.minibatches, sequences=network.recurrent),
            init=init,
            policy=lambda state: network.acting(state.params),
            begin=network.begin,
            act=stochastic(network, distribution),
            batches=batches,
            grads=grads,
            apply=apply,
            observe=observe,
            learn=learner(batches, grads, apply, observe),
        )
