"""APPO: PPO on somewhat old data, steadied by a target policy (Luo et al. 2020, arXiv:1912.00167, "IMPACT").

fragments -> V(obs), pi_target(action | obs) -> V-trace advantages of the target policy
    -> epochs of shuffled minibatches -> policy step, clipped around the target policy, + value step -> target
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
from shoal.returns import explained_variance, normalized, vtrace
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
from shoal.targets import renewed
from shoal.types import Agent, Batch, EnvSpec, Gradient, Key, OnPolicy, State, Trajectory


@dataclass(frozen=True, kw_only=True)
class APPO:
    """Hyper-parameters of APPO. Steps are environment steps unless said otherwise."""

    learning_rate: float = 3e-4
    """Adam's step size. Raising it learns faster, until updates overshoot and the return collapses."""
    anneal_steps: int | None = None
    """The learning rate falls linearly to 0 over this many environment steps; None keeps it constant."""
    rollout_length: int = 64
    """Rows each environment contributes to an update. Raising it gives better advantages, rarer updates."""
    epochs: int = 4
    """Passes over each update's data. Raising it learns more per step, and drifts from the data's policy."""
    minibatches: int = 4
    """Minibatches per epoch. Raising it gives more, noisier gradient steps; must divide the rows."""
    staleness: int = 4
    """Updates the acting policy may lag behind on a cluster. Raising it waits less, for older data."""
    target_every: int = 16
    """Gradient steps between updates of the target policy. Raising it is steadier and slower."""
    target_tau: float = 1.0
    """Share of the policy in such an update: 1 copies it; small ones, with target_every=1, move smoothly."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, with more variance."""
    gae_lambda: float = 0.95
    """Lambda of V-trace, on-policy the one of PPO. Raising it trusts returns more, the value less."""
    rho_bar: float = 1.0
    """Cut of the ratio that weighs each step; at least c_bar. Raising it is less biased, more variable."""
    c_bar: float = 1.0
    """Cut of the ratio that passes later errors back. Raising it is faster, with more variance."""
    clip: float = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut: bigger takes bigger steps."""
    acting_clip: float = 2.0
    """Cut of the acting over the target policy in that ratio. Raising it trusts unlikely actions more."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus. Raising it keeps the policy exploring longer."""
    value_coefficient: float = 0.5
    """Weight of the squared value error beside the policy loss."""
    max_grad_norm: float | None = 0.5
    """Gradients with a larger global norm are scaled down to it; None never clips."""
    normalize_advantages: bool = True
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
        at_least(self, 1, "rollout_length", "epochs", "minibatches", "target_every", "anneal_steps")
        at_least(self, 0, "entropy_coefficient", "value_coefficient", "memory", "staleness")
        between(self, 0, 1, "discount", "gae_lambda", "target_tau")
        at_least(self, 0, "initial_std", "learning_rate", "max_grad_norm", "target_tau", strictly=True)
        at_least(self, 0, "clip", "rho_bar", "c_bar", strictly=True)
        at_least(self, 1, "acting_clip")
        at_least(self, self.c_bar, "rho_bar")

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of APPO for these spaces. Raises ShoalError for a space it cannot act in."""
        cfg = self
        network, distribution = actor_for(spec, cfg)
        optimizer = optax.scale_by_adam(eps=1e-5)

        def init(key: Key) -> State:
            params = network.init(key)
            return new_state(params, optimizer, {"appo_target": jax.tree.map(jnp.copy, params)})

        def batches(state: State, experience: Trajectory, key: Key) -> Batch:
            exp = experience
            _, value = network.unroll(state.params, exp.carry, exp.obs, exp.first)
            obs, first = jax.tree.map(lambda x: x[:-1], (exp.obs, exp.first))
            raw, acting = exp.extras["raw_action"], exp.extras["log_prob"]
            logits, _ = network.unroll(state.extra["appo_target"], exp.carry, obs, first)
            log_prob = distribution.log_prob(logits, obs.mask, raw)
            log_ratio = jnp.where(exp.weight > 0, log_prob - acting, 0.0)
            advantage, target = vtrace(
                exp.reward,
                exp.terminated,
                exp.first,
                value,
                log_ratio,
                cfg.discount,
                cfg.gae_lambda,
                cfg.rho_bar,
                cfg.c_bar,
            )
            if cfg.normalize_advantages:
                advantage = normalized(advantage, exp.weight)
            steps = {
                "obs": obs,
                "first": first,
                "raw_action": raw,
                # min(acting / target, acting_clip) / acting, of probabilities: pi times this is the ratio.
                "log_scale": jnp.minimum(-log_ratio, np.log(cfg.acting_clip)) - acting,
                "log_target": acting + log_ratio,
                "log_ratio": log_ratio,
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
            real = weight > 0
            ratio = jnp.exp(jnp.where(real, log_prob + steps["log_scale"], 0.0))
            surrogate = jnp.minimum(
                ratio * advantage, jnp.clip(ratio, 1 - cfg.clip, 1 + cfg.clip) * advantage
            )  # section 3.1
            error = jnp.square(value - steps["target"])
            entropy = distribution.entropy(logits, mask)
            total = -surrogate + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy
            moved = jnp.where(real, log_prob - steps["log_target"], 0.0)
            metrics = {
                "loss/policy": -surrogate,
                "loss/value": error,
                "policy/entropy": entropy,
                "policy/kl": (jnp.exp(moved) - 1) - moved,  # from the target policy
                "policy/clip_fraction": (jnp.abs(ratio - 1) > cfg.clip).astype(jnp.float32),
                "policy/rho": jnp.minimum(jnp.exp(steps["log_ratio"]), cfg.rho_bar),
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
            target = state.extra["appo_target"]
            target = renewed(target, after.params, after.updates, cfg.target_every, cfg.target_tau)
            return after._replace(extra={**state.extra, "appo_target": target})

        return Agent(
            plan=OnPolicy(
                rows=cfg.rollout_length,
                staleness=cfg.staleness,
                minibatches=cfg.minibatches,
                sequences=network.recurrent,
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
