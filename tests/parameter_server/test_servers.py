"""The supervisor of parameter shards: whatever happens to one, the state is as if nothing had."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interrupts import Interrupts
from test_shares import agent_of, random_like, same

from shoal import ShoalError
from shoal.execution.cluster.parcels import form_of, looked_at
from shoal.execution.cluster.shard_fleet import InlineShards, InputLost, ShardLost
from shoal.execution.parameter_server import record
from shoal.execution.parameter_server import servers as module
from shoal.execution.parameter_server.record import Work
from shoal.execution.parameter_server.servers import Servers
from shoal.execution.parameter_server.shard import ParameterShard, Push, Step
from shoal.execution.parameter_server.shares import Shares
from shoal.recipe import Recipe
from shoal.types import Gradient, State

QUICK = settings(deadline=None, derandomize=True, max_examples=12, phases=[Phase.generate])
NAME = "dqn"  # a target network, a clip, counters
COUNT = 3
SPEC = Recipe(algorithm=None, env={"env": "CartPole-v1"}).source().spec


class Flaky(InlineShards):
    """Shards that die, or fall silent, when the calls to them reach certain numbers."""

    def __init__(self, faults: dict[int, str]) -> None:
        super().__init__(made)
        self._faults, self._calls = faults, 0
        self.ill: dict[int, str] = {}
        self.now = 0.0

    def start(self, shard: int) -> Any:
        self.ill.pop(shard, None)
        handle = super().start(shard)
        handle.shard = shard
        return handle

    def _met(self, shard: int) -> bool:
        self._calls += 1
        if self._calls in self._faults:
            self.ill[shard] = self._faults[self._calls]
        return shard in self.ill

    def call(self, shard: int, method: str, *arguments: Any) -> Any:
        handle = Lost() if self._met(shard) else super().call(shard, method, *arguments)
        handle.shard = shard
        return handle

    def call_for_two(self, shard: int, method: str, *arguments: Any) -> tuple[Any, Any]:
        if self._met(shard):
            handle = Lost()
            handle.shard = shard
            return handle, None
        first, second = InlineShards.call(self, shard, method, *arguments).value
        handle = Answer(first)
        handle.shard = shard
        return handle, second

    def wait(self, handles: Sequence[Any], timeout: float) -> set[Any]:
        self.now += 0.01
        silent = {h for h in handles if self.ill.get(h.shard) == "silent"}
        if silent:
            self.now += timeout
        return set(handles) - silent

    def take(self, handle: Any) -> Any:
        if self.ill.get(handle.shard) == "without its input":
            raise InputLost("its node is gone")
        if isinstance(handle, Lost) or handle.shard in self.ill:
            raise ShardLost("killed")
        return handle.value


class Answer:
    def __init__(self, value: Any) -> None:
        self.value, self.shard = value, -1


class Lost(Answer):
    def __init__(self) -> None:
        super().__init__(None)


@cache
def parts() -> tuple[Any, Shares, Any]:
    agent = agent_of(NAME)
    return agent, Shares.of(agent, COUNT), form_of(agent, SPEC, 2)


def made(number: int) -> ParameterShard:
    return ParameterShard(agent_of(NAME), SPEC, 2, COUNT, number)


def work(number: int) -> Work:
    """A step of two gradients; with every third something is observed."""
    agent, shares, form = parts()
    draw = np.random.default_rng(number)
    pushes, gradients = [], []
    for _ in range(2):
        whole = draw.normal(size=shares.size).astype(np.float32)
        gradients.append([whole[lo:hi] for lo, hi in shares.bounds])
        pushes.append(Push(np.float32(3), {}))
    seen = None
    if number % 3 == 0:
        leaves = jax.tree.leaves(random_like(form, number))
        seen = [x if wanted else None for x, wanted in zip(leaves, looked_at(agent, form), strict=True)]
    return Work(Step(tuple(pushes), seen=seen), tuple(gradients))


def end(
    faults: dict[int, str], strikes: int = 1000, interrupts: Interrupts | None = None
) -> tuple[State, Servers]:
    """After 12 steps, with a snapshot now and then; what is interrupted is asked for again."""
    _, shares, _ = parts()
    fleet = Flaky(faults)
    state = random_like(shares.form, 0)
    servers = Servers(fleet, shares, 1, state, strikes, every=5, clock=lambda: fleet.now)
    go: Any = (interrupts or Interrupts(())).until_done
    norms = []
    for number in range(12):
        version, made = servers.version, work(number)
        norms += go(lambda made=made, version=version: servers.advance([made], version))
        if number == 7:
            version = servers.version
            go(lambda state=servers.state: servers.load(state))
            assert servers.version > version
    np.testing.assert_array_equal(norms, np.float64(norms_of_all()))
    same(go(servers.published), go(lambda: servers.state)._replace(opt=()))
    return servers.state, servers


@cache
def norms_of_all() -> list[float]:
    """Of the sums of two gradients, shard by shard."""
    norms = []
    for number in range(12):
        sums = [first + second for first, second in zip(*work(number).gradients, strict=True)]
        norms.append(sum(float(part @ part) for part in sums) ** 0.5)
    return norms


@cache
def undisturbed() -> State:
    return end({})[0]


@QUICK
@given(st.dictionaries(st.integers(1, 80), st.sampled_from(["killed", "silent"]), max_size=8))
def test_lost_shards_change_no_bit(faults: dict[int, str]) -> None:
    found, servers = end(faults)
    same(found, undisturbed())
    assert servers.version > 12
    assert len(servers.events) == servers.recovery.count


@QUICK
@given(
    st.sets(st.integers(1, 1500), min_size=3, max_size=9),
    st.dictionaries(st.integers(1, 80), st.just("killed"), max_size=2),
)
def test_interruptions_change_no_bit(at: set[int], faults: dict[int, str]) -> None:
    """Ctrl-C at any line, while shards start, answer, are saved or made again; and alone it is no strike."""
    interrupts = Interrupts((module, record), at)
    found, servers = end(faults, 1000 if faults else 1, interrupts)
    same(found, undisturbed())
    assert interrupts.raised and interrupts.lines > 1500
    assert servers.recovery.count == 0 or faults


def test_steps_that_count_are_not_made_again() -> None:
    """The interruption came when they did, and before anybody had the answer."""
    _, shares, _ = parts()
    servers = Servers(InlineShards(made), shares, 1, random_like(shares.form, 0), 3)
    version = servers.version
    norms, state = servers.advance([work(0), work(1)], version), servers.state
    assert servers.advance([work(0), work(1)], version) == norms and len(norms) == 2
    assert servers.version == version + 2
    same(servers.state, state)


def test_steps_are_taken_back() -> None:
    """The State is that of the mark, and its version a new one: workers know what the others were."""
    _, shares, _ = parts()
    servers = Servers(InlineShards(made), shares, 1, random_like(shares.form, 0), 3, every=2)
    servers.advance([work(0)])
    mark, before, gone = servers.mark(), servers.state, set[int]()
    for number in (1, 2, 3):  # a snapshot is among them
        servers.advance([work(number)])
        gone.add(servers.version)
    Interrupts((module, record), {7, 40}).until_done(lambda: servers.back(mark))
    same(servers.state, before)
    same(servers.published(), before._replace(opt=()))
    servers.advance([work(1)])
    assert servers.version not in gone


def test_gradients_that_are_gone_with_a_shard_are_one_line() -> None:
    """Its node took both, so that making it again fails."""
    _, shares, _ = parts()
    fleet = Flaky({})
    servers = Servers(fleet, shares, 1, random_like(shares.form, 0), 3, clock=lambda: fleet.now)
    servers.advance([work(0)])
    start, fleet.ill[1] = fleet.start, "killed"

    def started(shard: int) -> Any:
        handle = start(shard)
        fleet._faults = {fleet._calls + 2: "without its input"}
        return handle

    fleet.start = started  # type: ignore[method-assign]
    with pytest.raises(ShoalError, match=r"went down with the machine.* go on from the last"):
        servers.advance([work(1)])


def test_each_loss_is_told_and_timed() -> None:
    _, servers = end({9: "killed", 30: "silent"})
    assert servers.recovery.count == 2
    first, second = servers.take_events()
    assert "lost (killed); it has all again, after" in first
    assert "lost (silent for" in second
    assert servers.figures()["shard_restores"] == 2
    assert servers.recovery.longest > 0


def test_a_shard_that_always_dies_ends_the_run() -> None:
    with pytest.raises(ShoalError, match="parameter shard 0 failed 3 times in a row: killed"):
        end(dict.fromkeys(range(10, 500), "killed"), strikes=3)


def test_the_norm_is_that_of_all_shards() -> None:
    agent, shares, _ = parts()
    state = random_like(shares.form, 0)
    servers = Servers(InlineShards(made), shares, 1, state, 3)
    one = work(1)
    servers.advance([one])
    whole = [np.concatenate(list(gradient)) for gradient in one.gradients]
    gradient = Gradient(shares.whole([whole[0] + whole[1]]), np.float32(6), {})
    expected = jax.jit(agent.apply)(state, gradient)
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(servers.state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
