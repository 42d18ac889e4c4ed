"""The learner: it holds what training changes, a `State`, and changes it. Where it does so is its own affair.

`LearnerHere` learns in this process, on one device or (`split.py`) over several; on a cluster others may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from shoal.compiling import jit_once
from shoal.counters import value
from shoal.memo import remembered
from shoal.types import Agent, Array, Draws, Key, Metrics, OnPolicy, Params, Plan, State, Trajectory, Update

if TYPE_CHECKING:
    from shoal.execution.split import Split


class Learned(NamedTuple):
    """What an update tells: its metrics, and the drawn rows' new priorities [K, N] (None without any)."""

    metrics: Metrics
    priorities: Array | None


class Learner(Protocol):
    """Holds a State, wherever it is, and changes it.

    repeats: whether an update that broke off may be asked for again, with the same key, and is then that
    update, once.
    """

    repeats: bool

    @property
    def state(self) -> State:
        """The whole of it, as a checkpoint holds it."""
        ...

    @state.setter
    def state(self, state: State) -> None: ...

    @property
    def env_steps(self) -> int:
        """Real environment steps learned from."""
        ...

    def acting(self) -> Params:
        """The part that acting needs, as `Agent.policy` gives it."""
        ...

    def warm(self, form: Trajectory) -> None:
        """Compile what can be compiled before there is experience. form: of an iteration's trajectory."""
        ...

    def learn(self, experience: Any, key: Key) -> Learned:
        """`Agent.learn`: an update with an OnPolicy plan, or from Draws alone."""
        ...

    def observe(self, trajectory: Trajectory) -> None:
        """`Agent.observe`, with a Replay plan: what was collected is noted."""
        ...

    def observe_and_learn(self, trajectory: Trajectory, draws: Draws, key: Key) -> Learned:
        """`Agent.observe`, then `Agent.learn` of what was drawn."""
        ...

    def close(self) -> None: ...


class News(NamedTuple):
    """figures: what a learner measured, as `timing/NAME`. events: what happened since it was last asked."""

    figures: Mapping[str, float] = {}
    events: Sequence[str] = ()


@runtime_checkable
class Reporting(Protocol):
    """A learner to which more happens than what it is told to do."""

    def news(self) -> News: ...


def news_of(learner: Learner) -> News:
    """Nothing, of most learners."""
    return learner.news() if isinstance(learner, Reporting) else News()


class Functions(NamedTuple):
    """The functions of an agent that a learner calls."""

    init: Callable[[Key], State]
    policy: Callable[[State], Params]
    learn: Callable[[State, Any, Key], Update]
    observe: Callable[[State, Trajectory], State]
    observe_and_learn: Callable[[State, Trajectory, Draws, Key], Update]

    @staticmethod
    @remembered
    def of(agent: Agent) -> Functions:
        def observe_and_learn(state: State, trajectory: Trajectory, draws: Draws, key: Key) -> Update:
            return agent.learn(agent.observe(state, trajectory), draws, key)

        return Functions(agent.init, agent.policy, agent.learn, agent.observe, observe_and_learn)


class LearnerHere:
    """A learner in this process.

    functions: compiled, or not, where the learner is a part of a larger compiled program. split: how arrays
    are placed for them on several devices; None: there is one.
    """

    repeats = False

    def __init__(self, plan: Plan, functions: Functions, state: State, split: Split | None = None) -> None:
        self._plan, self._do, self._split = plan, functions, split
        self.state = state

    @staticmethod
    def new(agent: Agent, key: Key, split: Split | None = None) -> LearnerHere:
        """With a State of its own, from this key."""
        functions = Functions.of(agent)
        if split is None:
            functions = Functions(*map(jax.jit, functions))._replace(init=jit_once(functions.init))
        else:
            functions = split.compiled(functions)
        return LearnerHere(agent.plan, functions, functions.init(key), split)

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state if self._split is None else self._split.placed_state(state)

    @property
    def env_steps(self) -> int:
        return value(self._state.env_steps)

    def acting(self) -> Params:
        params = self._do.policy(self._state)
        return params if self._split is None else self._split.here(params)

    def warm(self, form: Trajectory) -> None:
        do: Any = self._do
        form = form if self._split is None else self._split.form(form)
        if isinstance(self._plan, OnPolicy):
            do.learn.lower(self._state, form, np.zeros(2, np.uint32)).compile()
        else:
            do.observe.lower(self._state, form).compile()

    def learn(self, experience: Any, key: Key) -> Learned:
        return self._took(self._do.learn(self._state, self._put(experience), key))

    def observe(self, trajectory: Trajectory) -> None:
        self._state = self._do.observe(self._state, self._put(trajectory))

    def observe_and_learn(self, trajectory: Trajectory, draws: Draws, key: Key) -> Learned:
        return self._took(
            self._do.observe_and_learn(self._state, self._put(trajectory), self._put(draws), key)
        )

    def close(self) -> None:
        pass

    def _put(self, experience: Any) -> Any:
        return experience if self._split is None else self._split.placed(experience)

    def _took(self, update: Update) -> Learned:
        self._state = update.state
        return Learned(update.metrics, update.priorities)
