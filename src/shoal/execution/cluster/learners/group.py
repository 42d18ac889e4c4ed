"""The learner of a run as a group of members, seen from the driver.

    learn --to all members--> the next state, a part of it in each
    now and then: a commit, the whole state in this process      since then: a log of what was learned from

The members compute one program together, so that none of them can go on when one is lost. Then all are ended,
new ones are started, get the state of the last commit and repeat what was learned since. What an update gives
depends on state, experience and key alone, so the parameters are the same bits as without the loss.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.counters import value
from shoal.errors import ShoalError
from shoal.execution.cluster.deadlines import Usual, allowed
from shoal.execution.cluster.learners.crew import Call, Crew, MembersLost
from shoal.execution.cluster.learners.member import Begun, Told
from shoal.execution.cluster.learners.parts import Holds, bytes_of, cut, joined, slim
from shoal.execution.cluster.roster import Limits
from shoal.execution.learner import Learned, News
from shoal.types import Agent, Draws, Key, Params, State, Trajectory

START_SECONDS = 300.0  # for a member to be ready, and at most for what it does for the first time
SLACK_SECONDS = 5.0  # that an answer may take in any case: who is taken for hung takes all others along
COMMIT_SHARE = 0.05  # of the time of updates, that commits may take
COMMIT_SECONDS = 0.05  # that a commit takes, before one is measured
ONCE = {
    "begin",
    "fresh",
    "load",
    "warm",
}  # while the driver is busy elsewhere: how long they take is not seen
LOG_BYTES = 256 << 20  # of experience, that may be held until the next commit


class _Order(NamedTuple):
    """arguments: those that all members get; each: those that each member has of its own. bytes: of the
    experience that is held for it."""

    method: str
    arguments: tuple[Any, ...] = ()
    each: tuple[tuple[Any, ...], ...] | None = None
    bytes: int = 0


class _Sent(NamedTuple):
    order: _Order
    call: Call
    replaces: int | None  # a commit: how much of the log it stands for


@dataclass
class Losses:
    """count: how often members were lost. seconds: from when that was known until the group stood again where
    it had been, each time. repeated: updates that were made again."""

    count: int = 0
    seconds: list[float] = field(default_factory=list)
    repeated: int = 0


class LearnerGroup:
    """A `Learner` whose state is with the members of a crew. agent: the one that the members have."""

    def __init__(
        self,
        crew: Crew,
        agent: Agent,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        key = np.zeros(2, np.uint32)
        self._crew, self._clock = crew, clock
        self._limits = replace(limits, slack=SLACK_SECONDS, start=START_SECONDS)
        self._form = jax.eval_shape(agent.init, key)
        self._acting_form = jax.eval_shape(agent.policy, self._form)
        self._sent: deque[_Sent] = deque()
        self._usual: dict[str, Usual] = {}
        self._known: set[str] = set()  # what these members have done before
        self._committed: State | None = None  # whole; None: the one that the seed gives
        self._log: list[_Order] = []
        self._log_seconds, self._commit_seconds = 0.0, COMMIT_SECONDS  # of updates since the last commit
        self._committing = False
        self._in_a_row, self._hangs = 0, 0
        self._holds: tuple[Holds, ...] = ()
        self._acting: Params | None = None
        self._env_steps = 0
        self._peak, self.base = 0, 0
        self._events: list[str] = []
        self.losses = Losses()
        self._forms_seen: list[_Order] = []  # what is compiled ahead by members that begin
        self._begin()
        self._send(_Order("fresh"))

    # -- the Learner -------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._joined(self._form, self._ask(_Order("save")))

    @state.setter
    def state(self, state: State) -> None:
        whole = jax.tree.map(np.asarray, state)
        if not self._holds:
            self._retried(self._settle)
        self._committed, self._log, self._log_seconds = whole, [], 0.0
        self._env_steps, self._acting, self._committing = value(whole.env_steps), None, False
        self._sent = deque(sent._replace(replaces=None) for sent in self._sent)  # a commit of another state
        self._ask(self._loading(whole))

    @property
    def env_steps(self) -> int:
        if self._sent:
            self._retried(self._settle)
        return self._env_steps

    def acting(self) -> Params:
        if self._acting is None:
            self._acting = self._joined(self._acting_form, self._ask(_Order("acting")))
        return self._acting

    def warm(self, form: Trajectory) -> None:
        order = _Order("warm", (form,))
        self._forms_seen = [order]
        self._send(order)

    def learn(self, experience: Any, key: Key) -> Learned:
        return self._update("learn", experience, key=key)

    def observe(self, trajectory: Trajectory) -> None:
        order = self._about("observe", trajectory)
        self._send(order)
        self._note(order)

    def observe_and_learn(self, trajectory: Trajectory, draws: Draws, key: Key) -> Learned:
        return self._update("observe_and_learn", trajectory, draws, key=key)

    def news(self) -> News:
        events, self._events = self._events, []
        figures = {"learner_losses": float(self.losses.count)}
        if self._peak:
            figures["learner_peak_mb"] = self._peak / 1e6
        if self.losses.seconds:
            figures["learner_recovery"] = float(np.mean(self.losses.seconds))
        return News(figures, events)

    def close(self) -> None:
        self._sent.clear()
        self._crew.close()

    # -- updates -----------------------------------------------------------------------------------------

    def _update(self, method: str, *experience: Any, key: Key) -> Learned:
        order, at = self._about(method, *experience, key=key), self._clock()
        told: Told = self._ask(order)[0]
        self._log_seconds += self._clock() - at
        self._note(order)
        self._commit_if_due()
        assert told.metrics is not None
        return Learned(told.metrics, told.priorities)

    def _about(self, method: str, *experience: Any, key: Key | None = None) -> _Order:
        thin = [slim(one) for one in experience]
        arguments = [self._crew.put(one) for one in thin]
        return _Order(
            method,
            tuple(arguments if key is None else [*arguments, np.asarray(key)]),
            bytes=sum(map(bytes_of, thin)),
        )

    def _note(self, order: _Order) -> None:
        """What was sent has changed the state, or will have."""
        self._log.append(order)
        self._acting = None

    # -- commits -----------------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        held = sum(order.bytes for order in self._log)
        due = self._log_seconds * COMMIT_SHARE >= self._commit_seconds or held > LOG_BYTES
        if due and not self._committing:
            self._committing = True
            self._send(_Order("save"), replaces=len(self._log))

    def _commit(self, sent: _Sent, answers: list[Any], seconds: float) -> None:
        """Have the answers as the state to begin with after a loss. They come while members learn."""
        at = self._clock()
        self._committed = self._joined(self._form, answers)
        self._commit_seconds = seconds + self._clock() - at
        del self._log[: sent.replaces]
        self._log_seconds, self._committing = 0.0, False

    # -- asking members ----------------------------------------------------------------------------------

    def _send(self, order: _Order, replaces: int | None = None) -> None:
        each = order.each or ((),) * self._crew.count
        call = self._crew.call(order.method, [(*own, *order.arguments) for own in each])
        self._sent.append(_Sent(order, call, replaces))

    def _ask(self, order: _Order) -> list[Any]:
        """What all members answer to this order, after all that was sent before."""

        def once() -> list[Any]:
            self._send(order)
            return self._settle()

        return self._retried(once)

    def _retried(self, attempt: Callable[[], list[Any]]) -> list[Any]:
        while True:
            try:
                answers = attempt()
            except MembersLost as lost:
                self._recover(lost)
            else:
                self._in_a_row = 0
                return answers

    def _settle(self) -> list[Any]:
        """Wait for all that was sent; the answers to the last of it."""
        answers: list[Any] = []
        while self._sent:
            sent, at = self._sent[0], self._clock()
            method, usual = sent.order.method, self._usual.setdefault(sent.order.method, Usual())
            first = method not in self._known
            seconds, _ = allowed(usual, self._limits, first=first, hangs=self._hangs)
            answers = self._crew.wait(sent.call, seconds)
            waited = self._clock() - at
            self._known.add(method)
            self._sent.popleft()
            if method not in ONCE:
                took = answers[0].seconds if isinstance(answers[0], Told) else waited
                usual.note(took, first=first)
            self._hear(sent, answers, waited)
        self._hangs = 0
        return answers

    def _hear(self, sent: _Sent, answers: list[Any], waited: float) -> None:
        if isinstance(answers[0], Begun):
            self._holds = tuple(begun.holds for begun in answers)
            self.base = max(begun.base for begun in answers)
        elif isinstance(answers[0], Told):
            self._peak = max(told.peak for told in answers)
            self._env_steps = answers[0].env_steps
        elif sent.replaces is not None:
            self._commit(sent, answers, waited)

    # -- losses ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._known.clear()
        self._sent.append(_Sent(_Order("begin"), self._crew.start(), None))

    def _recover(self, lost: MembersLost) -> None:
        """Have new members that stand where the lost ones stood, or end the run with one line."""
        at = self._clock()
        while True:
            self._in_a_row += 1
            self._hangs += lost.hang
            self.losses.count += 1
            self._events.append(f"the learners are started again: {lost}")
            if self._in_a_row > self._limits.strikes:
                raise ShoalError(
                    f"learners were lost {self._in_a_row} times in a row, without an update in between; the "
                    f"last time: {lost}"
                )
            self._crew.kill()
            self._sent.clear()
            self._committing = False
            try:
                self._repeat()
                break
            except MembersLost as again:
                lost = again
        seconds = self._clock() - at
        self.losses.seconds.append(seconds)
        updates = sum(order.method != "observe" for order in self._log)
        self.losses.repeated += updates
        self._events.append(
            f"the learners stand where they stood, after {seconds:.1f} s; {updates} updates were made again"
        )

    def _repeat(self) -> None:
        self._begin()
        if self._committed is not None and not self._holds:
            self._settle()
        state = _Order("fresh") if self._committed is None else self._loading(self._committed)
        for order in (state, *self._forms_seen, *self._log):
            self._send(order)
        self._settle()

    def _loading(self, state: State) -> _Order:
        """Give each member its parts; those that hold the same get the same."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        put = {holds: self._crew.put(cut(leaves, holds)) for holds in set(self._holds)}
        return _Order("load", (), tuple((put[holds],) for holds in self._holds))

    def _joined(self, form: Any, answers: Sequence[Any]) -> Any:
        return joined(form, (part for parts in answers for part in parts))
