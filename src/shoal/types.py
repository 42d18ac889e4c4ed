"""The vocabulary: all that an algorithm, an environment and an executor say to each other.

Shape letters, everywhere: T time steps (rows), B environments, N minibatch rows, K minibatches,
L rows of a stored sequence, A actions. Arrays are NumPy on the host and JAX inside compiled code; both are
written `Array`.

The convention for time. An environment resets on the step *after* its episode ended (Gymnasium's
NEXT_STEP mode), so `obs[t + 1]` always follows `action[t]`, also where a time limit cut the
episode, and no final observation is ever lost. `first[t]` marks the rows that a reset produced.
Action `t` is real where `first[t + 1]` is false; the other rows only reset and weigh nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from shoal.spaces import Space

if TYPE_CHECKING:  # a process that only steps environments does without JAX
    import jax

    Array: TypeAlias = jax.Array | np.ndarray
else:
    Array = Any
Key = Array  # uint32 [2] (or [..., 2]): see keys.py
Params = Any  # nested dict of arrays
Carry = Any  # pytree of [B, ...] arrays; () for a policy without memory
Action = Any  # array [B, ...]; integer for discrete spaces, float32 for boxes
Extras = dict[str, Array]  # what `act` wants `learn` to see: "log_prob" first of all
Metrics = Mapping[str, Array]


class Observation(NamedTuple):
    """What an environment shows, by role. An absent role is None (an empty pytree).

    policy: what the policy sees: an array, or nested dicts and tuples of arrays.
    critic: what only the critic sees beside it, if anything (privileged information).
    mask: bool, the actions allowed now: [.., n] for Discrete(n); for MultiDiscrete the choices of
        all sub-actions in one row [.., sum(nvec)]; for MultiBinary [.., 2 * n] (may be 0, may be 1).
    """

    policy: Any
    critic: Any = None
    mask: Any = None


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What an algorithm may know of an environment: plain data, safe to send and to save.

    frames: where it is more than 1, the first axis of `Observation.policy` (one array) holds that many
    frames, the newest last, and begins each episode with copies of the episode's first frame. A replay
    then stores each frame once.
    """

    id: str
    observation: Space
    action: Space
    critic: Space | None = None
    masked: bool = False
    max_episode_steps: int | None = None
    frames: int = 1


class Step(NamedTuple):
    """One row of a group of B environments, as `Group.step` gives it.

    reward, terminated: of the action just taken: float32 [B], bool [B]; 0 and False on reset rows.
    first: bool [B], true where `obs` was produced by a reset.
    """

    obs: Observation
    reward: Array
    terminated: Array
    first: Array


class Acting(NamedTuple):
    """What `act` is told beside the observation.

    key: uint32 [B, 2], one key for each environment and step.
    index: int32 [B], each environment's own number in the whole experiment.
    explore: bool [], sample (true) or take the mode (false).
    reward: float32 [B], the reward that led to this observation (0 after a reset).
    """

    key: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.index)
    explore: Array
    reward: Array


class Trajectory(NamedTuple):
    """A fragment: T rows of B environments, time-major.

    obs and first have T + 1 rows; action, reward, terminated, version and extras have T.
    carry is the policy's memory before row 0. version: int32 [T, B], the number of updates that the
    acting parameters had seen; it may change in mid-fragment under asynchronous plans.
    """

    obs: Observation
    first: Array
    action: Action
    reward: Array
    terminated: Array
    version: Array
    extras: Extras
    carry: Carry

    @property
    def weight(self) -> Array:
        """float32 [T, B]: 1 where action `t` is real, 0 where the row only resets."""
        return 1.0 - self.first[1:].astype("float32")


class Transitions(NamedTuple):
    """N steps of several episodes, as a replay draws them; n is the plan's `n_step`.

    obs, action: where a step began and what was done there; action is extras["raw_action"] of the policy.
    reward: float32 [N, n], the rewards from here on, 0 beyond the episode's end and beyond the newest row.
    steps: int32 [N], how many of them are real: fewer than n where the episode or the stored data ends.
    terminated: bool [N], whether the last of these steps ended the episode, so that nothing follows.
    next_obs: what was seen after `steps` steps: of the same episode also at a time limit.
    weight: float32 [N], 1 / (number of stored rows * probability of being drawn), so 1 for a uniform
    replay; 0 for a row that only reset, from which nothing is to be learned. index: int32 [N], the row's
    place in the replay, where its new priority goes.
    """

    obs: Observation
    action: Action
    reward: Array
    steps: Array
    terminated: Array
    next_obs: Observation
    weight: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.index)


class Sequences(NamedTuple):
    """N stretches of L rows as a replay draws them, for policies with memory.

    trajectory: like a Trajectory of N environments and L rows, but with the axes of time and environment
    exchanged, so that every leaf begins with N: obs and first [N, L + 1, ...], reward [N, L], carry [N, ...].
    Episodes may begin within; `first` says where. extras hold "raw_action" alone, which is `action` too.
    weight: float32 [N], as in Transitions, of the whole stretch. index: int32 [N].
    """

    trajectory: Trajectory
    weight: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.index)


class Draws(NamedTuple):
    """What a replay gives to one call of `learn`: K minibatches, of which the first `count` are to be
    learned from, in order. minibatches: leaves [K, N, ...]. count: int32 []."""

    minibatches: Transitions | Sequences
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.count)


class Counter(NamedTuple):
    """A count that does not overflow at 2^31: uint32 [] limbs, value = high * 2^32 + low."""

    low: Array
    high: Array


class State(NamedTuple):
    """All that training changes.

    params: nested dict of arrays. opt: the optimizer's state. extra: what else the algorithm and
    its transforms keep (target networks, running statistics), a dict by owner's name.
    env_steps: real environment steps learned from. updates: optimizer steps taken.
    """

    params: Params
    opt: Any
    extra: dict[str, Any]
    env_steps: Counter
    updates: Counter


class Batch(NamedTuple):
    """The K minibatches of one update: rows once, and which rows each minibatch takes.

    rows: pytree of [R, ...] arrays; what a row is (a step, a sequence) is the algorithm's affair.
    index: int32 [K, N] into the rows; None where rows are [K, N, ...] already.
    count: int32 [], how many of the K minibatches are to be used; None: all.
    """

    rows: Any
    index: Array | None  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.index)
    count: Array | None = None  # pyright: ignore[reportIncompatibleMethodOverride]


class Gradient(NamedTuple):
    """What one minibatch says, so that parts of it can be added up wherever they were computed.

    sum: like params, the gradient of the *sum* of the loss over rows. weight: float32 [], the
    total weight of those rows; the mean gradient is sum / weight. metrics: sums over rows, by name,
    to be divided by the same weight. priorities: float32 [N], positive: how likely each row shall be
    drawn again, in proportion (the exponent of Schaul et al. 2016 applied); None without any.
    """

    sum: Params
    weight: Array
    metrics: Metrics
    priorities: Array | None = None


class Update(NamedTuple):
    """What one call of `learn` gives: metrics are means over the update, float32 [], as `group/name`.
    priorities: float32 [K, N], those of minibatches that were not used are 0; None without any."""

    state: State
    metrics: Metrics
    priorities: Array | None = None


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """A plan: each update takes a fresh fragment of every environment and then forgets it.

    rows: T, the rollout fragment's length in rows. staleness: how many updates the acting policy
    may lag behind; 0 is synchronous. minibatches: into how many equal parts an update's rows (with
    `sequences`, its environments' whole fragments) are divided, so that they must be divisible by it.
    """

    rows: int
    staleness: int = 0
    minibatches: int = 1
    sequences: bool = False


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A plan: fragments go into a replay, and each update draws its minibatches from it.

    rows: T, the rollout fragment's length in rows. capacity: how many rows the replay keeps, of all
    environments together. batch_size: N. train_every, gradient_steps: so many gradient steps for every so
    many environment steps, so that each transition is drawn batch_size * gradient_steps / train_every times
    on average, the sample-to-insert ratio. learning_starts: environment steps before the first of them.
    n_step: how many rewards a transition holds. sequence: L, to draw `Sequences` of L rows, each beginning
    where a fragment began; 0 draws `Transitions`. prioritized: draw in proportion to priorities; a new row
    has the highest that any has had, unless it comes with its own (`Agent.priority`). staleness: how many
    updates the acting policy may lag behind.
    """

    rows: int
    capacity: int
    batch_size: int
    train_every: int
    gradient_steps: int = 1
    learning_starts: int = 0
    n_step: int = 1
    sequence: int = 0
    prioritized: bool = False
    staleness: int = 0


Plan = OnPolicy | Replay


@dataclass(frozen=True, kw_only=True)
class Agent:
    """An algorithm bound to an environment's spaces: a record of pure functions, no process, no file.

    `learn` is derived from batches, grads, apply and observe by `sgd.learner`; executors that split
    an update call the parts. `observe` notes what was collected: counters and running statistics. With an
    OnPolicy plan it is the end of `learn`, so that these are frozen while the policy acts and learns. With
    a Replay plan the executor calls it, once for each fragment that goes into the replay, and `learn` is
    made of batches, grads and apply alone.

    The experience of batches and learn is a Trajectory with an OnPolicy plan, Draws with a Replay plan.

    `priority`, where a prioritised plan has one: (what `policy` gives, Trajectory [T, B]) -> float32 [T, B],
    the first priority of each row, as positive as `Gradient.priorities`, so that it can be found where the
    data is made. None: a new row has the highest priority that any has had.
    """

    plan: Plan
    init: Callable[[Key], State]
    policy: Callable[[State], Params]
    begin: Callable[[int], Carry]
    act: Callable[[Params, Carry, Observation, Array, Acting], tuple[Action, Carry, Extras]]
    batches: Callable[[State, Any, Key], Batch]
    grads: Callable[[State, Any, Key], Gradient]
    apply: Callable[[State, Gradient], State]
    observe: Callable[[State, Trajectory], State]
    learn: Callable[[State, Any, Key], Update]
    priority: Callable[[Params, Trajectory], Array] | None = None


class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters that can be bound to an environment's spaces."""

    def bind(self, spec: EnvSpec) -> Agent: ...


class Group(Protocol):
    """B environments that step together on the host: the unit of hosting, saving and moving.

    A fragment of a group is a pure function of (parameters, the group's state at its start, seed).
    """

    @property
    def size(self) -> int: ...

    def current(self) -> Step:
        """The present row; resets the environments if none has begun."""
        ...

    def step(self, action: Any) -> Step:
        """One row on. Environments whose episode ended are reset instead, their action ignored.
        The arrays may be reused by the next call: copy what is kept."""
        ...

    def info(self) -> Mapping[str, float]:
        """Means of the numbers that the environments put into `info` since the last call."""
        ...

    def save(self) -> Any:
        """The group's state as a pytree (nested dicts) of NumPy arrays: no code, no objects."""
        ...

    def load(self, saved: Any) -> None:
        """Continue from what `save` gave, bit for bit."""
        ...

    def close(self) -> None: ...


class JaxEnv(Protocol):
    """One environment as pure functions, to be vmapped: keys are uint32 [2]."""

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, key: Key) -> tuple[Any, Observation]:
        """A new episode: (state pytree, observation), no batch axis."""
        ...

    def step(self, state: Any, action: Any, key: Key) -> tuple[Any, Observation, Array, Array, Array]:
        """One step: (state, observation, reward float32 [], terminated bool [], truncated bool [])."""
        ...
