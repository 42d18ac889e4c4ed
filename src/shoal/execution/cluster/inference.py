"""Central inference, the layout of SEED RL (Espeholt et al. 2020): policy actors act for all runners.

    steppers' rows --Ask--> a policy actor: act for all who have asked meanwhile, at once --> Answers

Steppers only step environments and do not load JAX. Groups are mixed into one batch, and the policy may be
newer in a later row of a fragment, so this is for asynchronous plans. The actor keeps nothing that cannot be
had again: the memory of the policy stays with the steppers, and every question names the version of the
parameters that at least are to act, so that an actor that died and was started anew by Ray answers what was
asked before. New parameters come from the driver; an actor that has missed them says so, and a stepper tells
it. Rows go over `line`s, all else is Ray's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shoal import trees
from shoal.execution.cluster.line import Caller, Line
from shoal.execution.cluster.luggage import Luggage, unpack

if TYPE_CHECKING:
    from shoal.recipe import Recipe
    from shoal.types import Agent

NEWS_SECONDS = 0.2  # how long a row waits for parameters that are on their way to the actor
SILENT_SECONDS = 5.0  # an actor that does not answer a greeting for so long is held to be hung


class Ask(NamedTuple):
    """A row of one group of B environments. key: the fragment's; t: the row's number in it; index: of the
    group's first environment. version: of the parameters that at least act."""

    obs: Any
    first: np.ndarray
    reward: np.ndarray
    carry: Any
    key: np.ndarray
    t: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  (nobody wants tuple.index)
    version: int


class Answer(NamedTuple):
    """For one group: what `act` gives, and the version that acted."""

    action: Any
    carry: Any
    extras: Any
    version: int


class Behind(NamedTuple):
    """In the place of an Answer: the actor has older parameters than those that were asked for."""


class Failed(NamedTuple):
    """In the place of an Answer: acting raised this."""

    error: str


def asking(policy: Any, token: bytes) -> Callable[[Ask, list[Any]], Answer]:
    """How a stepper's thread asks: (row, [a reference to the parameters of its version]) -> Answer. policy:
    the actor's handle. RuntimeError where acting raised."""
    import ray

    line = Line(lambda: ray.get(policy.address.remote()), token)

    def ask(row: Ask, params: list[Any]) -> Answer:
        while True:
            answer = line.ask(row)
            if isinstance(answer, Behind):
                ray.get(policy.learn.remote(row.version, params))
            elif isinstance(answer, Failed):
                raise RuntimeError(f"a policy actor could not act: {answer.error}")
            else:
                return answer

    return ask


def act_groups(agent: Agent, size: int) -> Callable[..., Any]:
    """`agent.act` for G groups of `size` side by side: (params, carry, obs, first, reward, keys [G, 2],
    t [G], index [G]) -> (action, carry, extras); every environment has the key that it has elsewhere."""
    import jax.numpy as jnp

    from shoal.keys import fold
    from shoal.types import Acting

    def act(params: Any, carry: Any, obs: Any, first: Any, reward: Any, keys: Any, t: Any, index: Any) -> Any:
        rows = jnp.arange(size, dtype=jnp.uint32)
        key = fold(fold(keys, t)[:, None], rows).reshape(-1, 2)
        numbers = (index[:, None] + jnp.arange(size, dtype=jnp.int32)).reshape(-1)
        acting = Acting(key=key, index=numbers, explore=jnp.ones((), bool), reward=reward)
        return agent.act(params, carry, obs, first, acting)

    return act


class Batcher:
    """Acts for several groups at once, in batches of 1, 2, 4, ... groups: few programs are compiled."""

    def __init__(self, agent: Agent, size: int) -> None:
        import jax

        self._act, self._size = jax.jit(act_groups(agent, size)), size

    def __call__(self, params: Any, asks: Sequence[Ask]) -> list[tuple[Any, Any, Any]]:
        count, size = len(asks), self._size
        padded = [*asks, *[asks[-1]] * ((1 << (count - 1).bit_length()) - count)]
        beside = lambda *leaves: np.concatenate(leaves)  # noqa: E731
        together = trees.each(beside, *[(a.carry, a.obs, a.first, a.reward) for a in padded])
        keys = np.stack([a.key for a in padded])
        t = np.array([a.t for a in padded], np.uint32)
        index = np.array([a.index for a in padded], np.int32)
        made = trees.each(np.asarray, self._act(params, *together, keys, t, index))
        return [trees.each(lambda x, g=g: x[g * size : (g + 1) * size], made) for g in range(count)]


class PolicyActor:
    """The Ray actor, an asynchronous one. What comes while it acts is acted for together, thereafter."""

    def __init__(self, luggage: Luggage, size: int, token: bytes) -> None:
        """luggage: the Recipe. token: what steppers show."""
        recipe: Recipe = unpack(luggage, gpu=True)
        from shoal.execution.cluster.session import process_identity
        from shoal.runtime import configure

        configure(recipe.threads)
        self._identity, self._token = process_identity(), token
        self._batcher = Batcher(recipe.agent(recipe.source().spec), size)
        self._version, self._params = -1, None
        self._asked: list[tuple[Ask, Caller]] = []
        self._early: list[tuple[Ask, Caller]] = []
        self._due = False
        self._opening, self._news = asyncio.Lock(), asyncio.Lock()
        self._address: tuple[str, int] | None = None

    async def identity(self) -> Any:
        """Of this process. Answered between two batches, so that silence means that it hangs."""
        return self._identity

    async def address(self) -> tuple[str, int]:
        """(host, port) where rows are asked."""
        async with self._opening:
            if self._address is None:
                import ray

                host, loop = ray.util.get_node_ip_address(), asyncio.get_running_loop()
                server = await loop.create_server(lambda: Caller(self._token, self._take), host, 0)
                self._address = host, server.sockets[0].getsockname()[1]
            return self._address

    async def learn(self, version: int, params: list[Any]) -> None:
        """Act with these parameters from now on, if they are newer. params: [a reference]."""
        async with self._news:
            if version <= self._version:
                return
            import jax

            self._params, self._version = jax.device_put(await params[0]), version
        early, self._early = self._early, []
        for row, caller in early:
            self._take(row, caller)

    def _take(self, row: Ask, caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        if row.version > self._version:
            early = row, caller
            self._early.append(early)
            loop.call_later(NEWS_SECONDS, self._refuse, early)
            return
        self._asked.append((row, caller))
        if not self._due:
            self._due = True
            loop.call_soon(loop.call_soon, self._answer)  # what has arrived by now is read before

    def _refuse(self, early: tuple[Ask, Caller]) -> None:
        if any(each is early for each in self._early):
            self._early = [each for each in self._early if each is not early]
            early[1].answer(Behind())

    def _answer(self) -> None:
        asked, self._asked, self._due = self._asked, [], False
        try:
            made = self._batcher(self._params, [row for row, _ in asked])
        except Exception as error:
            for _, caller in asked:
                caller.answer(Failed(f"{type(error).__name__}: {error}"))
            return
        for (_, caller), answer in zip(asked, made, strict=True):
            caller.answer(Answer(*answer, self._version))


class PolicyActors:
    """The policy actors of a run, supervised: Ray restarts the dead, `tend` ends those that hang.

    kill: ends a process by the identity that it told. cpus, gpus: what each asks Ray for.
    """

    def __init__(
        self,
        luggage: Luggage,
        size: int,
        count: int,
        cpus: float,
        gpus: float,
        kill: Callable[..., None],
    ) -> None:
        import ray

        remote: Any = ray.remote(PolicyActor)
        # Ray starts a dead one anew and asks again what was not answered.
        actor = remote.options(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)
        self.token, self._version = secrets.token_bytes(32), -1
        self.handles = [actor.remote(luggage, size, self.token) for _ in range(count)]
        self._kill = kill
        self._greeted: list[tuple[Any, float]] = [(h.identity.remote(), float("inf")) for h in self.handles]
        self._identity: list[Any] = [None] * count
        self._next = 0.0
        self.restarts = 0

    def learn(self, version: int, params: list[Any]) -> None:
        """Tell all of these parameters, unless that was done. params: [a reference]."""
        if version > self._version:
            self._version = version
            for handle in self.handles:
                handle.learn.remote(version, params)

    def tend(self) -> None:
        """Greet every actor now and then; end one that has been silent for too long."""
        import ray

        now = monotonic()
        if now < self._next:
            return
        self._next = now + 0.5
        for i, (greeting, since) in enumerate(self._greeted):
            answered, _ = ray.wait([greeting], timeout=0)
            if answered:
                identity = ray.get(greeting)
                if self._identity[i] not in (None, identity):
                    self.restarts += 1
                self._identity[i] = identity
                self._greeted[i] = (self.handles[i].identity.remote(), now)
            elif now - since > SILENT_SECONDS and self._identity[i] is not None:
                self._kill(*self._identity[i])
                self._greeted[i] = (greeting, float("inf"))  # answered by the one that Ray starts now

    def identities(self) -> list[Any]:
        """Of the processes that have answered a greeting."""
        return [identity for identity in self._identity if identity is not None]

    def close(self) -> None:
        import ray

        for handle in self.handles:
            ray.kill(handle)
