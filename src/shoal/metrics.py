"""What a run measures: finished episodes and one iteration's `Result`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shoal.storage import finite

HEADLINE = ("iteration", "env_steps", "episodes", "episode_return_mean", "episode_length_mean")


class Finished(NamedTuple):
    """Episodes that ended, arrays [n]: group int64, env int64 (number within its group), returns float64
    (undiscounted), lengths int64 (real steps)."""

    group: np.ndarray
    env: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray

    @staticmethod
    def of(*parts: Finished) -> Finished:
        """Several in one, in order; of nothing, none."""
        dtypes = (np.int64, np.int64, np.float64, np.int64)
        columns = zip(*parts, strict=True) if parts else ((),) * 4
        return Finished(*(np.concatenate([np.zeros(0, d), *c]) for d, c in zip(dtypes, columns, strict=True)))


class _Group:
    """What one group carries from fragment to fragment: the episodes under way, and its rows so far."""

    def __init__(self, size: int) -> None:
        self.returns = np.zeros(size, np.float64)
        self.lengths = np.zeros(size, np.int64)
        self.row = 0


class Episodes:
    """Returns and lengths of finished episodes, from the fragments in which they happened.

    Rewards are added one after another in float64, so the numbers do not depend on how time was cut into
    fragments. Episodes are put in order of the row (counted from its group's beginning) in which they
    ended, then of group, then of environment. The order is settled whenever something is read: read after
    all groups of an iteration have been added.
    """

    def __init__(self, window: int = 100) -> None:
        self.window = window
        self._count = 0
        self._groups: dict[int, _Group] = {}
        self._pending: list[tuple[np.ndarray, Finished]] = []  # the rows where they ended, and they
        self._recent: list[Finished] = []
        self._last = Finished.of()  # at most `window`

    @property
    def count(self) -> int:
        """Episodes finished since the beginning of the run."""
        return self._count

    def add(self, group: int, reward: Any, first: Any) -> None:
        """A fragment of a group: reward float32 [T, B], first bool [T + 1, B], as in `types.Trajectory`.

        Row t is a real step where first[t + 1] is false. Where it is true the row only resets: the
        episode's last real step was the one before. Episodes without a real step are not counted.
        """
        ends = np.asarray(first)[1:]
        rows, size = ends.shape
        state = self._groups.setdefault(group, _Group(size))
        at, env = np.nonzero(ends)  # by row, then environment
        stops = np.unique(at)
        returns = np.empty((len(stops), size), np.float64)  # before each of the rows in `stops`
        lengths = np.empty((len(stops), size), np.int64)
        # sums[t] becomes the returns before row t; a stretch ends where some episodes begin anew.
        sums = np.empty((rows + 1, size), np.float64)
        np.copyto(sums[1:], reward)
        sums[1:][ends] = 0.0
        sums[0] = state.returns
        start = -state.lengths  # the rows in which the episodes had their first step
        begin = 0
        for i, t in enumerate(stops.tolist()):
            _run(sums[begin : t + 1])
            returns[i] = sums[t]
            lengths[i] = t - start
            sums[t, ends[t]] = 0.0
            start[ends[t]] = t + 1
            begin = t
        _run(sums[begin:])
        state.returns = sums[-1].copy()
        state.lengths = rows - start
        if len(at):
            which = np.searchsorted(stops, at)
            real = lengths[which, env] > 0
            which, env = which[real], env[real]
            numbers = np.full(len(env), group)
            ended = Finished(numbers, env, returns[which, env], lengths[which, env])
            self._pending.append((state.row + at[real], ended))
            self._count += len(env)
        state.row += rows

    def recent(self) -> Finished:
        """The episodes that finished since `recent` was last called."""
        self._settle()
        recent, self._recent = self._recent, []
        return Finished.of(*recent)

    def mean_return(self) -> float:
        """Mean undiscounted return of the last `window` episodes; nan if there is none."""
        self._settle()
        return _mean(self._last.returns)

    def mean_length(self) -> float:
        """Mean length of the last `window` episodes in real steps; nan if there is none."""
        self._settle()
        return _mean(self._last.lengths)

    def save(self) -> dict[str, Any]:
        """All that later numbers depend on, as nested dicts of arrays (what `recent` gives excepted)."""
        self._settle()
        groups = {
            str(number): {"returns": g.returns.copy(), "lengths": g.lengths.copy(), "row": np.int64(g.row)}
            for number, g in sorted(self._groups.items())
        }
        return {"count": np.int64(self._count), "last": self._last._asdict(), "groups": groups}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` gave (also through `checkpoint.nested`)."""
        self._count = int(saved["count"])
        self._groups, self._pending, self._recent = {}, [], []
        self._last = Finished(**{name: np.array(saved["last"][name]) for name in Finished._fields})
        for number, arrays in saved.get("groups", {}).items():
            group = self._groups[int(number)] = _Group(len(arrays["returns"]))
            group.returns[:] = arrays["returns"]
            group.lengths[:] = arrays["lengths"]
            group.row = int(arrays["row"])

    def _settle(self) -> None:
        if self._pending:
            rows = np.concatenate([rows for rows, _ in self._pending])
            ended = Finished.of(*(finished for _, finished in self._pending))
            order = np.lexsort((ended.env, ended.group, rows))
            ended = Finished(*(column[order] for column in ended))
            self._pending = []
            self._recent.append(ended)
            self._last = Finished(*(column[-self.window :] for column in Finished.of(self._last, ended)))


def _run(rows: np.ndarray) -> None:
    """Running sums down the rows in place, added strictly in order (np.sum would add pairwise)."""
    if rows.shape[1] < 64:
        np.add.accumulate(rows, axis=0, out=rows)
    else:  # the same additions, faster for wide rows
        for above, row in pairwise(rows):
            row += above


def _mean(values: np.ndarray) -> float:
    # fsum is exactly rounded, so the mean does not depend on the order either.
    return math.fsum(values) / len(values) if len(values) else math.nan


class Result(Mapping[str, int | float]):
    """One iteration's numbers: a frozen mapping that prints as a table.

    Headline first (iteration, env_steps, episodes, episode_return_mean, episode_length_mean), then the
    groups (`loss/...`, `policy/...`, `env/...`), `timing/...` last. Array scalars become Python numbers.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        plain = {name: v.item() if hasattr(v, "item") else v for name, v in values.items()}
        order = {name: i for i, name in enumerate(plain)}

        def place(name: str) -> tuple[int, int]:
            if name in HEADLINE:
                return 0, HEADLINE.index(name)
            groups = dict.fromkeys(n.partition("/")[0] for n in plain if "/" in n)
            if "/" not in name:
                return 1, order[name]
            group = name.partition("/")[0]
            rank = len(groups) if group == "timing" else list(groups).index(group)
            return 2 + rank, order[name]

        object.__setattr__(self, "_values", {name: plain[name] for name in sorted(plain, key=place)})

    def __getitem__(self, name: str) -> int | float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Result cannot be changed")

    def __reduce__(self) -> tuple[Any, ...]:
        return Result, (dict(self),)

    def __repr__(self) -> str:
        return f"Result({self._values!r})"

    def __str__(self) -> str:
        rows: list[tuple[str, str]] = []
        heading = ""
        for name, value in self._values.items():
            group, slash, rest = name.partition("/")
            if slash and group != heading:
                rows.append((group, ""))
            heading = group if slash else ""
            rows.append((f"  {rest}" if slash else name, _text(value)))
        left = max((len(name) for name, _ in rows), default=0)
        right = max((len(text) for _, text in rows), default=0)
        return "\n".join(f"{name:<{left}}  {text:>{right}}".rstrip() for name, text in rows)

    def to_json_row(self) -> str:
        """One line of JSON, without its end; NaN and infinities as null."""
        return json.dumps(finite(self._values), allow_nan=False)

    def same(self, other: Mapping[str, Any]) -> bool:
        """Whether two results are equal but for `timing/`, bit for bit, NaN being equal to NaN."""

        def key(values: Mapping[str, Any]) -> dict[str, str]:
            return {n: float(v).hex() for n, v in values.items() if not n.startswith("timing/")}

        return key(self) == key(other)


def _text(value: int | float) -> str:
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and 1e4 <= abs(value) < 1e15):
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e9:
        return f"{value:,.1f}"
    return f"{value:.4g}"
