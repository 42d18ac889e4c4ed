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
from interrupts import Interrupts

from shoal.counters import add, value, zero
from shoal.errors import ShoalError
from shoal.execution.cluster.learners import group as module
from shoal.execution.cluster.learners import parts, record
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


def run(crew: ToyCrew, script: Sequence[int], interrupts: Interrupts | None = None) -> tuple[Any, ...]:
    """Do as the script says, and go on where that is interrupted; all that can be seen of it."""
    random, learner = np.random.default_rng(0), group(crew, strikes=1000)
    go: Any = (interrupts or Interrupts(())).until_done
    seen: list[Any] = []
    for number, what in enumerate(script):
        x, key = random.standard_normal(SIZE).astype(np.float32), np.array([0, number], np.uint32)
        draws: Any = Draws(x + 1, np.array(1, np.int32))
        end = learner._stand.end

        def observe(x: Any = x, end: int = end) -> None:
            if learner._stand.end == end:  # else it was done when it was interrupted
                learner.observe(x)

        if what == 0:
            seen.append(dict(go(lambda x=x, key=key: learner.learn(x, key)).metrics))
        elif what == 1:
            go(observe)
        elif what == 2:
            both = lambda x=x, draws=draws, key=key: learner.observe_and_learn(x, draws, key)  # noqa: E731
            seen.append(dict(go(both).metrics))
        elif what == 3:
            seen.append(go(learner.acting)["acts"].tolist())
        elif what == 4:
            seen.append(go(lambda: learner.env_steps))
        elif what == 5:
            state = go(lambda: learner.state)
            state = state._replace(params={"w": state.params["w"] + 1})
            go(lambda state=state: setattr(learner, "state", state))
        else:
            go(lambda x=x: learner.warm(x))
    seen += [learner.state.params["w"].tolist(), learner.env_steps]
    learner.close()
    assert crew.closed
    return tuple(seen)


SCRIPTS = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(SCRIPTS, st.sets(st.integers(1, 60), max_size=12), st.sets(st.integers(1, 60), max_size=3))
def test_no_loss_is_seen(script: list[int], losses: set[int], hangs: set[int]) -> None:
    """Whatever is asked, and whenever members are lost: as if nothing had been."""
    expected = run(ToyCrew(), script)
    assert run(ToyCrew(losses, hangs), script) == expected


@settings(deadline=None, derandomize=True, max_examples=100)
@given(SCRIPTS, st.sets(st.integers(1, 1500), max_size=6), st.sets(st.integers(1, 60), max_size=2))
def test_no_interruption_is_seen(script: list[int], at: set[int], losses: set[int]) -> None:
    """Ctrl-C at any line of the driver, and what was asked is asked again: as if nothing had been. A loss
    besides may be one; Ctrl-C alone is none."""
    expected = run(ToyCrew(), script)
    interrupts = Interrupts((module, record), at)
    assert run(ToyCrew(losses), script, interrupts) == expected


def test_there_are_as_many_lines() -> None:
    """As interruptions are drawn from above."""
    interrupts = Interrupts((module, record))
    run(ToyCrew([9]), [0, 1, 2, 3, 4, 5, 6] * 3, interrupts)
    assert interrupts.lines > 1000


@pytest.mark.parametrize("wait", range(1, 7))
def test_an_interrupted_update_is_learned_once(wait: int) -> None:
    """Ctrl-C while its answer is waited for, and asked for again: it is in the log once, so that a loss
    thereafter repeats the right bits; and a Ctrl-C is no strike."""

    def learned(crew: ToyCrew) -> tuple[Any, ...]:
        learner = group(crew, strikes=0)
        learner._commit_seconds = 1e9
        for number in range(4):
            Interrupts(()).until_done(
                lambda number=number: learner.learn(
                    np.full(SIZE, 1 + number, np.float32), np.array([0, number], np.uint32)
                )
            )
        assert len(learner._stand.log) == 4
        learner._limits = Limits(strikes=3)
        crew.losses = {crew.waits + 1}
        return learner.state.params["w"].tolist(), learner.env_steps, learner.losses.repeated

    expected = learned(ToyCrew())
    crew = ToyCrew()
    answers, count = crew.wait, 0

    def interrupted(call: Call, seconds: float) -> list[Any]:
        nonlocal count
        count += 1
        if count == wait:
            raise KeyboardInterrupt
        return answers(call, seconds)

    crew.wait = interrupted  # type: ignore[method-assign]
    assert learned(crew) == expected


def interrupt(learner: LearnerGroup, crew: ToyCrew, key: np.ndarray) -> None:
    """Ctrl-C while an update of ones is waited for."""
    answers = crew.wait

    def interrupted(call: Call, seconds: float) -> list[Any]:
        raise KeyboardInterrupt

    crew.wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        learner.learn(np.ones(SIZE, np.float32), key)
    crew.wait = answers  # type: ignore[method-assign]


def test_a_state_has_nothing_of_an_interrupted_update() -> None:
    """It goes into a checkpoint, and who goes on from there asks for the update, as who goes on here does."""
    learner, key = group(crew := ToyCrew()), np.array([0, 1], np.uint32)
    learner.learn(np.ones(SIZE, np.float32), np.array([0, 0], np.uint32))
    before, steps = learner.state, learner.env_steps
    interrupt(learner, crew, key)
    jax.tree.map(np.testing.assert_array_equal, learner.state, before)
    assert learner.env_steps == steps and crew.starts == 1
    told = learner.learn(np.ones(SIZE, np.float32), key)
    assert learner.env_steps == steps + 7
    learner.state = before
    assert learner.learn(np.ones(SIZE, np.float32), key) == told


def test_other_experience_is_another_update() -> None:
    """An asynchronous run that was interrupted goes on with the key and another batch."""
    learner, key = group(crew := ToyCrew()), np.array([0, 1], np.uint32)
    interrupt(learner, crew, key)
    learner.learn(np.zeros(SIZE, np.float32), key)
    assert learner.env_steps == 14


def test_observations_alone_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a replay that is not learned from for long: neither experience nor calls; and the state is
    right after a loss."""
    monkeypatch.setattr(module, "LOG_BYTES", 20 * 4 * SIZE)
    state = []
    for losses in ([], [150]):
        learner = group(crew := ToyCrew(losses))
        for number in range(300):
            learner.observe(np.full(SIZE, number, np.float32))  # type: ignore[arg-type]
            assert learner._stand.bytes <= 21 * 4 * SIZE and len(learner._sent) <= module.MOST_SENT + 2
        state.append(learner.state.params["w"].tolist())
        assert learner.losses.count == len(losses) and crew.starts == 1 + len(losses)
    assert state[0] == state[1]
    monkeypatch.setattr(module, "LOG_BYTES", 1 << 30)
    learner = group(ToyCrew())
    for number in range(300):
        learner.observe(np.full(SIZE, number, np.float32))  # type: ignore[arg-type]
    assert learner._stand.first > 100  # small ones are committed for the time that they would take again


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
    assert crew.allowed[-1] == pytest.approx(4 * 5.1)  # the update again, with patience
    learner.learn(np.ones(SIZE, np.float32), np.array([0, 10], np.uint32))
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
