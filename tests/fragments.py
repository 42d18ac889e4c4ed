"""Made-up fragments as environments give them, and the n-step return of each row by its definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Data(NamedTuple):
    reward: np.ndarray
    terminated: np.ndarray
    first: np.ndarray
    values: np.ndarray
    log_ratio: np.ndarray


def random_data(seed: int, rows: int, envs: int, end: float) -> Data:
    """A fragment as environments in NEXT_STEP mode make it: the row after an episode's end only resets."""
    rng = np.random.default_rng(seed)
    first = np.zeros((rows + 1, envs), bool)
    terminated = np.zeros((rows, envs), bool)
    reward = rng.normal(size=(rows, envs))
    for b in range(envs):
        first[0, b] = rng.random() < 0.5
        ended = not first[0, b] and rng.random() < 0.3  # the fragment may start on a row that only resets
        for t in range(rows):
            first[t + 1, b] = ended
            if ended:
                reward[t, b] = 0.0
                ended = False
            else:
                terminated[t, b] = rng.random() < end
                ended = bool(terminated[t, b]) or rng.random() < end  # else a time limit cut it
    values = rng.normal(size=(rows + 1, envs))
    return Data(reward, terminated, first, values, rng.normal(size=(rows, envs)))


def segments(data: Data, b: int) -> list[tuple[int, int]]:
    """The stretches of real rows of environment b: [(first row, row after the last)]."""
    real = ~data.first[1:, b]
    found, start = [], None
    for t, is_real in enumerate(real):
        if is_real and start is None:
            start = t
        if start is not None and not is_real:
            found.append((start, t))
            start = None
    return found if start is None else [*found, (start, len(real))]


def future_value(data: Data, b: int, end: int) -> float:
    """What follows a stretch: nothing if it terminated, V(the observation it stopped at) if it was cut."""
    return 0.0 if data.terminated[end - 1, b] else float(data.values[end, b])


def naive_n_step(data: Data, discount: float, n: int) -> np.ndarray:
    result = data.values[:-1].copy()
    for b in range(result.shape[1]):
        for start, end in segments(data, b):
            for t in range(start, end):
                stop = min(t + n, end)
                total = sum(discount**k * data.reward[t + k, b] for k in range(stop - t))
                after = data.values[stop, b] if stop < end else future_value(data, b, end)
                result[t, b] = total + discount ** (stop - t) * after
    return result
