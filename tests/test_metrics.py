"""Episodes against a loop over single steps; results that print, compare and write themselves."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import checkpoint
from shoal.metrics import Episodes, Finished, Result

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def fragments(seed: int, rows: int, size: int, end: float) -> tuple[np.ndarray, np.ndarray]:
    """reward [T, B] of many magnitudes, so that the order of additions shows; first [T + 1, B]."""
    rng = np.random.default_rng(seed)
    first = rng.random((rows + 1, size)) < end
    reward = (rng.normal(size=(rows, size)) * 10.0 ** rng.integers(-6, 7, (rows, size))).astype(np.float32)
    return np.where(first[1:], 0, reward).astype(np.float32), first


def naive(groups: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int, int, float, int]]:
    """(row, group, env, return, length) of each episode, one step after another."""
    found = []
    for group, (reward, first) in enumerate(groups):
        for env in range(reward.shape[1]):
            total, length = 0.0, 0
            for t in range(len(reward)):
                if first[t + 1, env]:
                    if length:
                        found.append((t, group, env, total, length))
                    total, length = 0.0, 0
                else:
                    total, length = total + float(reward[t, env]), length + 1
    return sorted(found)


def listed(finished: Finished) -> list[tuple[int, int, float, int]]:
    return list(zip(*(column.tolist() for column in finished), strict=True))


def bits(episodes: Episodes) -> dict[str, bytes]:
    """All that is saved, to the last bit."""
    return {path: array.tobytes() for path, array in checkpoint.flatten(episodes.save()).items()}


def pieces(array: np.ndarray, cuts: list[int], overlap: int) -> list[np.ndarray]:
    edges = [0, *cuts, len(array) - overlap]
    return [array[a : b + overlap] for a, b in itertools.pairwise(edges)]


class TestEpisodes:
    @FEW
    @given(
        seed=st.integers(0, 99),
        rows=st.integers(1, 40),
        size=st.sampled_from([1, 3, 70]),
        end=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
    )
    def test_equals_a_loop_over_steps_to_the_last_bit(
        self, seed: int, rows: int, size: int, end: float
    ) -> None:
        groups = [fragments(seed + i, rows, size, end) for i in range(2)]
        wanted = naive(groups)
        episodes = Episodes(window=7)
        for number, (reward, first) in enumerate(groups):
            episodes.add(number, reward, first)
        assert episodes.count == len(wanted)
        assert listed(episodes.recent()) == [w[1:] for w in wanted]
        last = wanted[-7:]
        if last:
            assert episodes.mean_return() == math.fsum(w[3] for w in last) / len(last)
            assert episodes.mean_length() == sum(w[4] for w in last) / len(last)
        else:
            assert math.isnan(episodes.mean_return()) and math.isnan(episodes.mean_length())

    @FEW
    @given(
        seed=st.integers(0, 99),
        rows=st.integers(2, 40),
        size=st.sampled_from([1, 4, 65]),
        cuts=st.lists(st.integers(1, 39), max_size=4, unique=True).map(sorted),
    )
    def test_cutting_time_elsewhere_changes_nothing(
        self, seed: int, rows: int, size: int, cuts: list[int]
    ) -> None:
        cuts = [cut for cut in cuts if cut < rows]
        groups = [fragments(seed + i, rows, size, 0.1) for i in range(2)]
        whole, cut_up = Episodes(window=9), Episodes(window=9)
        for number, (reward, first) in enumerate(groups):
            whole.add(number, reward, first)
        parts = [list(zip(pieces(r, cuts, 0), pieces(f, cuts, 1), strict=True)) for r, f in groups]
        for i in range(len(cuts) + 1):
            for number in (1, 0):  # in whatever order the groups arrive
                cut_up.add(number, *parts[number][i])
            cut_up.mean_return()
        assert listed(cut_up.recent()) == listed(whole.recent())
        assert cut_up.mean_return() == whole.mean_return() or math.isnan(whole.mean_return())
        assert bits(cut_up) == bits(whole)

    def test_a_saved_one_goes_on_bit_for_bit(self, tmp_path: Any) -> None:
        one, other = Episodes(window=5), Episodes(window=5)
        for i in range(3):
            for group in range(2):
                one.add(group, *fragments(10 * i + group, 20, 3, 0.1))
        checkpoint.save(tmp_path / "x", {"episodes": one.save()}, {})
        one.recent()  # belongs to the iteration that was saved
        other.load(checkpoint.nested(checkpoint.load(tmp_path / "x").arrays, "episodes"))
        for i in range(3, 6):
            for episodes in (one, other):
                for group in range(2):
                    episodes.add(group, *fragments(10 * i + group, 20, 3, 0.1))
            assert listed(one.recent()) == listed(other.recent())
            assert (one.count, one.mean_return()) == (other.count, other.mean_return())
        assert bits(one) == bits(other)

    def test_an_untouched_one_can_be_saved(self, tmp_path: Any) -> None:
        checkpoint.save(tmp_path / "x", Episodes().save(), {})
        episodes = Episodes()
        episodes.load(checkpoint.nested(checkpoint.load(tmp_path / "x").arrays, ""))
        assert episodes.count == 0 and math.isnan(episodes.mean_return())

    def test_what_was_saved_is_a_copy(self) -> None:
        episodes = Episodes()
        episodes.add(0, np.ones((3, 2), np.float32), np.zeros((4, 2), bool))
        saved = episodes.save()
        before = repr(saved)
        episodes.add(0, np.ones((3, 2), np.float32), np.zeros((4, 2), bool))
        assert repr(saved) == before

    def test_recent_is_only_what_is_new(self) -> None:
        episodes = Episodes()
        first = np.array([[True], [False], [True], [False]])
        episodes.add(0, np.array([[1], [0], [5]], np.float32), first)
        assert listed(episodes.recent()) == [(0, 0, 1.0, 1)]
        assert listed(episodes.recent()) == []
        episodes.add(0, np.array([[7], [0]], np.float32), np.array([[False], [False], [True]]))
        assert listed(episodes.recent()) == [(0, 0, 12.0, 2)]
        assert (episodes.count, episodes.mean_return(), episodes.mean_length()) == (2, 6.5, 1.5)

    def test_numbers_on_reset_rows_do_not_count(self) -> None:
        episodes = Episodes()
        reward = np.array([[1.0], [math.nan], [2.0], [9.0]], np.float32)
        episodes.add(0, reward, np.array([[True], [False], [True], [False], [True]]))
        assert listed(episodes.recent()) == [(0, 0, 1.0, 1), (0, 0, 2.0, 1)]

    def test_jax_arrays_do_as_well(self) -> None:
        episodes = Episodes()
        episodes.add(0, jnp.ones((2, 1)), jnp.array([[True], [False], [True]]))
        assert listed(episodes.recent()) == [(0, 0, 1.0, 1)]

    def test_the_window_holds_the_last(self) -> None:
        episodes = Episodes(window=2)
        first = np.array([[True], [False], [True], [False], [True], [False], [True]])
        episodes.add(0, np.array([[1], [0], [2], [0], [4], [0]], np.float32), first)
        assert episodes.mean_return() == 3.0 and episodes.count == 3

    def test_costs_little(self) -> None:
        """Well under a fragment's cost where few episodes end; generous, for busy machines."""
        reward, first = fragments(0, 128, 8, 0.003)
        episodes, best = Episodes(), math.inf
        for _ in range(50):
            begin = time.perf_counter()
            episodes.add(0, reward, first)
            episodes.mean_return()
            best = min(best, time.perf_counter() - begin)
        assert best < 1e-3


ROW: dict[str, Any] = {
    "timing/seconds": 1.25,
    "timing/act": 0.5,
    "loss/policy": np.float32(-0.5),
    "env/score": math.nan,
    "loss/value": jnp.asarray(12.25),
    "updates": 3,
    "episode_length_mean": 20.0,
    "episode_return_mean": math.nan,
    "episodes": 4,
    "env_steps": 1_234_567,
    "iteration": np.int64(2),
}


class TestResult:
    def test_prints_as_a_table(self) -> None:
        assert str(Result(ROW)).splitlines() == [
            "iteration                    2",
            "env_steps            1,234,567",
            "episodes                     4",
            "episode_return_mean        nan",
            "episode_length_mean         20",
            "updates                      3",
            "loss",
            "  policy                  -0.5",
            "  value                  12.25",
            "env",
            "  score                    nan",
            "timing",
            "  seconds                 1.25",
            "  act                      0.5",
        ]
        assert str(Result({})) == ""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.00012345678, "0.0001235"),
            (1.2e-9, "1.2e-09"),
            (1234.56, "1,234.6"),
            (-98765.4, "-98,765.4"),
            (2e6, "2,000,000"),
            (3.5e12, "3,500,000,000,000"),
            (1.5e20, "1.5e+20"),
            (math.inf, "inf"),
            (True, "True"),
            (10**12, "1,000,000,000,000"),
        ],
    )
    def test_numbers_are_easy_to_read(self, value: Any, text: str) -> None:
        assert str(Result({"x": value})).split() == ["x", text]

    def test_is_a_mapping_that_cannot_be_changed(self) -> None:
        result = Result(ROW)
        assert result["iteration"] == 2 and type(result["iteration"]) is int
        assert type(result["loss/policy"]) is float
        assert dict(result)["updates"] == 3 and len(result) == len(ROW) and "nothing" not in result
        with pytest.raises(TypeError):
            result["iteration"] = 3  # type: ignore[index]
        with pytest.raises(AttributeError):
            result.x = 3  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            result._values = {}
        assert pickle.loads(pickle.dumps(result)).same(result)

    def test_becomes_a_row_of_json(self) -> None:
        row = json.loads(Result(ROW).to_json_row())
        assert row["env/score"] is None and row["loss/value"] == 12.25
        assert list(row)[:3] == ["iteration", "env_steps", "episodes"]
        assert "\n" not in Result(ROW).to_json_row()

    def test_equal_but_for_timing(self) -> None:
        result = Result(ROW)
        assert result.same({**result, "timing/seconds": 9.0, "timing/more": 1.0})
        assert not result.same({**result, "loss/policy": np.nextafter(-0.5, 0)})
        assert not result.same({**result, "more": 1.0})
        assert not result.same({n: v for n, v in result.items() if n != "env/score"})
