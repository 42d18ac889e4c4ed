"""Agent -> Agent: what can be put around any algorithm without its knowing.

    agent = PPO().bind(spec)
    agent = normalize_observations(scale_rewards(agent, discount=0.99), spec)      # in either order

Both keep running statistics in `State.extra`. They are frozen while a fragment is acted on and learned
from, and take in the fragment afterwards, in `observe`, from the whole [T, B] batch in one computation:
so they do not depend on how many workers made the batch. (VecNormalize of Stable-Baselines3 changes them
at each step, so that the rows of one fragment are normalised in T different ways.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import counters
from shoal.errors import ShoalError
from shoal.sgd import learner
from shoal.spaces import Box, Dict, Space, Tuple
from shoal.types import (
    Acting,
    Action,
    Agent,
    Array,
    Batch,
    Carry,
    Counter,
    Draws,
    EnvSpec,
    Extras,
    Key,
    Observation,
    Params,
    Replay,
    Sequences,
    State,
    Trajectory,
    Transitions,
)

_EPSILON = 1e-8  # added to variances, as VecNormalize does


class Moments(NamedTuple):
    """Running mean and variance of arrays of one shape [...], exact enough for 10^9 of them and more.

    seen: how many values. mean, m2: float32 [...], the mean and the sum of squared differences from it.
    mean_low, m2_low: what rounding these lost so far: after 10^9 values one more changes neither, but many
    together must. scale: float32 [...], 1 / standard deviation; 1 where nothing has varied yet. It is kept,
    not recomputed: two compiled programs may round a root differently, and `act` and `learn` must agree.
    """

    seen: Counter
    mean: Array
    m2: Array
    mean_low: Array
    m2_low: Array
    scale: Array

    @staticmethod
    def zero(shape: tuple[int, ...]) -> Moments:
        """Of no values yet."""
        zeros = [jnp.zeros(shape, jnp.float32) for _ in range(4)]  # four buffers, so that all can be donated
        return Moments(counters.zero(), *zeros, scale=jnp.ones(shape, jnp.float32))

    def merge(self, values: Array, weight: Array | None = None) -> Moments:
        """With the values [T, B, ...] taken in, those of weight 0 (float32 [T, B], 0 or 1) left out.

        Chan, Golub and LeVeque 1983 ("Algorithms for computing the sample variance", eq. 2.1): no sum of
        squares, so nothing is lost where the mean is large against the deviation.
        """
        values = jnp.asarray(values, jnp.float32)
        trailing = values.ndim - 2
        if weight is None:
            weight = jnp.ones(values.shape[:2], jnp.float32)
        number = weight.astype(jnp.int32).sum()
        many = jnp.maximum(number, 1).astype(jnp.float32)
        counts = weight.reshape(weight.shape + (1,) * trailing) > 0

        shift = values[0, 0]  # constant values then have a variance of exactly 0
        mean = shift + jnp.where(counts, values - shift, 0.0).sum(0).sum(0) / many
        m2 = jnp.where(counts, jnp.square(values - mean), 0.0).sum(0).sum(0)

        before, here = counters.as_float(self.seen), number.astype(jnp.float32)
        share = here / jnp.maximum(before + here, 1.0)
        delta = (mean - self.mean) - self.mean_low
        new_mean, mean_low = _add(self.mean, self.mean_low, delta * share)
        new_m2, m2_low = _add(self.m2, self.m2_low, m2 + jnp.square(delta) * (before * share))
        seen = counters.add(self.seen, number)
        variance = new_m2 / jnp.maximum(counters.as_float(seen), 1.0)
        scale = jnp.where(variance > 0, 1.0 / jnp.sqrt(variance + _EPSILON), 1.0)
        return Moments(seen, new_mean, new_m2, mean_low, m2_low, scale)


def _add(total: Array, low: Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(total, low) + term, where low is the part that total cannot hold (Knuth's TwoSum, renormalised)."""
    total, low = jnp.asarray(total), jnp.asarray(low)
    new = total + term
    kept = new - total
    lost = (total - (new - kept)) + (term - kept) + low
    result = new + lost
    return result, lost - (result - new)


def normalize_observations(agent: Agent, spec: EnvSpec, clip: float = 10.0) -> Agent:
    """Show the agent observations of mean 0 and standard deviation 1 (running), clipped to +-clip.

    Only leaves from a Box of real numbers are touched, of `obs.policy` and `obs.critic`; integers, images of
    bytes and masks pass as they are. A fragment is learned from with the very numbers that acted (what a
    replay stored is normalised anew, each time it is drawn); each of its observations (rows 0 to T - 1,
    those after a reset included) then counts once. Before the first fragment observations pass unchanged.
    A feature that never changed is shown as it is, less its mean.

    Acting parameters become {"agent": ..., "observation_stats": ...}; `State.extra["observation_stats"]`
    holds `Moments` for each leaf, by role. Raises ShoalError where clip is not positive.
    """
    if not clip > 0:
        raise ShoalError(f"clip must be positive, not {clip}")
    roles = {"policy": spec.observation} | ({"critic": spec.critic} if spec.critic is not None else {})

    def init(key: Key) -> State:
        state = agent.init(key)
        stats = {role: _for_real_leaves(space, Moments.zero) for role, space in roles.items()}
        return state._replace(extra={**state.extra, "observation_stats": stats})

    def frozen(state: State) -> dict[str, Any]:
        return jax.tree.map(
            lambda m: {"mean": m.mean, "scale": m.scale, "clip": _limit(m.seen, clip)},
            state.extra["observation_stats"],
            is_leaf=lambda x: isinstance(x, Moments),
        )

    def policy(state: State) -> Params:
        return {"agent": agent.policy(state), "observation_stats": frozen(state)}

    def act(
        params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
    ) -> tuple[Action, Carry, Extras]:
        return agent.act(params["agent"], carry, _normalized(obs, params["observation_stats"]), first, acting)

    def inner(state: State, experience: Any) -> Any:
        stats = frozen(state)
        return _with_observations(experience, lambda obs: _normalized(obs, stats))

    def batches(state: State, experience: Any, key: Key) -> Batch:
        return agent.batches(state, inner(state, experience), key)

    def observe(state: State, trajectory: Trajectory) -> State:
        stats = {
            role: jax.tree.map(
                lambda x, m: None if m is None else m.merge(x[:-1]),
                getattr(trajectory.obs, role),
                state.extra["observation_stats"][role],
            )
            for role in roles
        }
        state = agent.observe(state, inner(state, trajectory))
        return state._replace(extra={**state.extra, "observation_stats": stats})

    first_priority = agent.priority

    def priority(params: Params, trajectory: Trajectory) -> Array:
        assert first_priority is not None
        seen = _normalized(trajectory.obs, params["observation_stats"])
        return first_priority(params["agent"], trajectory._replace(obs=seen))

    parts = {"init": init, "policy": policy, "act": act, "batches": batches, "observe": observe}
    return _rebuilt(agent, **parts, priority=None if first_priority is None else priority)


def scale_rewards(agent: Agent, discount: float, clip: float = 10.0) -> Agent:
    """Show the agent rewards divided by the running standard deviation of the discounted return, and clipped.

    The return that counts is the one so far: R[t] = discount * R[t-1] + reward[t], from each episode's start
    (as VecNormalize has it; its mean is not subtracted, which would change what is optimal). A fragment is
    scaled with statistics that include it, so that also the first one is scaled.

    The return of each environment travels in the carry, (the agent's carry, float32 [B]), and `act` notes it
    for `learn` as extras["running_return"]; `State.extra["reward_stats"]` holds its `Moments`.
    Raises ShoalError where discount is not in [0, 1] or clip is not positive.
    """
    if not 0 <= discount <= 1:
        raise ShoalError(f"discount must be between 0 and 1, not {discount}")
    if not clip > 0:
        raise ShoalError(f"clip must be positive, not {clip}")

    def init(key: Key) -> State:
        state = agent.init(key)
        return state._replace(extra={**state.extra, "reward_stats": Moments.zero(())})

    def begin(size: int) -> Carry:
        return agent.begin(size), jnp.zeros(size, jnp.float32)

    def act(
        params: Params, carry: Carry, obs: Observation, first: Array, acting: Acting
    ) -> tuple[Action, Carry, Extras]:
        carry, before = carry
        so_far = jnp.where(first, 0.0, discount * before + acting.reward)
        action, carry, extras = agent.act(params, carry, obs, first, acting)
        return action, (carry, so_far), {**extras, "running_return": so_far}

    def merged(state: State, trajectory: Trajectory) -> Moments:
        after = discount * trajectory.extras["running_return"] + trajectory.reward
        return state.extra["reward_stats"].merge(after, trajectory.weight)

    def inner(experience: Any, stats: Moments) -> Any:
        scaled = lambda reward: jnp.clip(reward * stats.scale, -clip, clip)  # noqa: E731
        return _with_rewards(experience, scaled)

    def batches(state: State, experience: Any, key: Key) -> Batch:
        stored = isinstance(experience, Draws)  # what a replay gives was taken in when it was stored
        stats = state.extra["reward_stats"] if stored else merged(state, experience)
        return agent.batches(state, inner(experience, stats), key)

    def observe(state: State, trajectory: Trajectory) -> State:
        stats = merged(state, trajectory)  # a second time: the compiler joins it with the one in `batches`
        state = agent.observe(state, inner(trajectory, stats))
        return state._replace(extra={**state.extra, "reward_stats": stats})

    # What acts does not know the scale, so that first priorities would be of other rewards.
    return _rebuilt(agent, init=init, begin=begin, act=act, batches=batches, observe=observe, priority=None)


def _rebuilt(agent: Agent, **parts: Callable[..., Any] | None) -> Agent:
    """The agent with some of its functions replaced, and `learn` derived from the result."""
    new = dataclasses.replace(agent, **parts)
    observe = None if isinstance(agent.plan, Replay) else new.observe
    return dataclasses.replace(new, learn=learner(new.batches, new.grads, new.apply, observe))


def _with_observations(experience: Any, change: Callable[[Observation], Observation]) -> Any:
    """The experience, of whatever kind, with each observation changed."""
    match experience:
        case Draws():
            return experience._replace(minibatches=_with_observations(experience.minibatches, change))
        case Sequences():
            return experience._replace(trajectory=_with_observations(experience.trajectory, change))
        case Transitions():
            return experience._replace(obs=change(experience.obs), next_obs=change(experience.next_obs))
    return experience._replace(obs=change(experience.obs))


def _with_rewards(experience: Any, change: Callable[[Array], Array]) -> Any:
    """The experience with each reward changed, and without the running return that `act` noted beside."""
    match experience:
        case Draws():
            return experience._replace(minibatches=_with_rewards(experience.minibatches, change))
        case Sequences():
            return experience._replace(trajectory=_with_rewards(experience.trajectory, change))
        case Transitions():
            return experience._replace(reward=change(experience.reward))
    extras = {name: x for name, x in experience.extras.items() if name != "running_return"}
    return experience._replace(reward=change(experience.reward), extras=extras, carry=experience.carry[0])


def _for_real_leaves(space: Space, make: Callable[[tuple[int, ...]], Any]) -> Any:
    """A tree like the space's observations: make(shape) for boxes of real numbers, None for the rest."""
    match space:
        case Tuple():
            return tuple(_for_real_leaves(s, make) for s in space.spaces)
        case Dict():
            return {name: _for_real_leaves(s, make) for name, s in space.spaces}
        case Box() if np.issubdtype(np.dtype(space.dtype), np.floating):
            return make(space.shape)
    return None


def _limit(seen: Counter, clip: float) -> jax.Array:
    """clip once there are statistics; before, nothing is clipped."""
    return jnp.where((seen.low == 0) & (seen.high == 0), jnp.float32(math.inf), jnp.float32(clip))


def _normalized(obs: Observation, frozen: dict[str, Any]) -> Observation:
    """The observation [..., shape] with its real leaves normalised."""

    def leaf(x: Array, stats: dict[str, Array] | None) -> Array:
        if stats is None:
            return x
        return jnp.clip((x - stats["mean"]) * stats["scale"], -stats["clip"], stats["clip"])

    # `x` comes first: its tree is the prefix, so that None stands for "leave it" and not for an empty tree.
    return obs._replace(
        **{role: jax.tree.map(leaf, getattr(obs, role), stats) for role, stats in frozen.items()}
    )
