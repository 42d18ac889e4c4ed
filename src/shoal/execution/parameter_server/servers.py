"""The supervisor of parameter shards: every step is made once on every shard, whatever happens to one.

    advance(steps: gradients by reference) -> all shards -> what they publish, by reference

All shards make the same steps in the same order, and a step counts when all of them have made it. What a
shard was before the last steps is kept here (a snapshot), and so are the references of all gradients since:
from these a shard is made what it should be, to the bit, before anything else is asked of it, where it was
lost, and where an interruption (Ctrl-C) leaves in doubt what it has done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from shoal.errors import ShoalError
from shoal.execution.cluster.letters import opened, sealed
from shoal.execution.cluster.shard_fleet import InputLost, ShardFleet, ShardLost
from shoal.execution.parameter_server.record import Done, Mark, Recovery, Work, kinds
from shoal.execution.parameter_server.shard import Told
from shoal.execution.parameter_server.shares import Shares
from shoal.types import State

START_SECONDS = 120.0  # until a shard must be ready, or have compiled, or have made many steps again
SLACK_SECONDS, PATIENCE = 3.0, 10.0  # a shard is hung after 3 s and 10 times the longest answer of late
STEPS = 64  # between snapshots
BYTES = 256 << 20  # of gradients that are kept between snapshots, at most


class Servers:
    """shares: how a State is divided. norms: how many `apply` takes of a gradient that nobody has whole; 0
    where steps come with their norms, or need none. state: to begin with. strikes: losses of one shard in a
    row, without a step between them, that end the run. every: so many steps between snapshots."""

    def __init__(
        self,
        fleet: ShardFleet,
        shares: Shares,
        norms: int,
        state: State,
        strikes: int,
        every: int = STEPS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._strikes, self._every = strikes, every
        self._fleet, self._shares, self._norms, self._clock = fleet, shares, norms, clock
        self._longest = deque[float](maxlen=200)
        self._losses = dict.fromkeys(range(shares.count), 0)
        self._done: set[tuple[int, str]] = set()  # what each shard has done, and so compiled
        self.events: list[str] = []
        self.recovery = Recovery()
        self.spent = 0.0  # seconds until steps were made
        self._newest = 0  # version that there ever was
        self._now = Mark([shares.cut(state, s) for s in self._all], 0, 0, (None,) * shares.count)
        self._doubtful = set(self._all)  # shards that perhaps are not what counts
        self._started = {s: fleet.start(s) for s in self._all}

    @property
    def _all(self) -> range:
        return range(self._shares.count)

    @property
    def version(self) -> int:
        """Steps that count, and loads."""
        return self._now.version

    @property
    def env_steps(self) -> int:
        return self._now.env_steps

    @property
    def slices(self) -> tuple[Any, ...]:
        """Handles of what all shards published, of this version."""
        self._ready()
        return self._now.slices

    # -- the state ---------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The whole State, NumPy leaves."""
        self._ready()
        return self._shares.join(self._each("save", lambda s: ()))

    def load(self, state: State) -> None:
        """Have this State instead."""
        base, version = [self._shares.cut(state, s) for s in self._all], max(self._newest, self.version) + 1
        self._have(Mark(base, version, version, self._now.slices, self.env_steps))
        self._ready()

    def mark(self) -> Mark:
        """Where the servers stand, for `back`."""
        self._ready()
        return self._now

    def back(self, mark: Mark) -> None:
        """Stand where they stood. What workers know by its version must be known by another from now on, and
        so the State of there is loaded."""
        self._newest = max(self._newest, self.version)
        self._have(mark)
        self.load(self.state)

    def _have(self, mark: Mark) -> None:
        self._doubtful = set(self._all)
        self._now = mark

    def published(self) -> State:
        """The State less its optimizer's (), of this version, NumPy leaves."""
        self._ready()
        try:
            return self._received()
        except InputLost:  # a machine is gone; its shards may be found lost only now
            self._count(self._for_two("advance", lambda s: (self.version, ())))
            return self._received()

    def _received(self) -> State:
        return self._shares.received([opened(self._fleet.get(one)) for one in self._now.slices])

    def put(self, value: Any) -> Any:
        """A handle of something that workers may fetch."""
        return self._fleet.put(value)

    # -- steps -------------------------------------------------------------------------------------------

    def advance(self, work: Sequence[Work], version: int | None = None) -> list[float]:
        """Make these steps, in order; when this returns they count, and `slices` are of after them. Returns
        the norm of the sum of the gradients for each step that has several.

        version: before the first of them. Where a call was interrupted it is not known whether its steps
        count; called again with this version, they are made once, and the same is returned."""
        if version is not None and version + len(work) == self.version:
            return list(self._now.norms)
        self._ready()
        begun, now = self._clock(), self._now
        if now.version - now.base_version >= self._every or now.bytes >= BYTES:
            base = self._each("save", lambda s: ())
            self._now = self._now._replace(base=base, base_version=now.version, log=(), bytes=0)
        if self._norms:
            work = [self._with_norms(one) if one.step.pushes else one for one in work]
        letter = sealed(tuple(one.step for one in work))
        done = Done(self.version, letter, [parts for one in work for parts in one.gradients])
        told = self._for_two("advance", done.arguments, kinds(work))
        squares = zip(*(answer.squares for answer, _ in told), strict=True)
        norms = tuple(sqrt(sum(of_step)) for of_step in squares)
        held = self._now.bytes + 4 * self._shares.size * sum(len(one.gradients) for one in work)
        self._count(told, log=(*self._now.log, done), bytes=held, norms=norms)
        self.spent += self._clock() - begun
        self._losses = dict.fromkeys(self._all, 0)
        return list(norms)

    def _with_norms(self, work: Work) -> Work:
        """The norms that the step takes, of all shards' squares, added up in their order."""
        letter = sealed((work.step,))
        found = self._each("squares", lambda s: (letter, *(parts[s] for parts in work.gradients)))
        norms = [sqrt(sum(squares)) for squares in zip(*found, strict=True)]
        return work._replace(step=work.step._replace(norms=norms))

    def _count(self, answers: list[tuple[Told, Any]], **changes: Any) -> None:
        """What all shards have done counts from now on."""
        version, env_steps, _ = answers[0][0]
        slices = tuple(published for _, published in answers)
        self._now = self._now._replace(version=version, env_steps=env_steps, slices=slices, **changes)
        self._doubtful.clear()

    # -- what shards are asked ---------------------------------------------------------------------------

    def _ready(self) -> None:
        """Have all shards be what counts: those that were started have been told nothing yet, and some may
        have made a step that does not count, or part of one. (An interruption is no loss: no strike.)"""
        asked: dict[int, tuple[Any, Any]] = {}
        for s in sorted(self._doubtful):
            try:
                self._wait(s, self._start(s), "start")
                asked[s] = self._replay(s)
            except ShardLost as error:
                self._restore(s, str(error))
        for s, answers in asked.items():
            try:
                self._stands(s, *answers)
            except ShardLost as error:
                self._restore(s, str(error))

    def _each(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        """What all shards give, asked at once; they are none the other for it."""
        ask = lambda s: self._fleet.call(s, method, *arguments(s))  # noqa: E731
        asked = {s: ask(s) for s in self._all}
        return [self._answer_of(s, handle, method, ask) for s, handle in asked.items()]

    def _for_two(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]], what: str = ""
    ) -> list[tuple[Any, Any]]:
        """Likewise of what changes them, where the second of two values is only published: (the first, a
        handle). They are doubtful until it counts. what: is done there, as far as it is to be compiled; the
        method, unless told."""
        what = what or method
        second: dict[int, Any] = {}

        def ask(s: int) -> Any:
            self._doubtful.add(s)
            first, second[s] = self._fleet.call_for_two(s, method, *arguments(s))
            return first

        asked = {s: ask(s) for s in self._all}
        return [(self._answer_of(s, handle, what, ask), second[s]) for s, handle in asked.items()]

    def _answer_of(self, s: int, handle: Any, what: str, again: Callable[[int], Any]) -> Any:
        """A shard's answer. One that is lost is made again, and then asked again."""
        while True:
            try:
                return self._wait(s, handle, what)
            except ShardLost as error:
                self._restore(s, str(error))
                handle = again(s)

    def _wait(self, s: int, handle: Any, what: str) -> Any:
        begun, known = self._clock(), what not in ("start", "replay") and (s, what) in self._done
        patience = SLACK_SECONDS + PATIENCE * max(self._longest, default=0.0) if known else START_SECONDS
        if handle not in self._fleet.wait([handle], patience):
            raise ShardLost(f"silent for {patience:.1f} s")
        try:
            value = self._fleet.take(handle)
        except InputLost as error:
            raise ShoalError(
                f"a gradient went down with the machine that it was on ({error}): go on from the last "
                "checkpoint"
            ) from None
        if known:
            self._longest.append(self._clock() - begun)
        self._done.add((s, what))
        return value

    # -- shards that are lost ----------------------------------------------------------------------------

    def _restore(self, s: int, reason: str) -> None:
        """Make a lost shard again, with all steps that count."""
        begun = self._clock()
        self._doubtful.add(s)
        while True:
            self._losses[s] += 1
            if self._losses[s] >= self._strikes:
                raise ShoalError(f"parameter shard {s} failed {self._losses[s]} times in a row: {reason}")
            self._done = {(shard, what) for shard, what in self._done if shard != s}
            self._started.pop(s, None)
            self._fleet.kill(s)
            try:
                self._wait(s, self._start(s), "start")
                self._stands(s, *self._replay(s))
                break
            except ShardLost as error:
                reason = str(error)
        seconds = self._clock() - begun
        self.recovery.count += 1
        self.recovery.seconds += seconds
        self.recovery.longest = max(self.recovery.longest, seconds)
        self.events.append(f"parameter shard {s} lost ({reason}); it has all again, after {seconds:.1f} s")

    def _start(self, s: int) -> Any:
        """The handle of its start."""
        if s not in self._started:
            self._started[s] = self._fleet.start(s)
        return self._started[s]

    def _replay(self, s: int) -> tuple[Any, Any]:
        """Handles: the last answer, and what is published with it."""
        last = self._fleet.call_for_two(s, "load", self._now.base_version, self._now.base[s])
        for done in self._now.log:
            last = self._fleet.call_for_two(s, "advance", *done.arguments(s))
        return last

    def _stands(self, s: int, told: Any, published: Any) -> None:
        """Wait for the last answer of `_replay`: the shard is what counts."""
        env_steps = self._wait(s, told, "replay").env_steps
        slices = (*self._now.slices[:s], published, *self._now.slices[s + 1 :])
        self._now = self._now._replace(env_steps=env_steps, slices=slices)
        self._doubtful.discard(s)

    # -- what is said of it ------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        return {
            "shards": self._shares.count,
            "shard_restores": self.recovery.count,
            "shard_recovery": self.recovery.longest,
        }

    def take_events(self) -> list[str]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self._fleet.close()
