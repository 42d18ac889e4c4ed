"""TD3: twin delayed deterministic policy gradients (Fujimoto et al. 2018, arXiv:1802.09477), and DDPG.

fragments -> replay -> minibatches -> r + gamma min Q_target(s', pi_target(s') + noise) -> critics' step
          -> every `policy_delay` steps: -Q(s, pi(s)) -> actor's step, targets follow
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shoal.checks import at_least, between, typed
from shoal.counters import add, as_float, zero
from shoal.critics import critics_for, least, minibatch_rows, polyak, without_memory
from shoal.keys import fold, normal, uniform
from shoal.networks import NetworkFn, actor_critic
from shoal.sgd import count_steps, gradient_of, learner, mean_gradient, over_all_rows
from shoal.squashed import bounded
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
class TD3:
    """Hyper-parameters of TD3. Steps are environment steps unless said otherwise."""

    learning_rate: float = 3e-4
    """Adam's step size. Raising it learns faster, until the critics diverge."""
    critic_learning_rate: float | None = None
    """Likewise for the critics; None: learning_rate."""
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
    """How far the targets move towards their networks at each step of the actor. Lowering it is steadier."""
    critics: int = 2
    """Critics whose minimum counts. Raising it is more pessimistic and dearer; 1 overestimates."""
    policy_delay: int = 2
    """Gradient steps of the critics for each of the actor. Raising it waits for better critics."""
    exploration_noise: float = 0.1
    """Deviation of the noise on actions, in half widths of their range. Raising it explores more."""
    target_noise: float = 0.2
    """Likewise for the target's actions. Raising it smooths the critics more."""
    target_noise_clip: float = 0.5
    """How large that noise may be. Raising it lets it reach actions that are less alike."""
    max_grad_norm: float | None = None
    """Gradients of the actor or the critics with a larger norm are scaled down to it; None never clips."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers (an image alone has its CNN's instead)."""
    activation: Literal["tanh", "relu", "silu", "gelu"] = "relu"
    """The hidden layers' activation."""
    network: NetworkFn | None = None
    """A function from observation space to Network, in place of the built-in layers (Python only)."""

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 1, "rollout_length", "capacity", "batch_size", "train_every", "gradient_steps")
        at_least(self, 1, "n_step", "critics", "policy_delay")
        at_least(self, 0, "learning_starts", "exploration_noise", "target_noise", "target_noise_clip")
        between(self, 0, 1, "discount", "tau")
        at_least(self, 0, "learning_rate", "critic_learning_rate", "tau", "max_grad_norm", strictly=True)

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of TD3 for these spaces. Raises ShoalError for actions not in a bounded Box."""
        cfg, actions = self, bounded(spec.action, "TD3")
        nets = {"network": cfg.network, "hidden": cfg.hidden, "activation": cfg.activation}
        actor = actor_critic(spec, actions.size, 0, critic=False, **nets)
        critics = critics_for(spec, actions.size, cfg.critics, **nets)
        without_memory(actor)
        adam = optax.scale_by_adam()
        rates = {"actor": cfg.learning_rate, "critic": cfg.critic_learning_rate or cfg.learning_rate}

        def init(key: Key) -> State:
            own = fold(key, np.arange(2))
            params = {"actor": actor.init(own[0]), "critic": critics.init(own[1])}
            opt = {name: adam.init(part) for name, part in params.items()}
            return State(params, opt, {"td3_target": jax.tree.map(jnp.copy, params)}, zero(), zero())

        def act_of(params: Params, obs: Observation) -> jax.Array:
            rows = jax.tree.leaves(obs)[0].shape[0]
            return jnp.tanh(actor.step(params, (), obs, jnp.zeros(rows, bool))[0])

        def policy(state: State) -> Params:
            warm = as_float(state.env_steps) < cfg.learning_starts
            return {"params": actor.acting(state.params["actor"]), "warm": warm}

        def act(
            params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
        ) -> tuple[Action, Carry, Extras]:
            best, key = act_of(params["params"], obs), jnp.asarray(acting.key)
            near = jnp.clip(best + cfg.exploration_noise * normal(key, actions.size), -1.0, 1.0)
            anything = 2.0 * uniform(key, actions.size) - 1.0
            raw = jnp.where(acting.explore, jnp.where(params["warm"], anything, near), best)
            return actions.to_env(raw), carry, {"raw_action": raw}

        def batches(state: State, draws: Draws, key: Key) -> Batch:
            rows = minibatch_rows(draws.minibatches, cfg.discount, key, 1)
            # The actor climbs the critics where they have just learned (algorithm 1): the minibatch before.
            before = lambda x: jnp.concatenate([x[:1], x[:-1]])  # noqa: E731
            total = jnp.asarray(rows["weight"]).sum(1, keepdims=True)
            # Its rows weigh as much in all as those of the critics, by whose weight both sums are divided.
            weight = before(rows["weight"]) * (total / jnp.maximum(before(total), 1e-8))
            climbed = {"obs": jax.tree.map(before, rows["obs"]), "weight": weight}
            return Batch({**rows, "climbed": climbed}, None, draws.count)

        def critic_loss(params: Params, rows: Any, target: Params) -> Any:
            noise = jnp.clip(
                cfg.target_noise * rows["noise"][0], -cfg.target_noise_clip, cfg.target_noise_clip
            )
            following = jnp.clip(act_of(target["actor"], rows["next_obs"]) + noise, -1.0, 1.0)
            after = least(critics.values(target["critic"], rows["next_obs"], following))
            goal = rows["reward"] + rows["onward"] * after
            values = critics.values(params, rows["obs"], rows["action"])
            error, weight = jnp.asarray(sum(jnp.square(q - goal) for q in values)), rows["weight"]
            metrics = {"loss/critic": error / cfg.critics, "value/q": values[0], "value/target": goal}
            return over_all_rows(error, metrics, weight)

        def actor_loss(params: Params, rows: Any, critic: Params) -> jax.Array:
            obs, weight = rows["climbed"]["obs"], rows["climbed"]["weight"]
            first, *_ = critics.values(critic, obs, act_of(params, obs))
            return -(first * weight).sum()

        def due(state: State) -> jax.Array:
            """Whether the actor moves in this step: in the last of every `policy_delay`."""
            return state.updates.low % np.uint32(cfg.policy_delay) == np.uint32(cfg.policy_delay - 1)

        def critics_and(actor: Callable[..., Any], state: State, rows: Any) -> Gradient:
            """The gradient, of which `actor` gives (the loss to show, its part)."""
            target, params = state.extra["td3_target"], state.params
            critic = gradient_of(lambda p, r: critic_loss(p, r, target), params["critic"], rows)
            loss, actor_sum = actor(params["actor"], rows, params["critic"])
            total = {"actor": actor_sum, "critic": critic.sum}
            return Gradient(total, critic.weight, {**critic.metrics, "loss/actor": loss})

        def grads(state: State, rows: Any, key: Key) -> Gradient:
            # With the actor's part always: where gradients are late, nobody knows which step this will be.
            del key  # the noise is part of the rows, so that halves of a minibatch add up to the whole
            return critics_and(jax.value_and_grad(actor_loss), state, rows)

        def grads_in_order(state: State, rows: Any, key: Key) -> Gradient:
            """The same where the next step is the one to be made: the actor's part only if it moves."""
            del key

            def actor(params: Params, rows: Any, critic: Params) -> Any:
                loss, part = jax.lax.cond(
                    due(state),
                    lambda: jax.value_and_grad(actor_loss)(params, rows, critic),
                    lambda: (jnp.float32(0), jax.tree.map(jnp.zeros_like, params)),
                )
                # The loss is known in one step of `policy_delay`: what stands for the others is as much.
                return cfg.policy_delay * loss, part

            return critics_and(actor, state, rows)

        def apply(state: State, gradient: Gradient) -> State:
            parts, weight = gradient.sum.items(), gradient.weight
            mean = {name: mean_gradient(part, weight, cfg.max_grad_norm) for name, part in parts}

            def step(name: str) -> tuple[Params, Any]:
                direction, opt = adam.update(mean[name], state.opt[name])
                return jax.tree.map(lambda p, d: p - rates[name] * d, state.params[name], direction), opt

            critic, critic_opt = step("critic")

            def moved() -> Any:
                actor, opt = step("actor")
                online = {"actor": actor, "critic": critic}
                return actor, opt, polyak(state.extra["td3_target"], online, cfg.tau)

            def kept() -> Any:
                return state.params["actor"], state.opt["actor"], state.extra["td3_target"]

            actor, actor_opt, target = jax.lax.cond(due(state), moved, kept)
            return state._replace(
                params={"actor": actor, "critic": critic},
                opt={"actor": actor_opt, "critic": critic_opt},
                extra={**state.extra, "td3_target": target},
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
            learn=learner(batches, grads_in_order, apply),
        )


def DDPG(**changes: Any) -> TD3:
    """Deep deterministic policy gradients (Lillicrap et al. 2016, arXiv:1509.02971): TD3 without its extras.

    One critic, no delay and no noise in the target; `changes` are TD3's fields. The noise of exploration is
    Gaussian and independent, where the paper's is an Ornstein-Uhlenbeck process, which is no better.
    """
    return TD3(**{"critics": 1, "policy_delay": 1, "target_noise": 0.0, **changes})
