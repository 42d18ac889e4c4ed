"""Environments written in JAX, in groups: the vectorised, auto-resetting core and the host group around it.

    vectorize(env, B).step(vstate, action [B, ...]) -> (vstate, Step)        pure, for jit and scan

The Compiled executor puts `vectorize` into its own program; `JaxGroup` jits it alone, so that a host loop
steps the very same environments. Keys: each environment of a group has one, fold(group key, number); each
episode fold(environment key, episode); a reset draws from fold(episode key, 0), step t from
fold(episode key, t + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.errors import ShoalError
from shoal.keys import Key, fold, key_for
from shoal.memo import remembered
from shoal.types import EnvSpec, JaxEnv, Observation, Step

VState = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class VectorEnv:
    """B copies of a JaxEnv as two pure functions.

    start(group_key uint32 [2]) -> (vstate, Step): the first rows. step(vstate, action [B, ...]) -> (vstate,
    Step): environments whose episode has ended are reset, their action ignored, their reward 0.
    vstate: {"env": state pytree [B, ...], "obs": Observation, "reward": float32 [B], "terminated": bool [B],
    "first": bool [B], "done": bool [B], "episode": uint32 [B], "t": uint32 [B], "keys": uint32 [B, 2]}.
    """

    size: int
    start: Callable[[Key], tuple[VState, Step]]
    step: Callable[[VState, Any], tuple[VState, Step]]


class _Outcome(NamedTuple):
    """What a reset or a step of one environment gives, with the same types."""

    env: Any
    obs: Observation
    reward: Any
    terminated: Any
    done: Any


def vectorize(env: JaxEnv, size: int) -> VectorEnv:
    """`size` copies of `env` that step together. Every array keeps the dtype that `env.reset` gave it.
    Of equal frozen dataclasses it is the same object, so that what uses it is compiled once."""
    return (_once if _is_frozen(env) else _vectorized)(env, size)


def _is_frozen(env: Any) -> bool:
    settings = getattr(type(env), "__dataclass_params__", None)
    return bool(settings and settings.frozen) and (not isinstance(env, TimeLimited) or _is_frozen(env.env))


def _vectorized(env: JaxEnv, size: int) -> VectorEnv:
    like = jax.eval_shape(env.reset, jax.ShapeDtypeStruct((2,), np.uint32))

    def reset(key: Key) -> _Outcome:
        state, obs = _cast(env.reset(key), like, env)
        return _Outcome(state, obs, jnp.float32(0.0), jnp.bool_(False), jnp.bool_(False))

    def advance(state: Any, action: Any, key: Key) -> _Outcome:
        state, obs, reward, terminated, truncated = env.step(state, action, key)
        state, obs = _cast((state, obs), like, env)
        terminated = jnp.asarray(terminated, bool)
        return _Outcome(state, obs, jnp.asarray(reward, jnp.float32), terminated, terminated | truncated)

    def rows(out: _Outcome, first: Any, episode: Any, t: Any, keys: Any) -> tuple[VState, Step]:
        vstate = {**out._asdict(), "first": first, "episode": episode, "t": t, "keys": keys}
        return vstate, shown(vstate)

    def start(group_key: Key) -> tuple[VState, Step]:
        keys = fold(jnp.asarray(group_key), jnp.arange(size, dtype=jnp.uint32))
        zeros = jnp.zeros(size, jnp.uint32)
        out = jax.vmap(reset)(fold(keys, zeros, 0))
        return rows(out, jnp.ones(size, bool), zeros, zeros, keys)

    def step(vstate: VState, action: Any) -> tuple[VState, Step]:
        first, keys = vstate["done"], vstate["keys"]
        episode = vstate["episode"] + first.astype(jnp.uint32)
        episode_keys = fold(keys, episode)
        stepped = jax.vmap(advance)(vstate["env"], action, fold(episode_keys, vstate["t"] + jnp.uint32(1)))
        fresh = jax.vmap(reset)(fold(episode_keys, 0))
        out = jax.tree.map(lambda new, old: _where(first, new, old), fresh, stepped)
        t = jnp.where(first, jnp.uint32(0), vstate["t"] + jnp.uint32(1))
        return rows(out, first, episode, t, keys)

    return VectorEnv(size=size, start=start, step=step)


_once = remembered(_vectorized)


def shown(vstate: VState) -> Step:
    """The present row of a vectorised state."""
    return Step(vstate["obs"], vstate["reward"], vstate["terminated"], vstate["first"])


def _where(rows: Any, new: Any, old: Any) -> Any:
    return jnp.where(rows.reshape(rows.shape + (1,) * (new.ndim - 1)), new, old)


def _cast(tree: Any, like: Any, env: JaxEnv) -> Any:
    """`tree` with the dtypes of `like`, and no weak types."""
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ShoalError(
            f"{env.spec.id}: `step` gives another structure of state or observation than `reset`"
        )
    return jax.tree.map(lambda x, s: jax.lax.convert_element_type(x, s.dtype), tree, like)


@dataclass(frozen=True)
class TimeLimited:
    """A JaxEnv cut after so many steps (truncation)."""

    env: JaxEnv
    steps: int

    @property
    def spec(self) -> EnvSpec:
        """The environment's own, with the shorter of the two limits."""
        own = self.env.spec.max_episode_steps
        return replace(self.env.spec, max_episode_steps=self.steps if own is None else min(own, self.steps))

    def reset(self, key: Key) -> tuple[Any, Observation]:
        """A new episode of the environment, at step 0."""
        state, obs = self.env.reset(key)
        return (state, jnp.int32(0)), obs

    def step(self, state: Any, action: Any, key: Key) -> tuple[Any, Observation, Any, Any, Any]:
        """One step of the environment; truncated also where the limit is reached."""
        inner, t = state
        inner, obs, reward, terminated, truncated = self.env.step(inner, action, key)
        return (inner, t + 1), obs, reward, terminated, truncated | (t + 1 >= self.steps)


@remembered
def _jitted(vector: VectorEnv) -> tuple[Callable[[Key], VState], Callable[[VState, Any], VState]]:
    """`start` and `step` without the row: it is part of the state, and giving it back twice would copy it."""
    return (
        jax.jit(lambda key: vector.start(key)[0]),
        jax.jit(lambda vstate, action: vector.step(vstate, action)[0]),
    )


class JaxGroup:
    """B copies of a JaxEnv as a `types.Group` on the host: `vectorize`, jitted. Steps hold NumPy arrays."""

    def __init__(self, env: JaxEnv, seed: int, group: int, size: int) -> None:
        self.size = size
        self.lost = 0  # a JAX environment's state is saved whole: none is ever lost
        self._id = env.spec.id
        self._key = key_for(seed, "env", group)
        self._start, self._step = _jitted(vectorize(env, size))
        self._vstate: VState | None = None
        self._row: Step | None = None

    def current(self) -> Step:
        """The present row; resets the environments if none has begun."""
        row = self._row
        if row is None:
            row = self._row = jax.device_get(shown(self._begun()))
        return row

    def step(self, action: Any) -> Step:
        """One row on."""
        vstate = self._vstate = self._step(self._begun(), action)
        row = self._row = jax.device_get(shown(vstate))
        return row

    def _begun(self) -> VState:
        vstate = self._vstate
        if vstate is None:
            vstate = self._vstate = self._start(self._key)
        return vstate

    def info(self) -> Mapping[str, float]:
        """Nothing: JAX environments report no `info`."""
        return {}

    def save(self) -> dict[str, np.ndarray]:
        """The vectorised state: {path in the pytree: array}."""
        return {path: np.array(leaf) for path, leaf in _paths(self._begun())}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from `save`. Raises ShoalError naming the first array that does not fit."""
        like = jax.eval_shape(self._start, self._key)
        wanted = dict(_paths(like))
        for path in sorted(wanted.keys() | saved.keys()):
            has = f"{saved[path].dtype}{list(saved[path].shape)}" if path in saved else "absent"
            needs = f"{wanted[path].dtype}{list(wanted[path].shape)}" if path in wanted else "absent"
            if has != needs:
                raise ShoalError(
                    f"the saved state of {self._id} does not fit: {path} is {has}, should be {needs}"
                )
        leaves = [jnp.asarray(saved[path]) for path in wanted]
        self._vstate = jax.tree.unflatten(jax.tree.structure(like), leaves)
        self._row = None

    def close(self) -> None:
        """Nothing to close."""


def _paths(tree: Any) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]
