"""The numbers that environments give in `info`, as means between two results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.envs.errors import EnvError
from shoal.envs.rows import MASK
from shoal.types import EnvSpec

_NUMBERS = (int, float, np.number, np.bool_)


class Means:
    """Running means of the numbers in `info`. What is a number is decided once for each set of names."""

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        self._plans: dict[tuple[Any, ...], list[Any]] = {}

    def add(self, info: Mapping[str, Any]) -> None:
        names = tuple(info)
        plan = self._plans.get(names)
        if plan is None:
            if MASK in names and not self._spec.masked:
                raise EnvError(
                    f"{self._spec.id} shows an {MASK} in the info of a step, and showed none in that of its "
                    "first reset: it must be on every row"
                )
            wanted = [n for n in names if isinstance(n, str) and n != MASK and not n.startswith("_")]
            numbers = [n for n in wanted if isinstance(info[n], _NUMBERS)]
            plan = self._plans[names] = [0, numbers, [0.0] * len(numbers)]
        plan[0] += 1
        sums = plan[2]
        try:
            for k, name in enumerate(plan[1]):
                sums[k] += info[name]
        except TypeError:  # what was a number before is None or a text now: it counts no more
            plan[1] = [n for n in plan[1] if isinstance(info[n], _NUMBERS)]
            plan[0], plan[2] = 0, [0.0] * len(plan[1])

    def result(self) -> dict[str, float]:
        totals: dict[str, tuple[float, int]] = {}
        for count, names, sums in self._plans.values():
            for name, value in zip(names, sums, strict=True):
                if count == 0 or np.ndim(value):
                    continue
                before, n = totals.get(name, (0.0, 0))
                totals[name] = (before + float(value), n + count)
        return {name: value / n for name, (value, n) in sorted(totals.items())}
