"""SAC: soft actor-critic with a learned temperature (Haarnoja et al. 2018b, arXiv:1812.05905).

fragments -> replay -> minibatches -> r + gamma (min Q_target(s', a') - alpha log pi(a'|s')) -> critics' step
          -> alpha log pi(a|s) - min Q(s, a) -> actor's step, and the temperature's towards the target entropy
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shoal.checks import at_least, between, typed
from shoal.counters import add, as_float
from shoal.critics import critics_for, least, minibatch_rows, polyak, without_memory
from shoal.keys import fold, normal, uniform
from shoal.networks import NetworkFn, actor_critic
from shoal.sgd import Sums, count_steps, gradient_of, learner, mean_gradient, new_state, over_all_rows
from shoal.squashed import bounded, mode, reparameterized
from shoal.types import (
    Acting,
    Action,
    Agent,
    Array,
    Batch,
    Carry,
    Draws,
    EnvSpec,
    Extras,
    Gradient,
    Key,
    Observation,
    Params,
    Replay,
    State,
)


@dataclass(frozen=True, kw_only=True)
class SAC:
    """Hyper-parameters of SAC. Steps are environment steps unless said otherwise."""

    learning_rate: float = 3e-4
    """Adam's step size. Raising it learns faster, until the critics diverge."""
    critic_learning_rate: float | None = None
    """Likewise for the critics; None: learning_rate."""
    temperature_learning_rate: float | None = None
    """Likewise for the temperature; None: learning_rate. 0 keeps it as it begins."""
    rollout_length: int = 8
    """Rows each environment acts between updates. Raising it runs faster and acts on older parameters."""
    capacity: int = 1_000_000
    """Rows the replay keeps. Raising it forgets less and takes more memory, and holds older experience."""
    batch_size: int = 256
    """Transitions per gradient step. Raising it makes steps less noisy and dearer."""
    train_every: int = 1
    """Environment steps for every `gradient_steps`. Raising it learns less from a step, and runs faster."""
    gradient_steps: int = 1
    """Gradient steps for every `train_every`. Raising it learns more from each step, until it overfits."""
    learning_starts: int = 1_000
    """Environment steps of uniformly random actions before learning. Raising it begins more varied."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, and values are slower to settle."""
    n_step: int = 1
    """Rewards summed before the bootstrap. Raising it spreads rewards faster, of an older policy's making."""
    tau: float = 0.005
    """How far the target critics move towards the critics in each gradient step. Lowering it is steadier."""
    critics: int = 2
    """Critics whose minimum counts. Raising it is more pessimistic and dearer; 1 overestimates."""
    initial_temperature: float = 1.0
    """Alpha, the weight of the entropy, at first. Raising it explores more, for longer."""
    target_entropy: float | None = None
    """The entropy that alpha is adapted to, in nats, of actions in [-1, 1]; None: minus their number."""
    max_grad_norm: float | None = None
    """A larger gradient of actor, critics or temperature is scaled down to this norm; None never clips."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers (an image alone has its CNN's instead)."""
    activation: Literal["tanh", "relu", "silu", "gelu"] = "relu"
    """The hidden layers' activation."""
    network: NetworkFn | None = None
    """A function from observation space to Network, in place of the built-in layers (Python only)."""

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 1, "rollout_length", "capacity", "batch_size", "train_every", "gradient_steps")
        at_least(self, 1, "n_step", "critics")
        at_least(self, 0, "learning_starts", "temperature_learning_rate")
        between(self, 0, 1, "discount", "tau")
        at_least(self, 0, "learning_rate", "critic_learning_rate", "tau", "max_grad_norm", strictly=True)
        at_least(self, 0, "initial_temperature", strictly=True)

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of SAC for these spaces. Raises ShoalError for actions not in a bounded Box."""
        cfg, actions = self, bounded(spec.action, "SAC")
        nets = {"network": cfg.network, "hidden": cfg.hidden, "activation": cfg.activation}
        actor = actor_critic(spec, 2 * actions.size, 0, critic=False, **nets)
        critics = critics_for(spec, actions.size, cfg.critics, **nets)
        without_memory(actor)
        target_entropy = -float(actions.size) if cfg.target_entropy is None else cfg.target_entropy
        optimizer = optax.scale_by_adam()
        or_else = lambda rate: cfg.learning_rate if rate is None else rate  # noqa: E731
        rates = {
            "actor": cfg.learning_rate,
            "critic": or_else(cfg.critic_learning_rate),
            "log_temperature": or_else(cfg.temperature_learning_rate),
        }

        def init(key: Key) -> State:
            own = fold(key, np.arange(2))
            critic = critics.init(own[1])
            params = {
                "actor": actor.init(own[0]),
                "critic": critic,
                "log_temperature": jnp.float32(math.log(cfg.initial_temperature)),
            }
            return new_state(params, optimizer, {"sac_target": jax.tree.map(jnp.copy, critic)})

        def logits_of(params: Params, obs: Observation) -> jax.Array:
            rows = jax.tree.leaves(obs)[0].shape[0]
            return actor.step(params, (), obs, jnp.zeros(rows, bool))[0]

        def policy(state: State) -> Params:
            warm = as_float(state.env_steps) < cfg.learning_starts
            return {"params": actor.acting(state.params["actor"]), "warm": warm}

        def act(
            params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
        ) -> tuple[Action, Carry, Extras]:
            logits, carry = actor.step(params["params"], carry, obs, first)
            key = jnp.asarray(acting.key)
            drawn = reparameterized(logits, normal(key, actions.size))[0]
            anything = 2.0 * uniform(key, actions.size) - 1.0
            raw = jnp.where(acting.explore, jnp.where(params["warm"], anything, drawn), mode(logits))
            return actions.to_env(raw), carry, {"raw_action": raw}

        def batches(state: State, draws: Draws, key: Key) -> Batch:
            return Batch(minibatch_rows(draws.minibatches, cfg.discount, key, 2), None, draws.count)

        def loss(params: Params, rows: Any, target: Params) -> Sums:
            fixed, weight = jax.lax.stop_gradient(params), rows["weight"]
            alpha = jnp.exp(fixed["log_temperature"])

            following, next_log_prob = reparameterized(
                logits_of(fixed["actor"], rows["next_obs"]), rows["noise"][0]
            )
            after = least(critics.values(target, rows["next_obs"], following)) - alpha * next_log_prob
            goal = rows["reward"] + rows["onward"] * after  # equation 6 with the value of equation 3
            values = critics.values(params["critic"], rows["obs"], rows["action"])
            error = sum(jnp.square(q - goal) for q in values)

            action, log_prob = reparameterized(logits_of(params["actor"], rows["obs"]), rows["noise"][1])
            q = least(critics.values(fixed["critic"], rows["obs"], action))
            actor_loss = alpha * log_prob - q  # equation 9
            surplus = jax.lax.stop_gradient(log_prob) + target_entropy
            temperature_loss = -params["log_temperature"] * surplus  # equation 17, in the logarithm

            metrics = {
                "loss/critic": error / cfg.critics,
                "loss/actor": actor_loss,
                "policy/entropy": -log_prob,
                "policy/temperature": jnp.broadcast_to(alpha, weight.shape),
                "value/q": values[0],
                "value/target": goal,
            }
            return over_all_rows(0.5 * error + actor_loss + temperature_loss, metrics, weight)

        def grads(state: State, rows: Any, key: Key) -> Gradient:
            del key  # the noise is part of the rows, so that halves of a minibatch add up to the whole
            return gradient_of(lambda p, r: loss(p, r, state.extra["sac_target"]), state.params, rows)

        def apply(state: State, gradient: Gradient) -> State:
            parts, weight = gradient.sum.items(), gradient.weight
            mean = {name: mean_gradient(part, weight, cfg.max_grad_norm) for name, part in parts}
            direction: Any
            direction, opt = optimizer.update(mean, state.opt)
            params = {
                name: jax.tree.map(lambda p, d, rate=rates[name]: p - rate * d, part, direction[name])
                for name, part in state.params.items()
            }
            target = polyak(state.extra["sac_target"], params["critic"], cfg.tau)
            return state._replace(
                params=params,
                opt=opt,
                extra={**state.extra, "sac_target": target},
                updates=add(state.updates, 1),
            )

        return Agent(
            plan=Replay(
                rows=cfg.rollout_length,
                capacity=cfg.capacity,
                batch_size=cfg.batch_size,
                train_every=cfg.train_every,
                gradient_steps=cfg.gradient_steps,
                learning_starts=cfg.learning_starts,
                n_step=cfg.n_step,
            ),
            init=init,
            policy=policy,
            begin=actor.begin,
            act=act,
            batches=batches,
            grads=grads,
            apply=apply,
            observe=count_steps,
            learn=learner(batches, grads, apply),
        )
