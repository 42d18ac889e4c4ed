"""The group in the driver, with members that are lost whenever a test wants it: no processes here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.counters import add, value, zero
from shoal.errors import ShoalError
from shoal.execution.cluster.learners import parts
from shoal.execution.cluster.learners.crew import Call, MembersLost
from shoal.execution.cluster.learners.group import LearnerGroup
from shoal.execution.cluster.learners.member import Begun, Told
from shoal.execution.cluster.roster import Limits
from shoal.types import Draws, State

SIZE, MEMBERS = 6, 3
FORM = State({"w": jnp.zeros(SIZE)}, (), {}, zero(), zero())


class ToyAgent(NamedTuple):
    """Parameters that depend on the order of all that was learned."""

    def init(self, key: Any) -> State:
        return FORM

    def policy(self, state: State) -> Any:
        return {"acts": state.params["w"]}


class ToyMember:
    """Has a third of the parameters, and all else."""

    def __init__(self, number: int) -> None:
        self.at = slice(number * SIZE // MEMBERS, (number + 1) * SIZE // MEMBERS)
        bounds = ((self.at.start, self.at.stop),)
        self.holds = (bounds, (), (), (), ())
        self.number = number

    def fresh(self) -> None:
        self.load([np.zeros(SIZE, np.float32)[self.at], *[np.zeros((), np.uint32)] * 4])

    def load(self, values: list[np.ndarray]) -> None:
        self.w, self.counters = values[0].copy(), values[1:]

    def change(self, x: np.ndarray, factor: float) -> Told:
        self.w = self.w * np.float32(factor) + x[self.at]
        steps = add(zero(), value(FORM.env_steps._replace(low=self.counters[0], high=self.counters[1])) + 7)
        self.counters = [np.asarray(steps.low), np.asarray(steps.high), *self.counters[2:]]
        metrics = {"w": self.w.sum()}
        return Told(1, 0.01, int(self.counters[0]), metrics) if self.number == 0 else Told(1)

    def learn(self, x: Any, key: np.ndarray) -> Told:
        return self.change(parts.full(x), 0.9 + 0.001 * float(key[1]))

    def observe(self, x: Any) -> Told:
        return self.change(parts.full(x), 0.99)

    def observe_and_learn(self, x: Any, draws: Any, key: np.ndarray) -> Told:
        self.observe(x)
        return self.learn(draws.minibatches, key)

    def save(self) -> list[parts.Part]:
        own = [parts.Part(0, self.holds[0], self.w)]
        if self.number == 0:
            own += [parts.Part(1 + i, (), c) for i, c in enumerate(self.counters)]
        return own

    def acting(self) -> list[parts.Part]:
        return [parts.Part(0, self.holds[0], self.w)]

    def warm(self, form: Any) -> None:
        return None


class ToyCrew:
    """Its members are lost at the waits whose numbers are in `losses`, those in `hangs` silently."""

    count = MEMBERS

    def __init__(self, losses: Sequence[int] = (), hangs: Sequence[int] = ()) -> None:
        self.losses, self.hangs, self.waits, self.starts = set(losses), set(hangs), 0, 0
        self.members: list[ToyMember] = []
        self.allowed: list[float] = []
        self.closed = False

    def start(self) -> Call:
        self.starts += 1
        self.members = [ToyMember(n) for n in range(MEMBERS)]
        return Call(tuple(Begun(m.holds, 5) for m in self.members))

    def put(self, value: Any) -> Any:
        return value

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        pairs = zip(self.members, arguments, strict=True)
        return Call(tuple(getattr(member, method)(*own) for member, own in pairs))

    def wait(self, call: Call, seconds: float) -> list[Any]:
        self.waits += 1
        self.allowed.append(seconds)
        if self.waits in self.losses | self.hangs:
            raise MembersLost("learner 1 was lost", hang=self.waits in self.hangs)
        return list(call.answers)

    def kill(self) -> None:
        self.members = []

    def close(self) -> None:
        self.closed = True


class Clock:
    """Every look takes a second, so that a commit is due now and then."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def group(crew: ToyCrew, strikes: int = 3) -> LearnerGroup:
    agent: Any = ToyAgent()
    return LearnerGroup(crew, agent, Limits(strikes=strikes), clock=Clock())


def run(crew: ToyCrew, script: Sequence[int]) -> tuple[Any, ...]:
    """Do as the script says; all that can be seen of it."""
    random, learner = np.random.default_rng(0), group(crew)
    seen: list[Any] = []
    for number, what in enumerate(script):
        x, key = random.standard_normal(SIZE).astype(np.float32), np.array([0, number], np.uint32)
        draws: Any = Draws(x + 1, np.array(1, np.int32))
        if what == 0:
            seen.append(dict(learner.learn(x, key).metrics))
        elif what == 1:
            learner.observe(x)  # type: ignore[arg-type]
        elif what == 2:
            seen.append(dict(learner.observe_and_learn(x, draws, key).metrics))  # type: ignore[arg-type]
        elif what == 3:
            seen.append(learner.acting()["acts"].tolist())
        elif what == 4:
            seen.append(learner.env_steps)
        elif what == 5:
            state = learner.state
            learner.state = state._replace(params={"w": state.params["w"] + 1})
        else:
            learner.warm(x)  # type: ignore[arg-type]
    learner.close()
    assert crew.closed
    return *seen, learner.state.params["w"].tolist(), learner.env_steps


SCRIPTS = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(SCRIPTS, st.sets(st.integers(1, 60), max_size=12), st.sets(st.integers(1, 60), max_size=3))
def test_no_loss_is_seen(script: list[int], losses: set[int], hangs: set[int]) -> None:
    """Whatever is asked, and whenever members are lost (not too often in a row): as if nothing had been."""
    spread = {n for n in losses | hangs if not {n - 1, n - 2} & (losses | hangs)}
    expected = run(ToyCrew(), script)
    assert run(ToyCrew(spread & losses, spread & hangs), script) == expected


def test_commits_keep_the_log_short() -> None:
    learner = group(crew := ToyCrew())
    for number in range(200):
        learner.learn(np.ones(SIZE, np.float32), np.array([0, number], np.uint32))
    crew.losses = {crew.waits + 5}
    for number in range(9):
        learner.learn(np.ones(SIZE, np.float32), np.array([0, number], np.uint32))
    assert learner.losses.count == 1 and 0 < learner.losses.repeated < 80
    told = learner.news()
    assert len(told.events) == 2 and "updates were made again" in told.events[1]
    assert told.figures["learner_losses"] == 1 and told.figures["learner_recovery"] > 0
    assert not learner.news().events


def test_again_and_again_ends_the_run() -> None:
    learner = group(crew := ToyCrew(losses=range(5, 100)), strikes=3)
    with pytest.raises(ShoalError, match=r"4 times in a row.*learner 1 was lost") as caught:
        for number in range(9):
            learner.learn(np.ones(SIZE, np.float32), np.array([0, number], np.uint32))
    assert "\n" not in str(caught.value) and crew.starts == 4


def test_deadlines_follow_what_was_measured() -> None:
    """What is done for the first time may take minutes; then ten times what it took; more after a hang."""
    learner = group(crew := ToyCrew())
    for number in range(5):
        learner.learn(np.ones(SIZE, np.float32), np.array([0, number], np.uint32))
    assert crew.allowed[:2] == [300.0, 300.0]
    assert crew.allowed[-1] == pytest.approx(5.1)
    crew.hangs = {crew.waits + 1}
    learner.learn(np.ones(SIZE, np.float32), np.array([0, 9], np.uint32))
    assert max(crew.allowed[-8:-1]) == 300.0  # new members start and compile
    assert crew.allowed[-1] == pytest.approx(5.1)


def test_what_repeats_itself_is_sent_once() -> None:
    tree = {"a": np.broadcast_to(np.float32(2), (4, 5)), "b": np.arange(6).reshape(2, 3), "c": np.zeros(())}
    thin = parts.slim(tree)
    assert isinstance(thin["a"], parts.Same) and parts.bytes_of(thin) < 100
    jax.tree.map(np.testing.assert_array_equal, parts.full(thin), tree)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4))
def test_cut_and_joined(shapes: list[tuple[int, int]]) -> None:
    """Leaves that are divided by rows, by columns, or whole."""
    leaves = [np.random.default_rng(0).standard_normal((2 * a, 2 * b)) for a, b in shapes]
    kinds = [number % 3 for number in range(len(leaves))]
    whole = lambda n: (0, n)  # noqa: E731
    half = lambda n, i: (i * n // 2, (i + 1) * n // 2)  # noqa: E731

    def holds(i: int) -> parts.Holds:
        def of(kind: int, x: np.ndarray) -> parts.Bounds:
            rows, columns = x.shape
            return (
                half(rows, i) if kind == 0 else whole(rows),
                half(columns, i) if kind == 1 else whole(columns),
            )

        return tuple(map(of, kinds, leaves))

    sent = [
        parts.Part(number, holds(i)[number], part)
        for i in (0, 1)
        for number, part in enumerate(parts.cut(leaves, holds(i)))
        if kinds[number] < 2 or i == 0
    ]
    jax.tree.map(np.testing.assert_array_equal, parts.joined(leaves, sent), leaves)
    with pytest.raises(ValueError, match="not whole"):
        parts.joined(leaves, sent[:-1])
