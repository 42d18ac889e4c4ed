"""A replay shard: the memories of some env groups, each a ring of its own, and what is asked of them.

    runner --Stored--> insert          learner --Wanted--> draw --Drawn--> learner --Found--> reprioritize

A group has a ring for itself, so that windows of several steps and stacks of frames never cross groups.
Where a group's fragments do not follow one another, because one between them was dropped or lost, nothing is
learned across the seam.

Whoever asks divides a draw among groups by what their priorities sum to (`Stock`). A shard weights what it
draws by how likely it was drawn in fact, 1 / (all rows * probability), also where that sum has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal import replay
from shoal.checkpoint import restore
from shoal.keys import fold
from shoal.replay import Layout, Memory
from shoal.types import Key, Trajectory

NONE = -1  # the number of no fragment


class Stored(NamedTuple):
    """A fragment as it goes to its shard. trajectory: what a replay does not keep of it is (). priorities:
    float32 [T, B], first ones; None: the highest that any row of the group has had."""

    trajectory: Trajectory
    priorities: np.ndarray | None


class Stock(NamedTuple):
    """What can be drawn of a group. mass: the sum of its priorities, or rows where all are alike. rows: how
    many (or how many sequences)."""

    mass: float
    rows: int


class Wanted(NamedTuple):
    """K minibatches: counts says how many rows of each of these groups every one of them gets, of at most
    batch_size. scale: 1 / (all rows * the chance of that group), for weights."""

    key: Key
    minibatches: int
    batch_size: int
    counts: Mapping[int, int]
    scale: Mapping[int, float]


class Drawn(NamedTuple):
    """minibatches: Transitions or Sequences, leaves [K, n, ...], the groups side by side in the order of
    `Wanted.counts`. inserted: how many fragments each group had taken in until then."""

    minibatches: Any
    inserted: dict[int, int]


class Found(NamedTuple):
    """New priorities for rows that were drawn from a group: index, priorities [K, n]; see Drawn.inserted."""

    group: int
    inserted: int
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.index)
    priorities: np.ndarray


class Ranking(NamedTuple):
    """The priorities of a group's rows by the fragments' numbers: fragments int64 [F], priorities float32
    [F, units of a fragment] (0: cannot be drawn), top as in replay.memory.Priorities."""

    fragments: np.ndarray
    priorities: np.ndarray
    top: np.float32


@dataclass
class _Ring:
    """fragments: int64 [F], the number of the fragment in each place of the ring. inserted: how many so far.
    broken: bool [B], where the row that comes next does not follow the one before it."""

    memory: Memory
    fragments: np.ndarray
    inserted: int
    broken: np.ndarray


class Shard:
    """layout: of one group's ring. form: a Stored.trajectory of anything with shape and dtype."""

    def __init__(self, layout: Layout, form: Trajectory) -> None:
        self._layout, self._form = layout, form
        self._rings: dict[int, _Ring] = {}

    def insert(self, group: int, fragment: int, stored: Stored) -> dict[int, Stock]:
        """Take a fragment in, unless it or a later one of its group is here."""
        ring = self._ring(group)
        newest = int(ring.fragments.max())
        if fragment > newest:
            if newest != NONE and fragment != newest + 1:
                ring.broken = np.ones_like(ring.broken)
            place = int(ring.memory.head) // self._layout.fragment
            trajectory, ring.broken = without_seam(stored.trajectory, ring.broken, self._layout.frames)
            ring.memory = replay.insert(self._layout, ring.memory, trajectory, stored.priorities)
            ring.fragments[place] = fragment
            ring.inserted += 1
        return self._stocks()

    def exchange(
        self, found: Sequence[Found], wanted: Wanted | None
    ) -> tuple[dict[int, Stock], Drawn | None]:
        """Take in new priorities, then draw."""
        for new in found:
            ring = self._ring(new.group)
            given = np.where(self._replaced(ring, new), np.float32(np.nan), new.priorities)
            count = given.shape[0]
            ring.memory = replay.reprioritize(self._layout, ring.memory, new.index, given, count)
        drawn = None if wanted is None else self._draw(wanted)
        return self._stocks(), drawn

    def rankings(self) -> dict[int, Ranking]:
        """All priorities; `rank` gives them to a shard with the same fragments, or some of them."""
        return (
            {group: self._ranking(ring) for group, ring in self._rings.items()} if self._prioritized else {}
        )

    def rank(self, rankings: Mapping[int, Ranking]) -> dict[int, Stock]:
        for group, ranking in rankings.items():
            ring = self._ring(group)
            known = {int(number): row for row, number in enumerate(ranking.fragments) if number != NONE}
            places = [i for i, number in enumerate(ring.fragments) if int(number) in known]
            if places:
                given = ranking.priorities[[known[int(ring.fragments[i])] for i in places]]
                given = np.where(given > 0, given, np.float32(np.nan))
                each = given.shape[1]
                index = np.asarray(places)[:, None] * each + np.arange(each)
                ring.memory = replay.reprioritize(self._layout, ring.memory, index, given, len(places))
            priorities = ring.memory.priorities
            top = np.maximum(priorities.top, ranking.top)
            ring.memory = ring.memory._replace(priorities=priorities._replace(top=top))
        return self._stocks()

    def save(self, group: int) -> dict[str, Any]:
        """A group's ring for a checkpoint: views of it, so write them before anything is changed."""
        ring = self._ring(group)
        memory = replay.save(self._layout, ring.memory)
        return {"memory": memory, "order": {"fragments": ring.fragments, "broken": ring.broken}}

    def load(self, group: int, saved: Mapping[str, np.ndarray]) -> dict[int, Stock]:
        """What `save` gave, by slash paths. ShoalError where it does not fit."""
        ring = self._ring(group)
        order = restore({"fragments": ring.fragments, "broken": ring.broken}, saved, "order")
        ring.memory = replay.load(self._layout, ring.memory, saved, "memory")
        ring.fragments, ring.broken = order["fragments"].copy(), order["broken"].copy()
        return self._stocks()

    @property
    def _prioritized(self) -> bool:
        return self._layout.prioritized

    def _ring(self, group: int) -> _Ring:
        if group not in self._rings:
            memory = replay.empty(self._layout, self._form, np)
            places = self._layout.rows // self._layout.fragment
            nothing = np.full(places, NONE, np.int64)
            self._rings[group] = _Ring(memory, nothing, 0, np.zeros(self._layout.envs, bool))
        return self._rings[group]

    def _stocks(self) -> dict[int, Stock]:
        return {group: self._stock(ring.memory) for group, ring in self._rings.items()}

    def _stock(self, memory: Memory) -> Stock:
        if self._prioritized:
            return Stock(float(memory.priorities.tree[1]), int(memory.priorities.live))
        count = int(replay.units(self._layout, memory))
        return Stock(float(count), count)

    def _draw(self, wanted: Wanted) -> Drawn:
        parts = []
        for group, count in wanted.counts.items():
            ring = self._ring(group)
            # As many words whatever the count, so that they are compiled once.
            words = replay.host_words(
                fold(wanted.key, group), 2 * wanted.minibatches * wanted.batch_size
            ).reshape(2, wanted.minibatches, wanted.batch_size)
            part = replay.draw_by(self._layout, ring.memory, words[:, :, :count])
            if self._prioritized:  # so far 1 / (the group's rows * the probability within the group)
                rows = np.float32(ring.memory.priorities.live)
                part = part._replace(weight=part.weight * rows * np.float32(wanted.scale[group]))
            parts.append(part)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
        return Drawn(joined, {group: self._ring(group).inserted for group in wanted.counts})

    def _replaced(self, ring: _Ring, found: Found) -> np.ndarray:
        """Whether other rows have taken the place of those that were drawn."""
        places = ring.fragments.shape[0]
        each = self._layout.units // places
        newest = int(ring.memory.head) // self._layout.fragment - 1
        age = (newest - found.index // each) % places
        return age < ring.inserted - found.inserted

    def _ranking(self, ring: _Ring) -> Ranking:
        priorities = ring.memory.priorities
        size = priorities.tree.shape[0] // 2
        leaves = priorities.tree[size : size + self._layout.units]
        return Ranking(ring.fragments.copy(), leaves.reshape(len(ring.fragments), -1).copy(), priorities.top)


def without_seam(trajectory: Trajectory, broken: np.ndarray, frames: int) -> tuple[Trajectory, np.ndarray]:
    """(the fragment, marked so that nothing is learned across its beginning, where it is still broken after).

    broken: bool [B], where the first row does not follow the one stored before it. An action whose next row
    is `first` teaches nothing, so that row is marked so. With stacked frames the frames before it are not
    there either: all rows until the next episode are marked, each with a stack as an episode begins with.
    """
    if not broken.any():
        return trajectory, broken
    first = np.asarray(trajectory.first)
    if frames == 1:
        marked = first.copy()
        marked[0] |= broken
        return trajectory._replace(first=marked), np.zeros_like(broken)
    whole = np.logical_or.accumulate(first, axis=0) | ~broken
    stacks = np.asarray(trajectory.obs.policy)
    seen = whole.reshape(*whole.shape, *(1,) * (stacks.ndim - 2))
    policy = np.where(seen, stacks, stacks[:, :, -1:])
    obs = trajectory.obs._replace(policy=policy)
    return trajectory._replace(obs=obs, first=first | ~whole), ~whole[-1]
