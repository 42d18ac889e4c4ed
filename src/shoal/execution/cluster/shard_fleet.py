"""Where shards live, of a replay or of parameters: actors on Ray, or objects in this process. JAX is imported
by the actor alone, after it has said that it wants no GPU.

A shard follows its calls one after another. What goes in beside small things is given as the runner's own
result, which Ray hands from one process to the other.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shoal.errors import ShoalError

KILL_SECONDS = 2.0  # for a signal to be sent, before Ray is left


class ShardLost(Exception):
    """The shard is dead, or its node is."""


class InputLost(Exception):
    """The shard lives, but what it should have taken in is gone, with the node that held it."""


class ShardFleet(Protocol):
    """Shards by number. Only `wait` and `take` block."""

    def start(self, shard: int) -> Any:
        """A handle; `take` of it returns when the shard is ready."""
        ...

    def call(self, shard: int, method: str, *arguments: Any) -> Any:
        """A handle for what that method of the shard gives, after all calls before it."""
        ...

    def call_for_two(self, shard: int, method: str, *arguments: Any) -> tuple[Any, Any]:
        """For a method that gives two values: a handle for the first, and one, as `put` gives it, for the
        second, which need not come to this process."""
        ...

    def put(self, value: Any) -> Any:
        """A handle for something large that several calls may take in."""
        ...

    def get(self, put: Any) -> Any:
        """What such a handle is for. Raises InputLost."""
        ...

    def wait(self, handles: Sequence[Any], timeout: float) -> set[Any]:
        """Those that are answered, as soon as one is, or after `timeout` seconds."""
        ...

    def take(self, handle: Any) -> Any:
        """The answer. Raises ShardLost, InputLost, ShoalError."""
        ...

    def kill(self, shard: int) -> None:
        """End a shard at once, also one that is stopped. Harmless where it is dead."""
        ...

    def close(self) -> None: ...


class InlineShards:
    """Shards in this process. make: gives an empty one, by its number."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._shards: dict[int, Any] = {}

    def start(self, shard: int) -> Any:
        self._shards[shard] = self._make(shard)
        return _Answer(None)

    def call(self, shard: int, method: str, *arguments: Any) -> Any:
        return _Answer(getattr(self._shards[shard], method)(*arguments))

    def call_for_two(self, shard: int, method: str, *arguments: Any) -> tuple[Any, Any]:
        first, second = self.call(shard, method, *arguments).value
        return _Answer(first), second

    def put(self, value: Any) -> Any:
        return value

    def get(self, put: Any) -> Any:
        return put

    def wait(self, handles: Sequence[Any], timeout: float) -> set[Any]:
        return set(handles)

    def take(self, handle: Any) -> Any:
        return handle.value

    def kill(self, shard: int) -> None:
        self._shards.pop(shard, None)

    def close(self) -> None:
        self._shards.clear()


class _Answer:
    def __init__(self, value: Any) -> None:
        self.value = value


class ShardActor:
    """The Ray actor around a shard. It is ready when `hold` has returned."""

    def identity(self) -> Any:
        """Of this process (see `session.process_identity`)."""
        from shoal.execution.cluster.session import process_identity

        return process_identity()

    def begin(self, threads: int) -> None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        from shoal.runtime import configure

        configure(threads)

    def hold(self, make: str, *arguments: Any) -> None:
        """Have the shard that "module:name" makes of the arguments."""
        module, _, name = make.partition(":")
        self._shard = getattr(importlib.import_module(module), name)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._shard, method)(*arguments)


class RayShards:
    """Shards on Ray, spread over its nodes. They ask for no CPU of their own: they work when asked.

    make: "module:name" of what makes one there. arguments: of that, by the shard's number. threads: XLA's,
    of the experiment.
    """

    def __init__(self, make: str, arguments: Callable[[int], tuple[Any, ...]], threads: int) -> None:
        import ray

        self._ray = ray
        remote: Any = ray.remote(ShardActor)
        self._actor = remote.options(
            num_cpus=0, num_gpus=0, scheduling_strategy="SPREAD", max_restarts=0, max_task_retries=0
        )
        self._make, self._arguments, self._threads = make, arguments, threads
        self._shards: dict[int, Any] = {}
        self._told: dict[int, Any] = {}  # who they are, known before they are ready: one may stop on its way
        self._starting: dict[Any, int] = {}
        self._ready: set[int] = set()
        self._killing: list[threading.Thread] = []

    def start(self, shard: int) -> Any:
        actor = self._shards[shard] = self._actor.remote()
        self._told[shard] = actor.identity.remote()
        actor.begin.remote(self._threads)
        ready = actor.hold.remote(self._make, *self._arguments(shard))
        self._starting[ready] = shard
        return ready

    def call(self, shard: int, method: str, *arguments: Any) -> Any:
        return self._shards[shard].call.remote(method, *arguments)

    def call_for_two(self, shard: int, method: str, *arguments: Any) -> tuple[Any, Any]:
        first, second = self._shards[shard].call.options(num_returns=2).remote(method, *arguments)
        return first, second

    def put(self, value: Any) -> Any:
        return self._ray.put(value)

    def get(self, put: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return self._ray.get(put)
        except RayError as error:
            raise InputLost(_first_line(error)) from None

    def wait(self, handles: Sequence[Any], timeout: float) -> set[Any]:
        if not handles:
            return set()
        wait = self._ray.wait
        ready, rest = wait(list(handles), num_returns=1, timeout=timeout, fetch_local=False)
        if ready and rest:
            ready += wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return set(ready)

    def take(self, handle: Any) -> Any:
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            value = self._ray.get(handle)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ShoalError):
                raise ShoalError(str(cause)) from None
            if isinstance(cause, RayError):
                raise InputLost(_first_line(cause)) from None
            raise ShoalError(f"a shard failed: {type(cause).__name__}: {cause}") from error
        except RayActorError as error:
            raise ShardLost(_first_line(error)) from None
        except RayError as error:
            raise InputLost(_first_line(error)) from None
        if handle in self._starting:
            self._ready.add(self._starting.pop(handle))
        return value

    def kill(self, shard: int) -> None:
        from shoal.execution.cluster.session import kill_process

        actor = self._shards.pop(shard, None)
        if actor is None:
            return
        identity = self._identity(self._told.pop(shard))
        self._ray.kill(actor)
        if identity is not None:  # Ray lets go of a stopped process, but does not end it
            killing = threading.Thread(target=kill_process, args=identity, daemon=True)
            killing.start()
            self._killing = [thread for thread in self._killing if thread.is_alive()] + [killing]
        self._starting = {ready: other for ready, other in self._starting.items() if other != shard}
        self._ready.discard(shard)

    def _identity(self, told: Any) -> Any:
        """Of a process, if it has said so."""
        from ray.exceptions import RayError

        try:
            return self._ray.get(told, timeout=0)
        except RayError:  # also that there is no answer yet
            return None

    def identities(self) -> dict[int, Any]:
        """Of every shard that has been ready: its node, process number and start time."""
        known = {shard: self._identity(self._told[shard]) for shard in self._ready}
        return {shard: identity for shard, identity in known.items() if identity is not None}

    def close(self) -> None:
        for shard in list(self._shards):
            self.kill(shard)
        for killing in self._killing:  # Ray may be gone thereafter, and a stopped process would stay
            killing.join(KILL_SECONDS)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
