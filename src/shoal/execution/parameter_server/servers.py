"""The supervisor of parameter shards: every step is made once on every shard, whatever happens to one.

    advance(steps: gradients by reference) -> all shards -> what they publish, by reference

All shards make the same steps in the same order, and a step counts when all of them have made it. What a
shard was before the last steps is kept here (a snapshot), and so are the references of all gradients since:
from these a lost shard is made again, to the bit, before anything else is done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

from shoal.errors import ShoalError
from shoal.execution.cluster.letters import opened, sealed
from shoal.execution.cluster.shard_fleet import InputLost, ShardFleet, ShardLost
from shoal.execution.parameter_server.shard import Step, Told
from shoal.execution.parameter_server.shares import Shares
from shoal.types import State

START_SECONDS = 120.0  # until a shard must be ready, or have compiled
SLACK_SECONDS, PATIENCE = 3.0, 10.0  # a shard is hung after 3 s and 10 times the longest answer of late
STEPS = 64  # between snapshots
BYTES = 256 << 20  # of gradients that are kept between snapshots, at most


class Work(NamedTuple):
    """A step, and for each of its gradients the fleet's handles of its parts, by shard."""

    step: Step
    gradients: tuple[Sequence[Any], ...] = ()


class _Done(NamedTuple):
    """Steps that all shards made, from this version on: a letter of them, and the parts of all gradients."""

    version: int
    letter: Any
    gradients: list[Sequence[Any]]

    def arguments(self, s: int) -> tuple[Any, ...]:
        """Of `ParameterShard.advance`."""
        return self.version, self.letter, *(parts[s] for parts in self.gradients)


@dataclass
class Recovery:
    """What became of lost shards: how many, and the seconds until each had all again."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0


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
        self._log: list[_Done] = []  # since the snapshot
        self._bytes, self._longest = 0, deque[float](maxlen=200)
        self._losses = dict.fromkeys(range(shares.count), 0)
        self._done: set[tuple[int, str]] = set()  # what each shard has done, and so compiled
        self._doubtful = False  # a step is being made
        self.version, self.env_steps = 0, 0
        self._slices: tuple[Any, ...] = ()
        self.events: list[str] = []
        self.recovery = Recovery()
        self.spent = 0.0  # seconds until steps were made
        self._base = [shares.cut(state, s) for s in self._all]
        self._base_version = 0
        self._starting = {s: fleet.start(s) for s in self._all}

    @property
    def _all(self) -> range:
        return range(self._shares.count)

    @property
    def slices(self) -> tuple[Any, ...]:
        """Handles of what all shards published, of this version."""
        self._ready()
        return self._slices

    # -- the state ---------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The whole State, NumPy leaves."""
        self._ready()
        return self._shares.join(self._each("save", lambda s: ()))

    def load(self, state: State) -> None:
        """Have this State instead."""
        self._ready()
        self._set_base([self._shares.cut(state, s) for s in self._all], self.version + 1)
        self._take_told(self._for_two("load", lambda s: (self._base_version, self._base[s])))

    def published(self) -> State:
        """The State less its optimizer's (), of this version, NumPy leaves."""
        self._ready()
        try:
            return self._received()
        except InputLost:  # a machine is gone; its shards may be found lost only now
            self._take_told(self._for_two("advance", lambda s: (self.version, ())))
            return self._received()

    def _received(self) -> State:
        return self._shares.received([opened(self._fleet.get(one)) for one in self._slices])

    def put(self, value: Any) -> Any:
        """A handle of something that workers may fetch."""
        return self._fleet.put(value)

    # -- steps -------------------------------------------------------------------------------------------

    def advance(self, work: Sequence[Work]) -> list[float]:
        """Make these steps, in order; when this returns they count, and `slices` are of after them. Returns
        the norm of the sum of the gradients for each step that has several."""
        self._ready()
        begun = self._clock()
        if self._norms:
            work = [self._with_norms(one) if one.step.pushes else one for one in work]
        letter = sealed(tuple(one.step for one in work))
        done = _Done(self.version, letter, [parts for one in work for parts in one.gradients])
        self._doubtful = True
        told = self._for_two("advance", done.arguments, _kinds(work))
        self._log.append(done)
        self._take_told(told)
        self._doubtful = False
        self.spent += self._clock() - begun
        self._losses = dict.fromkeys(self._all, 0)
        self._bytes += 4 * self._shares.size * sum(len(one.gradients) for one in work)
        if self.version - self._base_version >= self._every or self._bytes >= BYTES:
            self._set_base(self._each("save", lambda s: ()), self.version)
        shares = zip(*(answer.squares for answer, _ in told), strict=True)
        return [sqrt(sum(squares)) for squares in shares]

    def _with_norms(self, work: Work) -> Work:
        """The norms that the step takes, of all shards' squares, added up in their order."""
        letter = sealed((work.step,))
        found = self._each("squares", lambda s: (letter, *(parts[s] for parts in work.gradients)))
        norms = [sqrt(sum(squares)) for squares in zip(*found, strict=True)]
        return work._replace(step=work.step._replace(norms=norms))

    def _take_told(self, answers: list[tuple[Told, Any]]) -> None:
        self._slices = tuple(published for _, published in answers)
        self.version, self.env_steps, _ = answers[0][0]

    def _set_base(self, parts: list[State], version: int) -> None:
        self._base, self._base_version = parts, version
        self._log.clear()
        self._bytes = 0

    # -- what shards are asked ---------------------------------------------------------------------------

    def _ready(self) -> None:
        """Wait for shards that were started, and let them have what they should have."""
        if self._doubtful:  # Ctrl-C, perhaps: some shards have made a step that does not count
            self._doubtful = False
            for s in self._all:
                self._restore(s, "a step was interrupted")
        if self._starting:
            started, self._starting = self._starting, {}
            for s, handle in started.items():
                self._answer_of(s, handle, "start", lambda s: None)
            self._take_told(self._for_two("load", lambda s: (self._base_version, self._base[s])))

    def _each(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        """What all shards give, asked at once."""
        ask = lambda s: self._fleet.call(s, method, *arguments(s))  # noqa: E731
        asked = {s: ask(s) for s in self._all}
        return [self._answer_of(s, handle, method, ask) for s, handle in asked.items()]

    def _for_two(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]], what: str = ""
    ) -> list[tuple[Any, Any]]:
        """Likewise, where the second of two values is only published: (the first, a handle). what: is done
        there, as far as it is to be compiled; the method, unless told."""
        what = what or method
        second: dict[int, Any] = {}

        def ask(s: int) -> Any:
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
                if handle is None:  # it was only to be there
                    return None
            except InputLost as error:
                raise ShoalError(
                    f"a gradient went down with the machine that it was on ({error}): go on from the last "
                    "checkpoint"
                ) from None

    def _wait(self, s: int, handle: Any, what: str) -> Any:
        begun, known = self._clock(), (s, what) in self._done
        patience = SLACK_SECONDS + PATIENCE * max(self._longest, default=0.0) if known else START_SECONDS
        if handle not in self._fleet.wait([handle], patience):
            raise ShardLost(f"silent for {patience:.1f} s")
        value = self._fleet.take(handle)
        if known:
            self._longest.append(self._clock() - begun)
        self._done.add((s, what))
        return value

    # -- shards that are lost ----------------------------------------------------------------------------

    def _restore(self, s: int, reason: str) -> None:
        """Make a lost shard again, with all steps that count."""
        begun = self._clock()
        while True:
            self._losses[s] += 1
            if self._losses[s] >= self._strikes:
                raise ShoalError(f"parameter shard {s} failed {self._losses[s]} times in a row: {reason}")
            self._done = {(shard, what) for shard, what in self._done if shard != s}
            self._fleet.kill(s)
            try:
                self._wait(s, self._fleet.start(s), "start")
                self._replay(s)
                break
            except ShardLost as error:
                reason = str(error)
        seconds = self._clock() - begun
        self.recovery.count += 1
        self.recovery.seconds += seconds
        self.recovery.longest = max(self.recovery.longest, seconds)
        self.events.append(f"parameter shard {s} lost ({reason}); it has all again, after {seconds:.1f} s")

    def _replay(self, s: int) -> None:
        told, published = self._fleet.call_for_two(s, "load", self._base_version, self._base[s])
        for done in self._log:
            told, published = self._fleet.call_for_two(s, "advance", *done.arguments(s))
        self._wait(s, told, "replay")
        if self._slices:
            self._slices = (*self._slices[:s], published, *self._slices[s + 1 :])

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


def _kinds(work: Sequence[Work]) -> str:
    """What a shard compiles for it."""
    kinds = {"apply" if one.step.pushes else "" for one in work}
    return " ".join(sorted(kinds | {"observe" if one.step.seen is not None else "" for one in work}))
