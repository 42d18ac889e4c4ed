"""The members of a learner group on Ray: started together, asked together, ended together."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.errors import ShoalError
from shoal.execution.cluster.learners.member import Member, Task
from shoal.execution.cluster.luggage import pack
from shoal.execution.cluster.session import kill_process

PLACE_SECONDS = 20.0  # for the cluster to find room
KILL_SECONDS = 2.0  # for a signal to be sent, before the next members start
GRACE_SECONDS = 1.0  # for the loss to be known that made another member fail


# What XLA says, for instance of another member that is gone: "UNKNOWN: Gloo AllReduce failed: ..."
XLA_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")


class MembersLost(Exception):
    """A member is dead or silent, so that none can go on. hang: it was silent."""

    def __init__(self, reason: str, *, hang: bool = False) -> None:
        super().__init__(reason)
        self.hang = hang


class Call(NamedTuple):
    """What all members were asked at a time, and each one's answer to come."""

    answers: tuple[Any, ...]


class Crew(Protocol):
    """The members, as one. Only `wait` blocks."""

    @property
    def count(self) -> int: ...

    def start(self) -> Call:
        """New members; the answers are what `Member.begin` gives."""
        ...

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        """arguments: of each member's own method, what `put` gave among them."""
        ...

    def put(self, value: Any) -> Any:
        """A handle for something large, for as long as it is held."""
        ...

    def wait(self, call: Call, seconds: float) -> list[Any]:
        """All answers. Raises MembersLost, and ShoalError for what another try would not mend."""
        ...

    def kill(self) -> None:
        """End all members at once, also those that are stopped."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Room:
    """What Ray is asked for each member. Members are placed on few nodes: they speak all the time."""

    cpus: float = 1.0
    gpus: int = 0


class RayCrew:
    """Members that are actors on a Ray that this process has joined."""

    def __init__(self, task: Task, room: Room) -> None:
        """Raises ShoalError where the cluster has no room, or the task cannot travel."""
        self.count = task.mesh.size
        self._gpu = task.gpu
        self._luggage = ray.put(pack(task))
        each = {"CPU": room.cpus} | ({"GPU": float(room.gpus)} if room.gpus else {})
        self._place = placement_group([dict(each) for _ in range(self.count)], strategy="PACK")
        if not self._place.wait(PLACE_SECONDS):
            remove_placement_group(self._place)
            raise ShoalError(
                f"the cluster had no room within {PLACE_SECONDS:.0f} s for {self.count} learners, each with "
                f"{' and '.join(f'{amount:g} {name}' for name, amount in each.items())}: ask for fewer, or "
                "for less for each"
            )
        remote: Any = ray.remote(Member)
        self._actors = [
            remote.options(
                num_cpus=room.cpus,
                num_gpus=room.gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._place, placement_group_bundle_index=number
                ),
            )
            for number in range(self.count)
        ]
        self._members: list[Any] = []
        self._told: list[Any] = []  # who they are, as soon as they can say so
        self._asked: set[Call] = set()  # and not answered well

    def start(self) -> Call:
        self._members = [actor.remote() for actor in self._actors]
        self._told = [member.identity.remote() for member in self._members]
        meeting = self._members[0].meeting.remote()
        answers = [
            member.begin.remote(self._luggage, self._gpu, number, meeting)
            for number, member in enumerate(self._members)
        ]
        return self._sent(answers)

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        pairs = zip(self._members, arguments, strict=True)
        return self._sent([getattr(member, method).remote(*own) for member, own in pairs])

    def _sent(self, answers: list[Any]) -> Call:
        call = Call(tuple(answers))
        self._asked.add(call)
        return call

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def wait(self, call: Call, seconds: float) -> list[Any]:
        end, waiting = monotonic() + seconds, list(call.answers)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, end - monotonic()))
            if not ready:
                late = [number for number, answer in enumerate(call.answers) if answer in waiting]
                names = f"learner{'s' * (len(late) > 1)} {', '.join(map(str, late))}"
                raise MembersLost(f"{names}: no answer for {seconds:.0f} s", hang=True)
            self._look(call, ready[0])
        self._asked.discard(call)
        return [ray.get(answer) for answer in call.answers]

    def _look(self, call: Call, ready: Any) -> None:
        """Raises what went wrong, if this answer tells of it."""
        try:
            ray.get(ready)
        except RayActorError as error:
            raise MembersLost(f"learner {call.answers.index(ready)} was lost: {_line(error)}") from None
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ShoalError):
                raise ShoalError(str(cause)) from None
            lost = self._dead(call)
            if lost is not None:
                raise MembersLost(f"learner {lost} was lost") from None
            what = f"learner {call.answers.index(ready)} failed: {type(cause).__name__}: {_line(cause)}"
            if isinstance(cause, RayError) or XLA_STATUS.match(str(cause)):
                raise MembersLost(what) from None
            raise ShoalError(what) from error
        except RayError as error:
            raise MembersLost(f"an answer of a learner was lost: {_line(error)}") from None

    def _dead(self, call: Call) -> int | None:
        """A member that is known to be dead, or comes to be known soon."""
        end, waiting = monotonic() + GRACE_SECONDS, list(call.answers)
        while waiting and (left := end - monotonic()) > 0:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=left)
            try:
                ray.get(ready)
            except RayActorError:
                return call.answers.index(ready[0])
            except RayError:
                pass
        return None

    def identities(self) -> dict[int, Any]:
        """Of every member that has said so: its node, process number and start time."""
        known = {number: _answered(told) for number, told in enumerate(self._told)}
        return {number: identity for number, identity in known.items() if identity is not None}

    def kill(self) -> None:
        killing = []
        for identity in self.identities().values():
            # Ray lets go of a stopped process, but does not end it.
            killing.append(threading.Thread(target=kill_process, args=identity, daemon=True))
            killing[-1].start()
        for member in self._members:
            ray.kill(member)
        for thread in killing:
            thread.join(KILL_SECONDS)
        for call in self._asked:
            for answer in call.answers:  # looked at, or Ray would print what went wrong
                answer.future().add_done_callback(lambda done: done.exception())
        self._members, self._told = [], []
        self._asked.clear()

    def close(self) -> None:
        self.kill()
        remove_placement_group(self._place)


def _answered(told: Any) -> Any:
    try:
        return ray.get(told, timeout=0)
    except RayError:  # also that there is no answer yet
        return None


def _line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
