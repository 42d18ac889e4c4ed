"""From what one Gymnasium environment shows to rows of preallocated arrays, and from rows to its actions.

    observation of environment i  --write-->  Observation arrays [B, ...], row i
    action arrays [B, ...]        --split-->  B actions as the environments want them

Spaces become `shoal.spaces`; dtypes are fixed once: floating boxes are float32, 64-bit integers 32-bit
(JAX has no others by default), Discrete and MultiDiscrete int32, MultiBinary int8, masks bool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces as gym_spaces

from shoal import spaces
from shoal.envs.writing import Write, at, mask_writer, together, writer
from shoal.errors import ShoalError
from shoal.types import Observation

MASK = "action_mask"

_NARROW = {"float64": "float32", "float16": "float32", "int64": "int32", "uint64": "uint32", "bool": "int8"}


def convert_space(space: Any) -> spaces.Space:
    """A Gymnasium space as plain data. Raises ShoalError for Text, Graph, Sequence and OneOf."""
    match space:
        case gym_spaces.Box():
            dtype = _NARROW.get(str(space.dtype), str(space.dtype))
            return spaces.Box(tuple(space.shape), _bound(space.low), _bound(space.high), dtype)
        case gym_spaces.Discrete():
            return spaces.Discrete(int(space.n), int(space.start))
        case gym_spaces.MultiDiscrete():
            if len(space.shape) != 1:
                raise ShoalError(f"a MultiDiscrete space of shape {space.shape} is not supported; flatten it")
            start = tuple(int(s) for s in space.start)
            return spaces.MultiDiscrete(tuple(int(n) for n in space.nvec), start if any(start) else ())
        case gym_spaces.MultiBinary():
            return spaces.MultiBinary(tuple(int(n) for n in space.shape))
        case gym_spaces.Tuple():
            return spaces.Tuple(tuple(convert_space(s) for s in space.spaces))
        case gym_spaces.Dict():
            return spaces.Dict.of({name: convert_space(s) for name, s in space.spaces.items()})
        case _:
            raise ShoalError(
                f"the space {type(space).__name__} is not supported; use Box, Discrete, MultiDiscrete, "
                "MultiBinary, Dict or Tuple (a wrapper can convert it)"
            )


def _bound(values: np.ndarray) -> float | tuple[float, ...]:
    flat = np.asarray(values, np.float64).reshape(-1)
    if flat.size == 0 or (flat == flat[0]).all():
        return float(flat[0]) if flat.size else 0.0
    return tuple(flat.tolist())


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an environment's observations divide into roles.

    policy, critic: the space of each role; policy_key and critic_key: where it lies in the observation
    (None: the observation itself). mask_size: width of the flat mask; mask_in: "obs", "info" or "".
    """

    policy: spaces.Space
    policy_key: str | None
    critic: spaces.Space | None
    critic_key: str | None
    mask_size: int
    mask_in: str


def layout_of(observation: Any, action: Any, mask_in_info: bool) -> Layout:
    """The roles in a Gymnasium observation space: the keys "action_mask", "policy" and "critic" of a Dict.

    Where one other key remains beside the mask, the policy sees that one alone.
    """
    mask_in = "info" if mask_in_info else ""
    policy, critic, policy_key, critic_key = observation, None, None, None
    if isinstance(observation, gym_spaces.Dict):
        names = set(observation.spaces)
        if MASK in names:
            mask_in = "obs"
            names.remove(MASK)
            if not names:
                raise ShoalError(
                    "the observation holds nothing but an action mask; the policy needs something to see"
                )
            policy = gym_spaces.Dict({name: observation.spaces[name] for name in sorted(names)})
        if names == {"policy", "critic"}:
            policy_key, critic_key = "policy", "critic"
            policy, critic = observation.spaces["policy"], observation.spaces["critic"]
        elif mask_in == "obs" and len(names) == 1:
            (policy_key,) = names
            policy = observation.spaces[policy_key]
    return Layout(
        policy=convert_space(policy),
        policy_key=policy_key,
        critic=None if critic is None else convert_space(critic),
        critic_key=critic_key,
        mask_size=mask_size(action) if mask_in else 0,
        mask_in=mask_in,
    )


def mask_size(action: Any) -> int:
    """The width of the flat mask of a Gymnasium action space; see `types.Observation`."""
    match action:
        case gym_spaces.Discrete():
            return int(action.n)
        case gym_spaces.MultiDiscrete():
            return int(action.nvec.sum())
        case gym_spaces.MultiBinary():
            return 2 * int(np.prod(action.shape))
        case _:
            raise ShoalError(
                "action masks are for Discrete, MultiDiscrete and MultiBinary actions, "
                f"not {type(action).__name__}"
            )


class Rows:
    """B rows of one layout: `observation` holds the arrays, `write(i, obs)` fills row i.

    `write_mask(i, mask)` fills a mask given apart (None: all allowed). `bytes[i]` is row i of every
    array as memoryviews, for checksums; it shares memory with the arrays. `finite()` says whether no row
    holds NaN or infinity.
    """

    def __init__(self, layout: Layout, action: Any, size: int) -> None:
        policy = spaces.zeros(layout.policy, (size,))
        critic = None if layout.critic is None else spaces.zeros(layout.critic, (size,))
        mask = np.ones((size, layout.mask_size), bool) if layout.mask_in else None
        self.observation = Observation(policy, critic, mask)
        self.write_mask: Write = (lambda i, m: None) if mask is None else mask_writer(action, mask)
        parts = [at(layout.policy_key, writer(layout.policy, policy))]
        if layout.critic is not None:
            parts.append(at(layout.critic_key, writer(layout.critic, critic)))
        if layout.mask_in == "obs":
            parts.append(at(MASK, self.write_mask))
        self.write: Write = parts[0] if len(parts) == 1 else together(parts)
        leaves = [*_leaves(policy), *_leaves(critic), *_leaves(mask)]
        self.bytes = [tuple(memory_of(leaf[i : i + 1]) for leaf in leaves) for i in range(size)]
        self.finite = _finite([leaf.reshape(-1) for leaf in leaves if leaf.dtype.kind == "f"])
        # A lone box of floats needs no function call for each row: the group writes these views itself.
        plain = (
            isinstance(policy, np.ndarray)
            and policy.ndim > 1
            and len(leaves) == 1
            and layout.policy_key is None
            and policy.dtype.kind == "f"
        )
        self.views: list[np.ndarray] | None = list(policy) if plain else None


def memory_of(array: Any) -> memoryview:
    """The array's memory, for checksums. (NumPy's type stubs do not know that an array is a buffer.)"""
    return memoryview(array)


def _finite(arrays: list[np.ndarray]) -> Callable[[], bool]:
    """Says whether no entry is NaN or infinite: 0 * x is 0 but for those, and a dot product adds it up."""
    if len(arrays) == 1:
        array, zeros = arrays[0], np.zeros_like(arrays[0])
        return lambda: array.dot(zeros) == 0.0
    singles = [_finite([array]) for array in arrays]
    return lambda: all(one() for one in singles)


def _leaves(tree: Any) -> list[np.ndarray]:
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in _leaves(tree[name])]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


@dataclass(frozen=True)
class Actions:
    """The leaves of an action space, in the order in which JAX flattens an action.

    leaves: (shape, dtype as it is kept in a journal) of each. flatten: an action pytree [B, ...] to its
    arrays. split: those arrays to B actions as `env.step` wants them, sharing no memory with the arrays
    (an environment may write into what it is given).
    """

    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]
    flatten: Callable[[Any], list[np.ndarray]]
    split: Callable[[list[np.ndarray]], list[Any]]


def actions_of(space: Any) -> Actions:
    """How actions of a Gymnasium space travel. Raises ShoalError for a space that is not supported."""
    match space:
        case gym_spaces.Dict():
            names = sorted(space.spaces)
            return _nested(
                names,
                [actions_of(space.spaces[n]) for n in names],
                lambda row: dict(zip(names, row, strict=True)),
            )
        case gym_spaces.Tuple():
            return _nested(range(len(space.spaces)), [actions_of(s) for s in space.spaces], tuple)
    convert_space(space)  # raises for what is not supported
    shape, dtype = tuple(space.shape), np.dtype(space.dtype)
    return Actions(
        ((shape, compact_dtype(space)),), lambda action: [np.asarray(action)], _splitter(space, shape, dtype)
    )


def _nested(names: Sequence[Any], parts: Sequence[Actions], join: Callable[[Any], Any]) -> Actions:
    def flatten(action: Any) -> list[np.ndarray]:
        return [leaf for name, part in zip(names, parts, strict=True) for leaf in part.flatten(action[name])]

    def split(leaves: list[np.ndarray]) -> list[Any]:
        rest = iter(leaves)
        columns = [part.split([next(rest) for _ in part.leaves]) for part in parts]
        return [join(row) for row in zip(*columns, strict=True)]

    return Actions(tuple(leaf for part in parts for leaf in part.leaves), flatten, split)


def _splitter(space: Any, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[list[np.ndarray]], list[Any]]:
    if isinstance(space, gym_spaces.Discrete):
        # What the space itself samples: NumPy integers of its dtype, made once.
        numbers = {k: dtype.type(k) for k in range(int(space.start), int(space.start) + int(space.n))}
        return lambda leaves: [numbers[k] for k in leaves[0].tolist()]
    if not shape:
        return lambda leaves: [np.array(row, dtype) for row in leaves[0]]
    return lambda leaves: list(sent(space, leaves[0]))


def sent(space: Any, actions: Any) -> np.ndarray:
    """Actions [B, ...] as environments of this Gymnasium space are sent them, sharing no memory."""
    array = np.array(actions, space.dtype)
    if array.dtype.kind == "f" and array.dtype != np.float32:
        # A float32 bound may lie outside the float64 bound that it rounds.
        np.clip(array, space.low, space.high, out=array)
    return array


def compact_dtype(space: Any) -> np.dtype:
    """The smallest dtype that holds every action: what a journal keeps."""
    match space:
        case gym_spaces.Discrete():
            low, high = int(space.start), int(space.start) + int(space.n) - 1
        case gym_spaces.MultiDiscrete():
            low, high = int(space.start.min()), int((space.start + space.nvec).max()) - 1
        case gym_spaces.Box() if np.dtype(space.dtype).kind == "f":
            return np.dtype(np.float32)
        case _:
            return np.dtype(space.dtype)
    return np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))


def entries(space: Any) -> int:
    """How many numbers an observation of this Gymnasium space holds."""
    if hasattr(space, "spaces"):
        parts = space.spaces.values() if hasattr(space.spaces, "values") else space.spaces
        return sum(entries(part) for part in parts)
    return int(np.prod(space.shape))
