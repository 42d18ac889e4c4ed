"""What the supervisor of parameter shards keeps: steps, where all shards stand by them, and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shoal.execution.parameter_server.shard import Step
from shoal.types import State


class Work(NamedTuple):
    """A step, and for each of its gradients the fleet's handles of its parts, by shard."""

    step: Step
    gradients: tuple[Sequence[Any], ...] = ()


class Done(NamedTuple):
    """Steps that all shards made, from this version on: a letter of them, and the parts of all gradients."""

    version: int
    letter: Any
    gradients: list[Sequence[Any]]

    def arguments(self, s: int) -> tuple[Any, ...]:
        """Of `ParameterShard.advance`."""
        return self.version, self.letter, *(parts[s] for parts in self.gradients)


class Mark(NamedTuple):
    """What counts, in one value: an interruption finds a change of it made or not made, never half of it.

    base: the snapshot, each shard's share of the State after `base_version` steps. log: the steps since then;
    bytes: of their gradients. version, env_steps, slices (handles of what shards published): of after them.
    norms: what the last steps gave.
    """

    base: list[State]
    base_version: int
    version: int
    slices: tuple[Any, ...]
    env_steps: int = 0
    log: tuple[Done, ...] = ()
    bytes: int = 0
    norms: tuple[float, ...] = ()


@dataclass
class Recovery:
    """What became of lost shards: how many, and the seconds until each had all again."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0


def kinds(work: Sequence[Work]) -> str:
    """What a shard compiles for it."""
    found = {"apply" if one.step.pushes else "" for one in work}
    return " ".join(sorted(found | {"observe" if one.step.seen is not None else "" for one in work}))
