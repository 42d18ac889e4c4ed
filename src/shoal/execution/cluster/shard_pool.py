"""The supervisor of replay shards: what was inserted stays, whatever happens to a shard.

    insert(group, fragment, what is stored) ... request(K minibatches) -> drawn() -> give(priorities)

It divides each draw among all groups of all shards that live, by what their priorities sum to, and asks all
shards at once. The fragments that a shard's rings still hold stay in the object store (or in what came from a
checkpoint), and now and then it says their priorities: from these a lost shard is made anew, and all that is
lost with it are the priorities that were learned since. Until it is back, draws are made from the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shoal.errors import ShoalError
from shoal.execution.cluster.draws import Draw, divided
from shoal.execution.cluster.shard_fleet import InputLost, ShardFleet, ShardLost
from shoal.execution.cluster.shards import Drawn, Found, Stock, Wanted
from shoal.types import Array, Key

START_SECONDS = 120.0  # until a shard must be ready, or have loaded or saved a ring
SLACK_SECONDS, PATIENCE = 3.0, 10.0  # a shard is hung after 3 s and 10 times the longest answer of late
STRIKES = 3  # losses of a shard in a row, without a word of it between them
RANK_EVERY = 64  # insertions into a shard until it says its priorities again
LOOK_AHEAD = 64  # answers of one shard that are waited for at a time


@dataclass(eq=False)
class _Kept:
    fragment: int
    stored: Any
    inserted: bool = False


@dataclass
class _Group:
    """base: what a checkpoint had of it, as long as some of that is in the ring. kept: what was given since,
    as far as the ring holds it. in_flight: how many of these are not known to be inserted."""

    shard: int
    base: Any = None
    kept: deque[_Kept] = field(default_factory=deque)
    in_flight: int = 0


class _Call(NamedTuple):
    handle: Any
    answered: Callable[[Any], None]
    group: int | None = None  # of an insertion
    kept: _Kept | None = None
    slow: bool = False


@dataclass
class _Shard:
    calls: deque[_Call] = field(default_factory=deque)
    since: float = 0.0  # when the first of them became the first
    life: int = 0
    ready: bool = False  # it has all that it should have
    losses: int = 0
    begun: float = 0.0
    stocks: dict[int, Stock] = field(default_factory=dict)
    rankings: Any = field(default_factory=dict)  # the last that it told
    unranked: int = 0
    found: list[Found] = field(default_factory=list)


class Settled(NamedTuple):
    """What became of a fragment. Lost: what it held is gone; it may have been inserted before that."""

    group: int
    fragment: int
    lost: bool
    before: bool  # it had been inserted


class ShardPool:
    """shards: how many; group g belongs to shard g % shards. ring: fragments that a group's ring holds."""

    def __init__(
        self,
        fleet: ShardFleet,
        shards: int,
        groups: int,
        ring: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._ring, self._clock = fleet, ring, clock
        self._groups = {g: _Group(g % shards) for g in range(groups)}
        self._shards = {s: _Shard() for s in range(shards)}
        self._draws: deque[Draw] = deque()
        self._longest: deque[float] = deque(maxlen=200)
        self._settled: list[Settled] = []
        self.restores = 0
        self.events: list[str] = []
        for s in self._shards:
            self._start(s)

    # -- what goes in ------------------------------------------------------------------------------------

    def insert(self, group: int, fragment: int, stored: Any) -> None:
        """stored: a `Stored`, or the fleet's handle for one. What becomes of it, `settled` tells."""
        state = self._groups[group]
        state.kept.append(_Kept(fragment, stored))
        state.in_flight += 1
        self._insert(group, state.kept[-1])
        shard = self._shards[state.shard]
        shard.unranked += 1
        if shard.unranked >= RANK_EVERY:
            shard.unranked = 0
            self._call(state.shard, "rankings", answered=lambda value: setattr(shard, "rankings", value))

    def in_flight(self, group: int) -> int:
        """Fragments of a group that were given and of which it is not known what became."""
        return self._groups[group].in_flight

    def settled(self) -> list[Settled]:
        """What became of fragments, since the last call."""
        settled, self._settled = self._settled, []
        return settled

    # -- draws -------------------------------------------------------------------------------------------

    def rows(self) -> int:
        """What can be drawn from, in the shards that live: rows, or sequences."""
        return sum(stock.rows for stock in self._stocks().values())

    @property
    def draws(self) -> int:
        """Draws that were requested and not taken."""
        return len(self._draws)

    def request(self, key: Key, minibatches: int, batch_size: int) -> bool:
        """Ask all shards for their parts of a draw, and bring them what was given; False where there is
        nothing to draw from."""
        stocks = {g: stock for g, stock in self._stocks().items() if stock.mass > 0}
        if not stocks:
            return False
        mass = np.array([stock.mass for stock in stocks.values()])
        rows, total = sum(stock.rows for stock in stocks.values()), mass.sum()
        counts = dict(zip(stocks, divided(key, mass, batch_size), strict=True))
        scale = {g: float(total / (rows * stock.mass)) for g, stock in stocks.items()}
        draw = Draw({}, {}, {})
        for s, shard in self._shards.items():
            mine = {g: int(n) for g, n in counts.items() if n and self._groups[g].shard == s}
            if mine:
                draw.counts[s], draw.lives[s], draw.parts[s] = mine, shard.life, None
                wanted = Wanted(key, minibatches, batch_size, mine, {g: scale[g] for g in mine})
                self._exchange(s, wanted, draw)
        self._draws.append(draw)
        self.flush()
        return True

    def drawn(self) -> Draw | None:
        """The draw that was requested first, if all shards have answered."""
        return self._draws.popleft() if self._draws and self._draws[0].whole else None

    def give(self, draw: Draw, priorities: Array) -> None:
        """New priorities [K, N] of a draw, to be sent with the next `request`, or by `flush`."""
        at = 0
        for s, counts in draw.counts.items():
            part, shard = draw.parts[s], self._shards[s]
            assert part is not None
            width, inside = sum(counts.values()), 0
            given = np.asarray(priorities)[:, at : at + width]
            at += width
            if shard.life != draw.lives[s]:  # the places are other ones now
                continue
            for g, n in counts.items():
                columns = slice(inside, inside + n)
                index = part.minibatches.index[:, columns]
                shard.found.append(Found(g, part.inserted[g], index, given[:, columns]))
                inside += n

    def flush(self) -> None:
        """Send what was given to the shards that have not been told."""
        for s, shard in self._shards.items():
            if shard.found:
                self._exchange(s, None, None)

    # -- answers -----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether answers of shards are outstanding."""
        return any(shard.calls for shard in self._shards.values())

    def poll(self, timeout: float) -> None:
        """Take in what shards have answered; wait for it, if need be, so many seconds."""
        heads = [c.handle for shard in self._shards.values() for c in list(shard.calls)[:LOOK_AHEAD]]
        ready = self._fleet.wait(heads, timeout)
        for s, shard in list(self._shards.items()):
            try:
                while shard.calls and shard.calls[0].handle in ready:
                    self._take(shard, shard.calls[0])
                silent = self._clock() - shard.since
                if shard.calls and silent > self._patience(shard):
                    raise ShardLost(f"silent for {silent:.1f} s")
            except ShardLost as error:
                self._lose(s, str(error))

    def _take(self, shard: _Shard, call: _Call) -> None:
        try:
            value = self._fleet.take(call.handle)
        except InputLost as error:
            if call.kept is None or call.group is None:
                raise ShardLost(str(error)) from None
            group = self._groups[call.group]
            group.kept.remove(call.kept)
            group.in_flight -= not call.kept.inserted
            self._settled.append(Settled(call.group, call.kept.fragment, True, call.kept.inserted))
            self.events.append(f"fragment {call.kept.fragment} of group {call.group} is lost: {error}")
        else:
            call.answered(value)
        now = self._clock()
        if not call.slow:
            self._longest.append(now - shard.since)
            shard.losses *= not shard.ready
        shard.calls.popleft()
        shard.since = now

    def _patience(self, shard: _Shard) -> float:
        if not shard.ready or shard.calls[0].slow:
            return START_SECONDS
        return SLACK_SECONDS + PATIENCE * max(self._longest, default=0.0)

    # -- shards that come and go -------------------------------------------------------------------------

    def _start(self, s: int) -> None:
        """Have a shard with all that it should have."""
        shard = self._shards[s]
        shard.begun = self._clock()
        self._sent(s, _Call(self._fleet.start(s), lambda _: None, slow=True))
        if shard.rankings:  # first of all for the highest, which rows without a first priority get
            self._call(s, "rank", shard.rankings, answered=lambda _: None, slow=True)
        for g, group in self._groups.items():
            if group.shard == s:
                if group.base is not None:
                    self._call(s, "load", g, group.base, answered=self._stock(s), slow=True)
                for kept in group.kept:
                    self._insert(g, kept)

        def ready(stocks: dict[int, Stock]) -> None:
            shard.ready, shard.stocks = True, stocks
            if shard.life:
                seconds = self._clock() - shard.begun
                self.events.append(f"replay shard {s} has what it had again, after {seconds:.1f} s")

        self._call(s, "rank", shard.rankings, answered=ready, slow=True)

    def _lose(self, s: int, reason: str) -> None:
        """A shard is gone: what was asked of it is void, and another one gets what it had."""
        shard = self._shards[s]
        self._fleet.kill(s)
        losses = shard.losses + 1
        if losses >= STRIKES:
            raise ShoalError(f"replay shard {s} failed {losses} times in a row: {reason}")
        self._shards[s] = _Shard(life=shard.life + 1, losses=losses, rankings=shard.rankings)
        self._draws = deque(d for d in self._draws if d.parts.get(s, ()) is not None)
        self.restores += 1
        self.events.append(f"replay shard {s} lost ({reason}); it is made anew")
        self._start(s)

    # -- checkpoints -------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """All rings, once nothing is in flight to them, for a checkpoint."""
        self.flush()
        saved: dict[int, Any] = {}
        asked: dict[int, int] = {}
        while len(saved) < len(self._groups):
            for g, group in self._groups.items():
                life = self._shards[group.shard].life
                quiet = not any(other.in_flight for other in self._groups.values())
                if quiet and g not in saved and asked.get(g) != life:
                    asked[g] = life
                    put = lambda value, g=g: saved.__setitem__(g, value)  # noqa: E731
                    self._call(group.shard, "save", g, answered=put, slow=True)
            self.poll(1.0)
        return {str(g): saved[g] for g in sorted(saved)}

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        """What `save` gave, into shards that hold nothing. ShoalError where it does not fit."""
        for g, group in self._groups.items():
            under = f"{prefix}/{g}/"
            ring = {p.removeprefix(under): a for p, a in saved.items() if p.startswith(under)}
            group.base = self._fleet.put(ring)
            self._call(group.shard, "load", g, group.base, answered=self._stock(group.shard), slow=True)
        while self.waiting:
            self.poll(1.0)

    # -- how they do -------------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        alive = sum(shard.ready for shard in self._shards.values())
        return {"shards": alive, "shard_restores": self.restores}

    def take_events(self) -> list[str]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self._fleet.close()

    # -- within ------------------------------------------------------------------------------------------

    def _call(
        self, s: int, method: str, *arguments: Any, answered: Callable[[Any], None], slow: bool = False
    ) -> None:
        self._sent(s, _Call(self._fleet.call(s, method, *arguments), answered, slow=slow))

    def _sent(self, s: int, call: _Call) -> None:
        shard = self._shards[s]
        if not shard.calls:
            shard.since = self._clock()
        shard.calls.append(call)

    def _insert(self, g: int, kept: _Kept) -> None:
        group = self._groups[g]
        known = self._stock(group.shard)

        def answered(stocks: dict[int, Stock]) -> None:
            known(stocks)
            if not kept.inserted:
                kept.inserted = True
                group.in_flight -= 1
                self._settled.append(Settled(g, kept.fragment, False, False))
            while len(group.kept) > self._ring and group.kept[0].inserted:
                group.kept.popleft()
            if len(group.kept) >= self._ring:
                group.base = None

        handle = self._fleet.call(group.shard, "insert", g, kept.fragment, kept.stored)
        self._sent(group.shard, _Call(handle, answered, g, kept))

    def _exchange(self, s: int, wanted: Wanted | None, draw: Draw | None) -> None:
        shard = self._shards[s]
        found, shard.found = shard.found, []
        known = self._stock(s)

        def answered(value: tuple[dict[int, Stock], Drawn | None]) -> None:
            known(value[0])
            if draw is not None:
                draw.parts[s] = value[1]

        self._call(s, "exchange", found, wanted, answered=answered)

    def _stock(self, s: int) -> Callable[[dict[int, Stock]], None]:
        """Note what a shard says that it has."""
        return lambda stocks: setattr(self._shards[s], "stocks", stocks)

    def _stocks(self) -> dict[int, Stock]:
        """What all groups have, by group; those of a shard that is not ready have nothing."""
        ready = (shard for shard in self._shards.values() if shard.ready)
        found = {g: stock for shard in ready for g, stock in shard.stocks.items()}
        return dict(sorted(found.items()))
