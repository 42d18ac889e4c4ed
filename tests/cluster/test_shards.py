"""Replay shards against plain loops and plain sums: what they hold, how they are drawn from, what returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_histories import History, history, layout

from shoal.errors import ShoalError
from shoal.execution.cluster.draws import Draw, divided
from shoal.execution.cluster.shard_fleet import InlineShards, InputLost, ShardLost
from shoal.execution.cluster.shard_pool import ShardPool
from shoal.execution.cluster.shards import Found, Shard, Stored, Wanted
from shoal.keys import key_for
from shoal.replay import Layout

few = settings(max_examples=25, deadline=None, derandomize=True)
ROWS = 3  # of a fragment


def stored(past: History, fragment: int, priorities: np.ndarray | None = None) -> Stored:
    return Stored(past.fragment(fragment * ROWS, ROWS), priorities)


def shard_of(shape: Layout, past: History) -> Shard:
    return Shard(shape, past.fragment(0, ROWS))


def expected(shape: Layout, past: History, fragments: Sequence[int]) -> dict[tuple[int, int], dict[str, Any]]:
    """Every transition that can be drawn once these fragments are in, by (row of the history, environment):
    found by walking along the rows, which end wherever the next fragment is not the one that follows."""
    rows = [f * ROWS + i for f in fragments for i in range(ROWS)]
    oldest = max(0, len(rows) - (shape.rows - 1))
    found = {}
    for b in range(shape.envs):
        for i in range(oldest, len(rows)):
            t = rows[i]
            follows = i + 1 == len(rows) or rows[i + 1] == t + 1
            if past.first[t + 1, b] or not follows:
                continue
            if shape.frames > 1:
                begin = i  # of what is known of the episode without a gap
                while not past.first[rows[begin], b] and begin > 0 and rows[begin - 1] == rows[begin] - 1:
                    begin -= 1
                if not past.first[rows[begin], b] and begin > 0:
                    continue
                needed = i  # of the stack's frames, the oldest
                for _ in range(shape.frames - 1):
                    if needed >= oldest and not past.first[rows[needed], b]:
                        needed -= 1
                if needed < oldest:
                    continue
            rewards, j = [], i
            while j < len(rows) and len(rewards) < shape.n_step and rows[j] == t + j - i:
                goes_on = j + 1 == len(rows) or rows[j + 1] == rows[j] + 1
                if past.first[rows[j] + 1, b] or not goes_on:
                    break
                rewards.append(past.reward[rows[j], b])
                j += 1
                if past.terminated[rows[j - 1], b]:
                    break
            found[t, b] = {
                "reward": np.array(rewards + [0.0] * (shape.n_step - len(rewards)), np.float32),
                "steps": len(rewards),
                "obs": past.stack(t, b),
                "next_obs": past.stack(t + len(rewards), b),
                "action": past.action[t, b],
            }
    return found


@few
@given(
    seed=st.integers(0, 10**6),
    envs=st.integers(1, 3),
    frames=st.sampled_from([1, 1, 3]),
    prioritized=st.booleans(),
    n_step=st.integers(1, 4),
    keep=st.lists(st.booleans(), min_size=1, max_size=16),
)
def test_nothing_is_learned_across_a_seam(
    seed: int, envs: int, frames: int, prioritized: bool, n_step: int, keep: list[bool]
) -> None:
    shape = layout(
        envs, frames, rows=ROWS, capacity=envs * max(8, n_step), n_step=n_step, prioritized=prioritized
    )
    past = history(seed, len(keep) * ROWS, envs, frames)
    fragments = [i for i, kept in enumerate(keep) if kept]
    shard = shard_of(shape, past)
    stock = {}
    for f in fragments:
        stock = shard.insert(5, f, stored(past, f))
        assert shard.insert(5, f, stored(past, f)) == stock  # a second time changes nothing
    wanted = expected(shape, past, fragments)
    assert not prioritized or not fragments or stock[5].rows == len(wanted)
    ask = Wanted(key_for(seed, "draw"), 2, 400, {5: 400}, {5: 1.0})
    _, drawn = shard.exchange([], ask)
    assert drawn is not None
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn.minibatches)
    real = flat.weight > 0
    newest = flat.obs.policy[:, -1] if frames > 1 else flat.obs.policy
    places = [(int(t) - 1, int(b) - 1) for t, b in newest]
    assert {p for p, good in zip(places, real, strict=True) if good} == set(wanted)
    for j in np.flatnonzero(real)[:200]:
        row = wanted[places[j]]
        np.testing.assert_array_equal(flat.obs.policy[j], row["obs"])
        np.testing.assert_array_equal(flat.next_obs.policy[j], row["next_obs"])
        np.testing.assert_array_equal(flat.reward[j], row["reward"])
        assert (flat.steps[j], flat.action["a"][j]) == (row["steps"], row["action"])


def test_new_priorities_do_not_reach_rows_that_have_replaced_those_drawn() -> None:
    shape = layout(1, rows=ROWS, capacity=12, prioritized=True)
    past = history(0, 100, 1, ends=0.0)
    shard = shard_of(shape, past)
    for f in range(10):
        shard.insert(0, f, stored(past, f))
    _, drawn = shard.exchange([], Wanted(key_for(0, "x"), 1, 64, {0: 64}, {0: 1.0}))
    assert drawn is not None
    rows = drawn.minibatches.obs.policy[0, :, 0].astype(int) - 1
    shard.insert(0, 10, stored(past, 10))
    given = np.full((1, 64), 7.0, np.float32)
    shard.exchange([Found(0, drawn.inserted[0], drawn.minibatches.index, given)], None)
    ranking = shard.rankings()[0]
    kept = {
        f * ROWS + i: ranking.priorities[place, i]
        for place, f in enumerate(ranking.fragments)
        for i in range(ROWS)
    }
    for row in set(rows):
        if kept.get(row):
            assert kept[row] == 7.0
    assert [kept[10 * ROWS + i] for i in range(ROWS)] == [1.0] * ROWS


# Several shards


class Flaky(InlineShards):
    """Shards that can be killed, or hang, and inputs that can be lost."""

    def __init__(self, shape: Layout, past: History) -> None:
        super().__init__(lambda number: shard_of(shape, past))
        self.dead: set[int] = set()
        self.silent: set[int] = set()
        self.gone: list[Any] = []
        self.kills = 0

    def start(self, shard: int) -> Any:
        self.dead.discard(shard)
        self.silent.discard(shard)
        return self._of(shard, super().start(shard))

    def call(self, shard: int, method: str, *arguments: Any) -> Any:
        if shard in self.dead:
            return self._of(shard, InputLost("unreachable"))
        if method == "insert" and any(arguments[2] is x for x in self.gone):
            return self._of(shard, InputLost("its node is gone"))
        return self._of(shard, super().call(shard, method, *arguments))

    def _of(self, shard: int, answer: Any) -> Any:
        return shard, answer

    def wait(self, handles: Sequence[Any], timeout: float) -> set[Any]:
        return {h for h in handles if h[0] not in self.silent}

    def take(self, handle: Any) -> Any:
        shard, answer = handle
        if shard in self.dead:
            raise ShardLost("killed")
        if isinstance(answer, Exception):
            raise answer
        return super().take(answer)

    def kill(self, shard: int) -> None:
        self.kills += 1
        super().kill(shard)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


GROUPS = 3


def filled(
    fleet: Flaky, shape: Layout, past: History, fragments: int, clock: Clock | None = None
) -> tuple[ShardPool, dict[tuple[int, int, int], float]]:
    """A pool of two shards and three groups, and the priority of every (group, row, environment)."""
    pool = ShardPool(fleet, 2, GROUPS, shape.rows // ROWS, clock or Clock())
    rng = np.random.default_rng(3)
    priorities = {}
    for f in range(fragments):
        for g in range(GROUPS):
            given = (rng.random((ROWS, shape.envs)) * (g + 1) + 0.05).astype(np.float32)
            pool.insert(g, f, stored(past, f, given))
            pool.poll(0.0)
            for (i, b), p in np.ndenumerate(given):
                priorities[g, f * ROWS + i, b] = float(p)
    kept = expected(shape, past, range(fragments))
    return pool, {(g, t, b): p for (g, t, b), p in priorities.items() if (t, b) in kept}


def take(pool: ShardPool, key: Any, minibatches: int, size: int) -> Draw:
    assert pool.request(key, minibatches, size)
    pool.poll(0.0)
    draw = pool.drawn()
    assert draw is not None
    return draw


def places_of(draw: Draw, shape: Layout) -> list[tuple[int, int, int]]:
    """(group, row, environment) of each row drawn, [K, N] flattened by columns of groups."""
    columns = [g for counts in draw.counts.values() for g, n in counts.items() for _ in range(n)]
    rows = draw.minibatches().obs.policy.astype(int) - 1
    assert rows.shape[1] == len(columns)
    return [(columns[j], int(t), int(b)) for one in rows for j, (t, b) in enumerate(one)]


def counted(pool: ShardPool, shape: Layout, draws: int) -> tuple[dict[Any, int], dict[Any, set[float]]]:
    """How often each place is drawn, and with which weights."""
    counts: dict[Any, int] = {}
    weights: dict[Any, set[float]] = {}
    for i in range(draws):
        draw = take(pool, key_for(1, "draws", i), 4, 32)
        for place, weight in zip(places_of(draw, shape), draw.minibatches().weight.ravel(), strict=True):
            counts[place] = counts.get(place, 0) + 1
            weights.setdefault(place, set()).add(float(weight))
    return counts, weights


def check_proportional(pool: ShardPool, shape: Layout, priorities: dict[Any, float]) -> None:
    draws = 100
    counts, weights = counted(pool, shape, draws)
    total, n = sum(priorities.values()), draws * 4 * 32
    assert set(counts) <= set(priorities)
    assert pool.rows() == len(priorities)
    mean = np.array([n * p / total for p in priorities.values()])
    seen = np.array([counts.get(place, 0) for place in priorities])
    chi_square = float(((seen - mean) ** 2 / mean).sum())
    # Stratified draws scatter less than independent ones, whose bound this is: mean + 4 standard deviations.
    assert chi_square < len(mean) - 1 + 4 * np.sqrt(2 * len(mean))
    for place, found in weights.items():
        right = total / (len(priorities) * priorities[place])
        np.testing.assert_allclose(sorted(found), right, rtol=2e-6)


def prioritized(envs: int = 2, capacity: int = 24) -> Layout:
    return layout(envs, rows=ROWS, capacity=capacity, prioritized=True)


def test_draws_follow_the_priorities_of_all_groups_of_all_shards() -> None:
    shape, past = prioritized(), history(0, 60, 2)
    pool, priorities = filled(Flaky(shape, past), shape, past, 6)
    check_proportional(pool, shape, priorities)
    draw = take(pool, key_for(0, "change"), 4, 32)
    given = np.random.default_rng(0).random((4, 32)).astype(np.float32) * 3 + 0.1
    best: dict[Any, float] = {}
    for place, p in zip(places_of(draw, shape), given.ravel(), strict=True):
        best[place] = max(best.get(place, 0.0), float(p))
    pool.give(draw, given)
    pool.flush()
    pool.poll(0.0)
    check_proportional(pool, shape, priorities | best)


def test_weights_are_right_also_where_priorities_changed_after_the_draw_was_divided() -> None:
    """The chance of a row is then that of its group as it was, times its own share of the group as it is."""
    shape, past = prioritized(), history(0, 60, 2)
    pool, priorities = filled(Flaky(shape, past), shape, past, 6)
    sums = {g: sum(p for (h, _, _), p in priorities.items() if h == g) for g in range(GROUPS)}
    first = take(pool, key_for(0, "a"), 4, 32)
    raised = dict(priorities)
    pool.give(first, np.full((4, 32), 5.0, np.float32))
    raised |= dict.fromkeys(places_of(first, shape), 5.0)
    draw = take(pool, key_for(0, "b"), 4, 32)  # goes with what was given, and was divided before it
    now = {g: sum(p for (h, _, _), p in raised.items() if h == g) for g in range(GROUPS)}
    for place, weight in zip(places_of(draw, shape), draw.minibatches().weight.ravel(), strict=True):
        g = place[0]
        chance = sums[g] / sum(sums.values()) * raised[place] / now[g]
        np.testing.assert_allclose(weight, 1 / (len(priorities) * chance), rtol=1e-5)


@few
@given(st.integers(0, 10**6), st.lists(st.floats(0, 10), min_size=1, max_size=9), st.integers(1, 70))
def test_a_draw_is_divided_in_proportion(seed: int, mass: list[float], n: int) -> None:
    total = sum(mass)
    if not total:
        return
    counts = divided(key_for(seed, "x"), np.array(mass), n)
    assert counts.sum() == n and len(counts) == len(mass)
    for count, m in zip(counts, mass, strict=True):
        assert abs(count - n * m / total) < 2
        assert m or not count


def contents(pool: ShardPool, shape: Layout) -> dict[Any, set[float]]:
    """Which places are drawn, with their weights: by so many draws that all are."""
    return counted(pool, shape, 60)[1]


def test_a_killed_shard_is_made_anew_with_all_it_had() -> None:
    shape, past = prioritized(1, 12), history(1, 300, 1)
    fleet = Flaky(shape, past)
    pool, _ = filled(fleet, shape, past, 70)  # more than the rings hold, and than it takes to tell priorities
    before = contents(pool, shape)
    told = pool.settled()
    assert len(told) == 3 * 70 and not any(one.lost for one in told)
    fleet.dead.add(0)
    assert pool.request(key_for(0, "lost"), 2, 8)
    pool.insert(0, 70, stored(past, 70, np.ones((ROWS, 1), np.float32)))
    pool.poll(0.0)
    assert pool.restores == 1 and pool.draws == 0  # what was asked of the dead one is void
    assert pool.in_flight(0) == 1
    pool.poll(0.0)
    assert pool.in_flight(0) == 0 and [(s.group, s.fragment, s.lost) for s in pool.settled()] == [
        (0, 70, False)
    ]
    after = contents(pool, shape)
    assert {p for p in after if p[0] == 1} == {p for p in before if p[0] == 1}
    assert {p for p in before if p[0] == 2} == {p for p in after if p[0] == 2}
    newest = expected(shape, past, range(71))
    assert {(t, b) for g, t, b in after if g == 0} == set(newest)


def test_priorities_come_back_as_they_were_told_last() -> None:
    shape, past = prioritized(2, 60), history(1, 300, 2)
    fleet = Flaky(shape, past)
    pool, _ = filled(fleet, shape, past, 31)  # 62 insertions into the shard of groups 0 and 2
    draw = take(pool, key_for(0, "x"), 4, 32)
    pool.give(draw, np.full((4, 32), 9.0, np.float32))
    pool.flush()
    pool.poll(0.0)
    for f in (31, 32):
        for g in range(GROUPS):
            pool.insert(g, f, stored(past, f))
    pool.poll(0.0)
    before = pool._stocks()
    fleet.dead.add(0)
    pool.request(key_for(0, "y"), 1, 8)
    pool.poll(0.0)
    assert set(pool._stocks()) == {1}  # until it is back, draws are made from the others
    take(pool, key_for(0, "z"), 1, 8)
    after = pool._stocks()
    for g in range(GROUPS):
        assert after[g].rows == before[g].rows
        np.testing.assert_allclose(after[g].mass, before[g].mass, rtol=1e-5)


def test_a_silent_shard_is_replaced_and_one_that_fails_again_and_again_ends_the_run() -> None:
    shape, past, clock = prioritized(), history(0, 60, 2), Clock()
    fleet = Flaky(shape, past)
    pool, _ = filled(fleet, shape, past, 3, clock)
    fleet.silent.add(1)
    pool.request(key_for(0, "x"), 1, 8)
    pool.poll(0.0)
    assert pool.restores == 0
    clock.now += 60.0
    pool.poll(0.0)
    assert pool.restores == 1 and fleet.kills == 1
    pool.poll(0.0)
    assert pool.take_events()[-1] == "replay shard 1 has what it had again, after 0.0 s"
    assert take(pool, key_for(0, "y"), 1, 8).counts.keys() == {0, 1}
    fleet.start = lambda shard: (fleet.dead.add(shard), (shard, None))[1]  # pyright: ignore
    fleet.dead.add(1)
    pool.request(key_for(0, "z"), 1, 8)
    with pytest.raises(ShoalError, match="replay shard 1 failed 3 times in a row: killed"):
        for _ in range(5):
            pool.poll(0.0)


def test_what_is_lost_with_a_node_is_said_and_leaves_a_seam() -> None:
    shape, past = prioritized(2, 60), history(0, 60, 2, ends=0.0)
    fleet = Flaky(shape, past)
    pool, _ = filled(fleet, shape, past, 3)
    pool.settled()
    gone = stored(past, 3)
    fleet.gone.append(gone)
    pool.insert(0, 3, gone)
    pool.insert(0, 4, stored(past, 4))
    pool.poll(0.0)
    assert [tuple(s) for s in pool.settled()] == [(0, 3, True, False), (0, 4, False, False)]
    assert pool._stocks()[0].rows == len(expected(shape, past, [0, 1, 2, 4]))


def test_rings_go_into_a_checkpoint_and_come_back() -> None:
    from shoal.checkpoint import flatten

    shape, past = prioritized(1, 12), history(2, 200, 1)
    pool, _ = filled(Flaky(shape, past), shape, past, 9)
    saved = {f"replay/{p}": np.array(a) for p, a in flatten(pool.save()).items()}
    before = contents(pool, shape)
    fleet = Flaky(shape, past)
    other = ShardPool(fleet, 1, GROUPS, shape.rows // ROWS)  # the number of shards may be another one
    other.load(saved, "replay")
    assert contents(other, shape) == before
    other.insert(0, 9, stored(past, 9))
    other.poll(0.0)
    fleet.dead.add(0)
    other.request(key_for(0, "x"), 1, 8)
    other.poll(0.0)
    other.poll(0.0)
    after = contents(other, shape)
    assert {p for p in after if p[0]} == {p for p in before if p[0]}
    assert {(t, b) for g, t, b in after if g == 0} == set(expected(shape, past, range(10)))
    with pytest.raises(ShoalError, match="missing"):
        ShardPool(Flaky(shape, past), 2, GROUPS, shape.rows // ROWS).load({}, "replay")
