"""What the driver of a learner group keeps: what members were told, and where they stand by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.execution.cluster.learners.crew import Call
from shoal.execution.cluster.learners.member import Told
from shoal.types import State


class Order(NamedTuple):
    """arguments: those that all members get; each: those that each member has of its own. bytes: of the
    experience that is held for it."""

    method: str
    arguments: tuple[Any, ...] = ()
    each: tuple[tuple[Any, ...], ...] | None = None
    bytes: int = 0


class Sent(NamedTuple):
    """replaces: of a commit, the number of the first order that is not in it."""

    order: Order
    call: Call
    replaces: int | None


@dataclass
class Asked:
    """The update that was last asked for. experience: as it is sent; None once the answer was given. told:
    the answer, once it is there."""

    order: Order
    key: np.ndarray
    experience: Sequence[Any] | None
    told: Told | None = None

    def is_again(self, method: str, experience: Sequence[Any], key: np.ndarray) -> bool:
        """Whether that is this one, asked for once more. A run that is interrupted may go on with the key and
        other experience. (What is drawn beside a trajectory may have got other weights.)"""
        if (method, key.tobytes()) != (self.order.method, self.key.tobytes()):
            return False
        return self.experience is None or _same(self.experience[0], experience[0])


class Stand(NamedTuple):
    """What counts, in one value: an interruption finds a change of it made or not made, never half of it.

    committed: a whole State; None: the one that the seed gives. first: the number of the first order that is
    not in it. log: these orders. asked: the last update among all orders.
    """

    committed: State | None = None
    first: int = 0
    log: tuple[Order, ...] = ()
    asked: Asked | None = None

    @property
    def bytes(self) -> int:
        """Of the experience that is held."""
        return sum(order.bytes for order in self.log)

    @property
    def end(self) -> int:
        """The next order's number."""
        return self.first + len(self.log)

    def after(self, order: Order, asked: Asked | None = None) -> Stand:
        return self._replace(log=(*self.log, order), asked=asked or self.asked)

    def without(self, asked: Asked) -> Stand:
        return self._replace(log=tuple(one for one in self.log if one is not asked.order), asked=None)

    def commit(self, state: State, replaces: int) -> Stand:
        return Stand(state, replaces, self.log[replaces - self.first :], self.asked)


def _same(one: Any, other: Any) -> bool:
    (leaves, form), (others, form_too) = jax.tree.flatten(one), jax.tree.flatten(other)
    return form == form_too and all(
        np.shape(x) == np.shape(y) and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(leaves, others, strict=True)
    )


@dataclass
class Losses:
    """count: how often members were lost. seconds: from when that was known until the group stood again where
    it had been, each time. repeated: updates that were made again."""

    count: int = 0
    seconds: list[float] = field(default_factory=list)
    repeated: int = 0
