"""DQN: deep Q-networks (Mnih et al. 2015, "Human-level control through deep reinforcement learning").

fragments -> replay -> minibatches -> r + gamma max_a Q_target(next obs, a) -> Huber step of Q -> target copy

Each later part is a field of one dataclass: double, dueling, n-step, prioritised, distributional, noisy, and
memory learned from stored sequences. Papers' choices of them are in dqn_presets.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shoal.algorithms.dqn_rows import (
    rows_of_sequences,
    rows_of_transitions,
    see_sequences,
    see_transitions,
)
from shoal.checks import at_least, between, typed
from shoal.choices import masked_argmax, of_action
from shoal.counters import as_float
from shoal.errors import ShoalError
from shoal.keys import fold, uniform
from shoal.networks import NetworkFn
from shoal.sgd import (
    Sums,
    count_steps,
    descend,
    gradient_of,
    learner,
    linear_decay,
    mean_gradient,
    new_state,
)
from shoal.spaces import Box, Discrete
from shoal.targets import renewed
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
    Trajectory,
)
from shoal.value_distributions import ValueDistribution, categorical, expected_value, quantiles
from shoal.value_networks import q_network
from shoal.value_targets import importance_weights, n_step_ahead


@dataclass(frozen=True, kw_only=True)
class DQN:
    """Hyper-parameters of DQN and its descendants. Steps are environment steps unless said otherwise."""

    learning_rate: float = 5e-4
    """Adam's step size. Raising it learns faster, until the values diverge or forget."""
    anneal_steps: int | None = None
    """The learning rate falls linearly to 0 over this many environment steps; None keeps it constant."""
    rollout_length: int = 16
    """Rows each environment acts between updates. Raising it runs faster and acts on older parameters."""
    capacity: int = 100_000
    """Rows the replay keeps. Raising it forgets less and takes more memory, and holds older experience."""
    batch_size: int = 64
    """Transitions (or sequences) per gradient step. Raising it makes steps less noisy and dearer."""
    train_every: int = 4
    """Environment steps for every `gradient_steps`. Raising it learns less from a step, and runs faster."""
    gradient_steps: int = 1
    """Gradient steps for every `train_every`. Raising it learns more from each step, until it overfits."""
    learning_starts: int = 1_000
    """Environment steps before the first gradient step. Raising it begins with more varied experience."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, and values are slower to settle."""
    n_step: int = 1
    """Rewards summed before the bootstrap. Raising it spreads rewards faster, of an older policy's making."""
    target_every: int = 250
    """Gradient steps between updates of the target network. Raising it is steadier and slower."""
    target_tau: float = 1.0
    """Share of the network in such an update: 1 copies it; small ones, with target_every=1, move smoothly."""
    double: bool = False
    """The network chooses the next action, its target values it: less overestimation (van Hasselt 2016)."""
    dueling: bool = False
    """A value and advantages, each with a hidden layer of its own, add up to Q (Wang et al. 2016)."""
    noisy: bool = False
    """Learned noise on the head's weights explores; set both epsilons to 0 with it (Fortunato 2018)."""
    noisy_std: float = 0.5
    """The noise that `noisy` begins with. Raising it explores more at first."""
    distributional: Literal["none", "categorical", "quantile"] = "none"
    """Learn the return's distribution: C51's histogram (Bellemare 2017) or its quantiles (Dabney 2018)."""
    atoms: int = 51
    """Bars of the histogram, or how many quantiles. Raising it is finer and dearer."""
    v_min: float = -10.0
    """The histogram's lowest return; must lie below those that occur. Lowering it is coarser."""
    v_max: float = 10.0
    """The histogram's highest return; must lie above those that occur. Raising it is coarser."""
    prioritized: bool = False
    """Draw transitions with large errors more often (Schaul et al. 2016)."""
    priority_exponent: float = 0.6
    """Alpha: 0 draws evenly, 1 in proportion to the error. Raising it repeats surprises more."""
    importance_exponent: float = 0.4
    """Beta: how far rare draws are weighted up to make good for it. Raising it is less biased, slower."""
    importance_steps: int | None = 100_000
    """Beta rises linearly to 1 over this many environment steps; None keeps it constant."""
    epsilon_start: float = 1.0
    """Chance of a random action at first. Raising it explores more."""
    epsilon_end: float = 0.05
    """Chance of a random action in the end. Raising it keeps exploring, and acts worse."""
    epsilon_steps: int = 10_000
    """Environment steps over which epsilon falls linearly. Raising it explores longer."""
    epsilon_spread: float = 0.0
    """Alpha of Ape-X: environments have epsilon^(1 + alpha u), u in [0, 1). Raising it makes more greedy."""
    staleness: int = 0
    """Updates the acting policy may lag behind on a cluster. Raising it waits less, for an older policy."""
    max_grad_norm: float | None = 10.0
    """Gradients with a larger global norm are scaled down to it; None never clips."""
    adam_epsilon: float = 1e-8
    """Added to Adam's root. Raising it damps the steps of parameters whose gradients are small."""
    huber_delta: float | None = 1.0
    """Larger errors count linearly (kappa, for quantiles); None squares all (for quantiles: none)."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (an image alone has its CNN's instead)."""
    activation: Literal["tanh", "relu", "silu", "gelu"] = "relu"
    """The hidden layers' activation."""
    memory: int = 0
    """Units of a GRU memory between the hidden layers and the head; 0 has no memory."""
    burn_in: int = 20
    """With memory: rows at the start of a sequence that only refresh the stored memory (Kapturowski 2019)."""
    sequence_length: int = 40
    """With memory: rows after these that are learned from, at least rollout_length. Raising it costs time."""
    priority_max_share: float = 0.9
    """With memory: a sequence's priority is this much its largest error, and its mean for the rest."""
    rescale: bool = False
    """Learn small functions of large returns, sign(x) (sqrt(|x| + 1) - 1) + x / 1000 (Pohlen 2018)."""
    network: NetworkFn | None = None
    """A function from observation space to Network, in place of the built-in layers (Python only)."""

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, 1, "rollout_length", "capacity", "batch_size", "train_every", "gradient_steps")
        at_least(self, 1, "n_step", "target_every", "epsilon_steps", "importance_steps", "anneal_steps")
        at_least(self, 1, "sequence_length")
        at_least(self, 2, "atoms")
        at_least(self, 0, "learning_starts", "memory", "burn_in", "priority_exponent", "importance_exponent")
        at_least(self, 0, "epsilon_spread", "staleness")
        between(self, 0, 1, "discount", "target_tau", "epsilon_start", "epsilon_end", "priority_max_share")
        at_least(self, 0, "learning_rate", "adam_epsilon", "noisy_std", "target_tau", strictly=True)
        at_least(self, 0, "max_grad_norm", "huber_delta", strictly=True)
        if self.distributional not in ("none", "categorical", "quantile"):
            given = repr(self.distributional)
            raise ShoalError(f"DQN: distributional must be none, categorical or quantile, got {given}")
        if self.v_min >= self.v_max:
            raise ShoalError(f"DQN: v_min={self.v_min:g} must be less than v_max={self.v_max:g}")

    def bind(self, spec: EnvSpec) -> Agent:
        """The pure functions of DQN for these spaces. Raises ShoalError for actions that are not Discrete."""
        cfg, actions, values = self, _discrete(spec), _values(self)
        network = q_network(
            spec,
            actions.n,
            values.size,
            cfg.network,
            hidden=cfg.hidden,
            activation=cfg.activation,
            memory=cfg.memory,
            dueling=cfg.dueling,
            noisy_std=cfg.noisy_std if cfg.noisy else None,
        )
        if network.recurrent and cfg.rollout_length > cfg.sequence_length:
            raise ShoalError(
                "DQN: sequences begin where fragments do, so that some rows would never be learned from: "
                f"with memory rollout_length={cfg.rollout_length} must be at most "
                f"sequence_length={cfg.sequence_length}"
            )
        if network.recurrent:
            rows_of = partial(
                rows_of_sequences, burn_in=cfg.burn_in, discount=cfg.discount, n_step=cfg.n_step
            )
            look = partial(see_sequences, network, values, double=cfg.double, burn_in=cfg.burn_in)
        else:
            rows_of = partial(rows_of_transitions, discount=cfg.discount)
            look = partial(see_transitions, network, values, double=cfg.double)
        optimizer = optax.scale_by_adam(eps=cfg.adam_epsilon)

        def init(key: Key) -> State:
            params = network.init(key)
            return new_state(params, optimizer, {"dqn_target": jax.tree.map(jnp.copy, params)})

        def epsilon(state: State) -> jax.Array:
            left = linear_decay(1.0, cfg.epsilon_steps, as_float(state.env_steps))
            return jnp.asarray(cfg.epsilon_end + (cfg.epsilon_start - cfg.epsilon_end) * left)

        def act(
            params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
        ) -> tuple[Action, Carry, Extras]:
            noise = jnp.where(acting.explore, network.noise(fold(acting.key, 1)), 0.0)
            outputs, carry = network.step(params["params"], carry, obs, first, noise)
            best = masked_argmax(values.mean(outputs), obs.mask)
            u = uniform(jnp.asarray(acting.key), actions.n + 1)
            anything = masked_argmax(u[..., 1:], obs.mask)
            often = params["epsilon"]
            if cfg.epsilon_spread:
                often = jnp.power(often, 1.0 + cfg.epsilon_spread * spread(acting.index))
            raw = jnp.where(acting.explore & (u[..., 0] < often), anything, best)
            return raw + np.int32(actions.start), carry, {"raw_action": raw}

        def batches(state: State, draws: Draws, key: Key) -> Batch:
            del key
            drawn: Any = draws.minibatches
            rows = rows_of(drawn)
            left = linear_decay(1.0, cfg.importance_steps, as_float(state.env_steps))
            beta = 1.0 - (1.0 - cfg.importance_exponent) * left
            weight = importance_weights(drawn.weight, beta) if cfg.prioritized else jnp.asarray(drawn.weight)
            return Batch({**rows, "importance": weight}, None, draws.count)

        def grads(state: State, rows: Any, key: Key) -> Gradient:
            real = rows["real"]
            weight = rows["importance"].reshape(-1, *(1,) * (real.ndim - 1)) * real

            def loss(params: Params, rows: Any) -> Sums:
                now = look(params, state.extra["dqn_target"], rows, key)
                target = values.target(now.after, rows["reward"], rows["onward"])
                error, surprise = values.error(now.taken, target)
                sums = {
                    "loss/value": (error * weight).sum(),
                    "value/q": (values.mean(now.taken) * real).sum(),
                    "value/target": (values.expected(target) * real).sum(),
                    "value/td_error": (surprise * real).sum(),
                    "policy/epsilon": epsilon(state) * real.sum(),
                }
                return sums["loss/value"], (real.sum(), {**sums, "surprise": surprise})

            gradient = gradient_of(loss, state.params, rows)
            surprise = gradient.metrics["surprise"] * real
            metrics = {name: value for name, value in gradient.metrics.items() if name != "surprise"}
            return gradient._replace(metrics=metrics, priorities=priorities(surprise, real))

        def priorities(surprise: jax.Array, real: jax.Array) -> jax.Array | None:
            if not cfg.prioritized:
                return None
            if network.recurrent:  # Kapturowski et al. 2019, section 2.3
                mean = surprise.sum(axis=1) / jnp.maximum(real.sum(axis=1), 1.0)
                share = cfg.priority_max_share
                surprise = share * surprise.max(axis=1) + (1.0 - share) * mean
            return jnp.power(surprise + 1e-6, cfg.priority_exponent)

        def first_priority(policy: Params, trajectory: Trajectory) -> jax.Array:
            """As `grads` has it, of the n-step transitions that end within the fragment, or with it. The
            acting network, without noise, is its own target network (Horgan et al. 2018, appendix F)."""
            obs, first = trajectory.obs, trajectory.first
            noise = jnp.zeros_like(network.noise(np.zeros(2, np.uint32)))
            outputs, _ = network.unroll(policy["params"], (), obs, first, noise)
            parts = (trajectory.reward, trajectory.terminated, first)
            reward, onward, ahead = n_step_ahead(*parts, cfg.discount, cfg.n_step)
            best = of_action(outputs, masked_argmax(values.mean(outputs), obs.mask))
            after = jnp.take_along_axis(best, ahead[..., None], axis=0)
            taken = of_action(outputs[:-1], jnp.asarray(trajectory.extras["raw_action"]))
            _, surprise = values.error(taken, values.target(after, reward, onward))
            return jnp.power(surprise * trajectory.weight + 1e-6, cfg.priority_exponent)

        def apply(state: State, gradient: Gradient) -> State:
            mean = mean_gradient(gradient.sum, gradient.weight, cfg.max_grad_norm)
            rate = linear_decay(cfg.learning_rate, cfg.anneal_steps, as_float(state.env_steps))
            after = descend(state, mean, optimizer, rate)
            target = state.extra["dqn_target"]
            target = renewed(target, after.params, after.updates, cfg.target_every, cfg.target_tau)
            return after._replace(extra={**state.extra, "dqn_target": target})

        return Agent(
            plan=Replay(
                rows=cfg.rollout_length,
                capacity=cfg.capacity,
                batch_size=cfg.batch_size,
                train_every=cfg.train_every,
                gradient_steps=cfg.gradient_steps,
                learning_starts=cfg.learning_starts,
                n_step=cfg.n_step,
                sequence=cfg.burn_in + cfg.sequence_length if network.recurrent else 0,
                prioritized=cfg.prioritized,
                staleness=cfg.staleness,
            ),
            init=init,
            policy=lambda state: {"params": state.params, "epsilon": epsilon(state)},
            begin=network.begin,
            act=act,
            batches=batches,
            grads=grads,
            apply=apply,
            observe=count_steps,
            learn=learner(batches, grads, apply),
            # A sequence reaches beyond the fragment in which it begins.
            priority=first_priority if cfg.prioritized and not network.recurrent else None,
        )


def spread(index: Array) -> jax.Array:
    """Environments' numbers -> float32 [B] in [0, 1), evenly spread whichever the numbers 0 ... N - 1 are.

    The fractional part of (i + 1/2) / golden ratio, a Weyl sequence, in integers of 32 bits: any N in a row
    leave no gap much wider than 1 / N, so that N need not be known and may change.
    """
    golden = np.uint32(2654435769)  # 2^32 / golden ratio
    word = jnp.asarray(index).astype(jnp.uint32) * golden + golden // np.uint32(2)
    return (word >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)


def _discrete(spec: EnvSpec) -> Discrete:
    if isinstance(spec.action, Discrete):
        return spec.action
    fitting = "SAC, TD3 and PPO take it" if isinstance(spec.action, Box) else "PPO and A2C take it"
    raise ShoalError(
        f"DQN chooses among the actions of one Discrete space, and {spec.id} has a "
        f"{type(spec.action).__name__}; {fitting}"
    )


def _values(cfg: DQN) -> ValueDistribution:
    match cfg.distributional:
        case "none":
            return expected_value(cfg.huber_delta, rescale=cfg.rescale)
        case "categorical":
            return categorical(cfg.atoms, cfg.v_min, cfg.v_max, rescale=cfg.rescale)
        case "quantile":
            return quantiles(cfg.atoms, cfg.huber_delta, rescale=cfg.rescale)
