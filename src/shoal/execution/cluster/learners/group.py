"""The learner of a run as a group of members, seen from the driver.

    learn --to all members--> the next state, a part of it in each
    now and then: a commit, the whole state in this process      since then: a log of what was learned from

The members compute one program together, so that none of them can go on when one is lost. Then all are ended,
new ones are started, get the state of the last commit and repeat what was learned since. What an update gives
depends on state, experience and key alone, so the parameters are the same bits as without the loss.

An interruption (Ctrl-C) may come at any moment. Who goes on asks again for what was not answered: an update
that was sent is not sent again, and where only some members were sent an order, all are started again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from shoal.counters import value
from shoal.errors import ShoalError
from shoal.execution.cluster.deadlines import Usual, allowed
from shoal.execution.cluster.learners.crew import Crew, MembersLost
from shoal.execution.cluster.learners.member import Begun, Told
from shoal.execution.cluster.learners.parts import Holds, bytes_of, cut, joined, slim
from shoal.execution.cluster.learners.record import Asked, Losses, Order, Sent, Stand
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
MOST_SENT = 32  # orders without an answer, before an observation waits for them


class LearnerGroup:
    """A `Learner` whose state is with the members of a crew. agent: the one that the members have."""

    repeats = True

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
        self._sent: deque[Sent] = deque()
        self._usual: dict[str, Usual] = {}
        self._known: set[str] = set()  # what these members have done before
        self._stand = Stand()
        self._log_seconds, self._commit_seconds = 0.0, COMMIT_SECONDS  # of updates since the last commit
        self._in_a_row, self._hangs = 0, 0
        self._lost_at: float | None = None  # and the group does not stand again
        self._doubtful = False  # members may have been sent different orders, or not all that count
        self._holds: tuple[Holds, ...] = ()
        self._acting: Params | None = None
        self._env_steps = 0
        self._peak, self.base = 0, 0
        self._events: list[str] = []
        self.losses = Losses()
        self._forms_seen: tuple[Order, ...] = ()  # what is compiled ahead by members that begin
        self._begin()
        self._tell()

    # -- the Learner -------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Between updates: one that was interrupted is not in it, for who goes on from here makes it."""
        asked = self._stand.asked
        if asked is not None and asked.experience is not None:
            self._retried(self._settle)
            with self._all_or_none():
                self._stand = self._stand.without(asked)
                self._tell()
        return self._joined(self._form, self._ask(Order("save")))

    @state.setter
    def state(self, state: State) -> None:
        whole = jax.tree.map(np.asarray, state)
        self._retried(self._settle)
        with self._all_or_none():
            self._stand, self._log_seconds = Stand(whole), 0.0
            self._tell()
        self._retried(self._settle)

    @property
    def env_steps(self) -> int:
        if self._sent or self._doubtful:
            self._retried(self._settle)
        return self._env_steps

    def acting(self) -> Params:
        if self._acting is None:
            self._acting = self._joined(self._acting_form, self._ask(Order("acting")))
        return self._acting

    def warm(self, form: Trajectory) -> None:
        order = Order("warm", (form,))
        self._forms_seen = (order,)
        self._enact(order, lambda: self._stand)

    def learn(self, experience: Any, key: Key) -> Learned:
        return self._update("learn", experience, key=key)

    def observe(self, trajectory: Trajectory) -> None:
        """Where that was interrupted while it waited, nothing of it is done."""
        self._make_room()
        order = self._about("observe", [slim(trajectory)])
        self._enact(order, lambda: self._stand.after(order))

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
        """Where that was interrupted, and is called again with the same, it goes on. (Updates in a row have
        different keys.)"""
        asked, thin, at = self._stand.asked, [slim(one) for one in experience], self._clock()
        if asked is None or not asked.is_again(method, thin, np.asarray(key)):
            order = self._about(method, thin, np.asarray(key))
            asked = Asked(order, np.asarray(key), thin)
            self._enact(order, lambda: self._stand.after(order, asked))
        if asked.told is None:
            self._retried(self._settle)
            self._log_seconds += self._clock() - at
        told = asked.told
        assert told is not None and told.metrics is not None
        asked.experience = None
        self._commit_if_due()
        return Learned(told.metrics, told.priorities)

    def _about(self, method: str, thin: Sequence[Any], *key: np.ndarray) -> Order:
        arguments = [self._crew.put(one) for one in thin]
        return Order(method, (*arguments, *key), bytes=sum(map(bytes_of, thin)))

    def _enact(self, order: Order, stand: Callable[[], Stand]) -> None:
        """Send what changes members. stand: gives what counts then."""
        if self._doubtful:
            self._retried(self._settle)
        with self._all_or_none():
            self._stand, self._acting = stand(), None
            self._send(order)

    # -- commits -----------------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        due = self._log_seconds * COMMIT_SHARE >= self._commit_seconds or self._stand.bytes > LOG_BYTES
        under_way = any(sent.replaces is not None for sent in self._sent)
        if due and self._stand.log and not under_way and not self._doubtful:
            with self._all_or_none():
                self._send(Order("save"), replaces=self._stand.end)

    def _commit(self, replaces: int, answers: list[Any], seconds: float) -> None:
        """Have the answers as the state to begin with after a loss. They come while members learn."""
        at = self._clock()
        self._stand = self._stand.commit(self._joined(self._form, answers), replaces)
        self._commit_seconds, self._log_seconds = seconds + self._clock() - at, 0.0

    def _make_room(self) -> None:
        """Nobody waits for the answer to an observation: until there is an update, calls would come together
        here, and what is held for them, without end."""
        if self._doubtful:
            self._retried(self._settle)
        self._commit_if_due()
        while len(self._sent) >= MOST_SENT or self._stand.bytes > LOG_BYTES:
            self._retried(self._settle)
            self._commit_if_due()

    # -- asking members ----------------------------------------------------------------------------------

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """What is sent in the block comes to all members, or where it is interrupted, to new ones."""
        self._doubtful = True
        yield
        self._doubtful = False

    def _send(self, order: Order, replaces: int | None = None) -> None:
        each = order.each or ((),) * self._crew.count
        call = self._crew.call(order.method, [(*own, *order.arguments) for own in each])
        self._sent.append(Sent(order, call, replaces))

    def _ask(self, order: Order) -> list[Any]:
        """What all members answer to this order, after all that was sent before."""

        def once() -> list[Any]:
            with self._all_or_none():
                self._send(order)
            return self._settle()

        return self._retried(once)

    def _retried(self, attempt: Callable[[], list[Any]]) -> list[Any]:
        while True:
            try:
                if self._doubtful:
                    self._renew()
                if self._lost_at is not None:
                    self._settle()
                    self._stands_again(self._lost_at)
                answers = attempt()
            except MembersLost as lost:
                self._lose(lost)
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
            if method not in ONCE:
                took = answers[0].seconds if isinstance(answers[0], Told) else waited
                usual.note(took, first=first)
            self._hear(sent, answers, waited)
            self._sent.popleft()  # at last: what is interrupted before, is heard again
        self._hangs = 0
        return answers

    def _hear(self, sent: Sent, answers: list[Any], waited: float) -> None:
        if isinstance(answers[0], Begun):
            self._holds = tuple(begun.holds for begun in answers)
            self.base = max(begun.base for begun in answers)
        elif isinstance(answers[0], Told):
            self._peak = max(told.peak for told in answers)
            self._env_steps = answers[0].env_steps
            if (asked := self._stand.asked) is not None and sent.order is asked.order:
                asked.told = answers[0]
            elif sent.order.method == "observe":  # else it is seen how long an update takes
                self._log_seconds += answers[0].seconds
        elif sent.replaces is not None:
            self._commit(sent.replaces, answers, waited)

    # -- losses ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._known.clear()
        self._sent.append(Sent(Order("begin"), self._crew.start(), None))

    def _lose(self, lost: MembersLost) -> None:
        """Members are lost: new ones are needed, or the run ends with one line."""
        if self._lost_at is None:
            self._lost_at = self._clock()
        self._doubtful = True
        self._in_a_row += 1
        self._hangs += lost.hang
        self.losses.count += 1
        self._events.append(f"the learners are started again: {lost}")
        if self._in_a_row > self._limits.strikes:
            raise ShoalError(
                f"learners were lost {self._in_a_row} times in a row, without an update in between; the "
                f"last time: {lost}"
            )

    def _renew(self) -> None:
        """Have new members, and send them what makes them what counts. It is no loss where it is for an
        interruption."""
        if self._lost_at is None:
            self._events.append("the learners are started again: an order to them was interrupted")
        self._crew.kill()
        self._sent.clear()
        self._begin()
        self._tell(*self._forms_seen)
        self._doubtful = False

    def _stands_again(self, lost_at: float) -> None:
        seconds = self._clock() - lost_at
        updates = sum(order.method != "observe" for order in self._stand.log)
        self.losses.seconds.append(seconds)
        self.losses.repeated += updates
        self._events.append(
            f"the learners stand where they stood, after {seconds:.1f} s; {updates} updates were made again"
        )
        self._lost_at = None

    def _tell(self, *forms: Order) -> None:
        """Send members all that counts, whatever they have been told before. forms: what they compile."""
        committed, log = self._stand.committed, self._stand.log
        if committed is not None and not self._holds:
            self._settle()
        self._env_steps = 0 if committed is None else value(committed.env_steps)
        self._acting = None
        state = Order("fresh") if committed is None else self._loading(committed)
        for order in (state, *forms, *log):
            self._send(order)

    def _loading(self, state: State) -> Order:
        """Give each member its parts; those that hold the same get the same."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        put = {holds: self._crew.put(cut(leaves, holds)) for holds in set(self._holds)}
        return Order("load", (), tuple((put[holds],) for holds in self._holds))

    def _joined(self, form: Any, answers: Sequence[Any]) -> Any:
        return joined(form, (part for parts in answers for part in parts))
