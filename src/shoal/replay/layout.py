"""How a replay is laid out: plain integers, fixed before anything is stored."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ShoalError
from shoal.types import EnvSpec, Replay


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a replay of `rows` C rows and `envs` B environments, a ring.

    fragment: T, the rows that are inserted at a time; C is a multiple of it. n_step, prioritized: as in the
    plan. frames: how many an observation stacks, as in EnvSpec. sequence: L, or 0 for transitions.

    What is drawn is a *unit*: a row of one environment, or, for sequences, the stretch that begins where a
    fragment began. Its number is (row // stride) * B + environment, which is `index` in what is drawn.
    """

    rows: int
    envs: int
    fragment: int
    n_step: int = 1
    frames: int = 1
    sequence: int = 0
    prioritized: bool = False

    @property
    def stride(self) -> int:
        """Rows from one unit to the next: 1, or T for sequences."""
        return self.fragment if self.sequence else 1

    @property
    def span(self) -> int:
        """Rows that must follow a unit's beginning before it can be drawn: a multiple of `stride`."""
        return -(-max(self.sequence, 1) // self.stride) * self.stride

    @property
    def units(self) -> int:
        """How many units there are, of all environments."""
        return self.rows // self.stride * self.envs

    @property
    def touched(self) -> int:
        """How many rows of units one insertion can change: those that it fills, the row before them (whose
        following observation it brings), and the oldest ones (that it takes or whose frames it takes)."""
        oldest = (self.frames - 1) // self.stride
        return 1 + self.span // self.stride + self.fragment // self.stride + oldest

    @staticmethod
    def of(plan: Replay, spec: EnvSpec, envs: int) -> Layout:
        """The layout for B = `envs` environments in all. At least `plan.capacity` rows can be drawn from.

        ShoalError where the capacity does not hold one fragment (or window, or sequence) of every
        environment, and where it is too large for int32 indices.
        """
        for name, value in (("rows", plan.rows), ("batch_size", plan.batch_size), ("n_step", plan.n_step)):
            if value < 1:
                raise ShoalError(f"a replay's {name} must be at least 1, got {value}")
        each = -(-plan.capacity // envs)
        needed = max(plan.rows, plan.sequence or plan.n_step)
        if each < needed:
            what = "a sequence" if plan.sequence == needed else "a fragment or an n-step window"
            raise ShoalError(
                f"a replay capacity of {plan.capacity} is too small for {envs} environments with {what} of "
                f"{needed} rows each; at least {needed * envs} is needed"
            )
        # One row more holds the newest observation; a sequence gives up the rest of that fragment too.
        shape = Layout(
            rows=-(-(each + spec.frames) // plan.rows) * plan.rows + (plan.rows if plan.sequence else 0),
            envs=envs,
            fragment=plan.rows,
            n_step=plan.n_step,
            frames=spec.frames,
            sequence=plan.sequence,
            prioritized=plan.prioritized,
        )
        least = -(-shape.touched * shape.stride // plan.rows) * plan.rows
        rows = max(shape.rows, least)
        if rows * envs >= 2**30:
            raise ShoalError(f"a replay capacity of {plan.capacity} is too large; it must be below 2^30")
        if plan.prioritized and plan.batch_size >= 2**16:
            raise ShoalError(f"a prioritised batch_size must be below 65536, got {plan.batch_size}")
        return Layout(**{**vars(shape), "rows": rows})
