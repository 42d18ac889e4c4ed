"""A trained policy alone: what inference needs and no more. It acts, saves and loads by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shoal import checkpoint, spaces
from shoal.errors import ShoalError
from shoal.execution.unroll import act_row
from shoal.keys import key_for
from shoal.rundir import newest
from shoal.types import Agent, Carry, EnvSpec, Observation, Params


class Policy:
    """Maps observations to actions, with the preprocessing and the memory that training used.

    Observations are given as the environment gives them (an action mask within the dict, or as `mask=`);
    actions come back as the environment takes them.
    """

    def __init__(
        self, agent: Agent, params: Params, spec: EnvSpec, config: Mapping[str, Any], seed: int = 0
    ) -> None:
        self.spec = spec
        self.params = params
        self.config = dict(config)
        self._begin = agent.begin
        self._one = jax.eval_shape(lambda: agent.begin(1))  # the memory of one row
        self._act = jax.jit(act_row(agent))
        self._key = key_for(seed, "inference")
        self._calls = 0
        self._memory: Carry | None = None

    def compute_single_action(
        self, obs: Any, *, explore: bool = False, first: bool = False, mask: Any = None
    ) -> Any:
        """The action for one observation: the most likely one, or a sample where `explore`.

        The policy's memory, if it has one, runs on from call to call; first=True begins a new episode.
        """
        observation = to_observation(self.spec, obs, mask, ())
        rows = jax.tree.map(lambda x: x[None], observation)
        fresh = first or self._memory is None
        action, self._memory = self._compute(rows, self._memory, np.asarray([fresh]), explore, 1)
        return jax.tree.map(lambda x: x[0], action)

    def compute_actions(
        self,
        obs: Any,
        *,
        memory: Carry | None = None,
        first: Any = None,
        explore: bool = False,
        mask: Any = None,
    ) -> tuple[Any, Carry]:
        """Actions for a batch of observations [B, ...], and the memory after it, to be passed in again.

        memory=None begins anew; first: bool [B], the rows in which an episode begins.
        """
        observation = to_observation(self.spec, obs, mask, None)
        size = len(jax.tree.leaves(observation.policy)[0])
        begins = np.full(size, memory is None) if first is None else np.asarray(first, bool)
        if begins.shape != (size,):
            raise ShoalError(f"first has a flag for each of {size} observations, got shape {begins.shape}")
        if memory is not None:
            self._check_memory(memory, size)
        return self._compute(observation, memory, begins, explore, size)

    def _check_memory(self, memory: Carry, size: int) -> None:
        wanted, form = jax.tree.flatten(self._one)
        leaves, given = jax.tree.flatten(memory)
        if given != form or [np.shape(x) for x in leaves] != [(size, *x.shape[1:]) for x in wanted]:
            raise ShoalError(
                f"memory is what compute_actions gave before, here for {size} observations; None begins anew"
            )

    def _compute(
        self, obs: Observation, memory: Carry | None, first: np.ndarray, explore: bool, size: int
    ) -> tuple[Any, Carry]:
        carry = self._begin(size) if memory is None else memory
        index, reward = np.arange(size, dtype=np.int32), np.zeros(size, np.float32)
        number = np.uint32(self._calls % 2**32)
        self._calls += 1
        action, carry, _ = self._act(
            self.params, carry, obs, first, reward, self._key, number, index, np.bool_(explore)
        )
        return jax.tree.map(np.asarray, action), carry

    def save(self, path: str | Path) -> Path:
        """Save as a folder that `Policy.load` reads: the acting parameters and how to build the policy."""
        checkpoint.save(path, {"policies": {"main": self.params}}, {"kind": "policy", "config": self.config})
        return Path(path)

    @staticmethod
    def load(
        path: str | Path, *, algorithm: Any = None, trust_imports: bool = False, best: bool = False
    ) -> Policy:
        """A policy saved by `Policy.save`, or the acting part of a training checkpoint, or of a run
        directory's last one (or its best one).

        algorithm: must be given again where it held functions of yours (`network=`), its settings as they
        were.
        """
        from shoal.config import agent_of, algorithm_to_json, check_settings, spec_from_json

        loaded = newest(path, best=best)
        config = loaded.info["config"]
        if algorithm is not None:
            check_settings(algorithm_to_json(algorithm), config["algorithm"])
        spec = spec_from_json(config["spec"])
        agent = agent_of(config, spec, algorithm=algorithm, trust_imports=trust_imports)
        state = jax.eval_shape(agent.init, key_for(0, "init"))
        if loaded.info.get("kind") == "policy":
            params = checkpoint.restore(jax.eval_shape(agent.policy, state), loaded.arrays, "policies/main")
        else:
            params = agent.policy(checkpoint.restore(state, loaded.arrays, "policies/main"))
        return Policy(agent, jax.device_put(params), spec, config, int(config["seed"]))


def to_observation(spec: EnvSpec, obs: Any, mask: Any, batch: tuple[int, ...] | None) -> Observation:
    """An environment's own observation by role, cast and checked against the spec: [*batch, ...], where None
    is a batch of as many as there are.

    Raises ShoalError where a part is missing or has another shape, where numbers are none that the space
    can hold, and where a mask is missing or not called for.
    """
    if isinstance(obs, tuple) and not isinstance(spec.observation, spaces.Tuple):
        raise ShoalError(f"an observation of {spec.id} is no tuple: take the first of what reset gives")
    if mask is not None and not spec.masked:
        raise ShoalError(f"{spec.id} has no action masks: the policy was trained without, and ignores them")
    policy, critic = obs, None
    if isinstance(obs, Mapping):
        rest = {k: v for k, v in obs.items() if not (spec.masked and k == "action_mask")}
        mask = obs.get("action_mask", mask) if spec.masked else mask
        policy = rest
        if spec.critic is not None or not isinstance(spec.observation, spaces.Dict):
            critic = rest.get("critic")
            policy = rest["policy"] if "policy" in rest else next(iter(rest.values()))
    if batch is None:
        batch = (_size(spec.observation, policy, spec.id),)
    if spec.critic is not None:
        # The critic is not asked at inference: what it would see may be absent.
        missing = spaces.zeros(spec.critic, batch)
        critic = missing if critic is None else _cast(spec.critic, critic, batch, spec.id)
    if spec.masked:
        if mask is None:
            raise ShoalError(
                f"{spec.id} says which actions are allowed: give that too, where the environment has it, as "
                "mask=info['action_mask'] or as the observation's key 'action_mask'"
            )
        mask = _flat_mask(spec.action, mask, batch)
    return Observation(_cast(spec.observation, policy, batch, spec.id), critic, mask if spec.masked else None)


def _array(given: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ShoalError(f"{what} is an array, or lists of one shape: {error}") from None


def _size(space: spaces.Space, obs: Any, name: str) -> int:
    """How many observations a batch [B, ...] of them has: what its first part says, or a ShoalError."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        key, part = space.spaces[0] if isinstance(space, spaces.Dict) else (0, space.spaces[0])
        try:
            return _size(part, obs[key], name)
        except (KeyError, IndexError, TypeError):
            raise ShoalError(f"a batch of observations of {name} needs {key!r}, a batch of it") from None
    shape = _array(obs, f"an observation of {name}").shape
    if not shape or not shape[0]:
        raise ShoalError(f"a batch of observations of {name} has one or more of {space}, got {obs!r}")
    return shape[0]


def _cast(space: spaces.Space, obs: Any, batch: tuple[int, ...], name: str) -> Any:
    if isinstance(space, spaces.Dict):
        missing = [k for k, _ in space.spaces if not isinstance(obs, Mapping) or k not in obs]
        if missing:
            raise ShoalError(
                f"an observation of {name} needs the keys {[k for k, _ in space.spaces]}; {missing} missing"
            )
        return {k: _cast(s, obs[k], batch, name) for k, s in space.spaces}
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise ShoalError(f"an observation of {name} has a tuple of {len(space.spaces)} parts here")
        return tuple(_cast(s, o, batch, name) for s, o in zip(space.spaces, obs, strict=True))
    like = spaces.zeros(space, batch)
    array = _array(obs, f"an observation of {name}")
    if array.shape != like.shape:
        raise ShoalError(f"an observation of {name} has shape {like.shape}, got {array.shape}")
    if np.issubdtype(like.dtype, np.floating):
        if array.dtype.kind not in "biuf":
            raise ShoalError(f"an observation of {name} is of numbers, got {array.dtype}")
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused as that
            array = array.astype(like.dtype)
        if not np.isfinite(array).all():
            odd = array[~np.isfinite(array)].flat[0]
            raise ShoalError(f"an observation of {name} holds {odd}, which no policy was trained with")
        return array
    if array.dtype.kind not in "biu":
        raise ShoalError(
            f"an observation of {name} is of whole numbers ({like.dtype}) here, got {array.dtype}: give it "
            "as the environment does, not scaled"
        )
    cast = array.astype(like.dtype)
    beyond = cast != array
    if not isinstance(space, spaces.Box):
        beyond = beyond | spaces.beyond(space, cast)
    if beyond.any():
        raise ShoalError(f"an observation of {name} is {array[beyond].flat[0]}, which is not in {space}")
    return cast


def _flat_mask(space: spaces.Space, mask: Any, batch: tuple[int, ...]) -> np.ndarray:
    """Gymnasium's forms of a mask as `types.Observation` has it: bool [*batch, choices]."""
    binary = isinstance(space, spaces.MultiBinary)
    if isinstance(space, spaces.MultiDiscrete) and isinstance(mask, tuple | list):
        parts = [_array(part, "an action mask") for part in mask]
        if [part.shape for part in parts] == [(*batch, n) for n in space.nvec]:
            mask = np.concatenate(parts, axis=-1)
    given = _array(mask, "an action mask")
    wanted = (*batch, *space.shape) if binary else (*batch, sum(spaces.choices(space)))
    if given.size != math.prod(wanted) or given.shape[: len(batch)] != batch:
        raise ShoalError(f"an action mask here has shape {wanted}, got {given.shape}")
    flags = (0, 1, 2) if binary else (0, 1)
    if not np.isin(given, flags).all():
        raise ShoalError(f"an action mask here is of {flags}, got {given[~np.isin(given, flags)].flat[0]}")
    flat = given.reshape(*batch, -1)
    if binary:  # 0: must not be set, 1: must be, 2: free
        return np.stack([flat != 1, flat != 0], axis=-1).reshape(*batch, -1)
    return flat != 0
