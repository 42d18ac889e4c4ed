"""What settings may be, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from shoal import DQN, PPO, SAC, Compiled, Local, Mesh, QLearning, ShoalError, spaces
from shoal.checks import typed
from shoal.types import EnvSpec

BOX = EnvSpec(id="box", observation=spaces.Box((2,)), action=spaces.Box((1,), -1.0, 1.0))


@dataclass(frozen=True)
class Settings:
    count: Any = 1
    rate: Any = 0.5
    flag: Any = True
    name: Any = "a"
    widths: Any = (4, 4)
    choice: Any = "x"
    limit: Any = None
    cap: Any = 1.0
    build: Any = None
    part: Any = None
    anything: Any = 3


Settings.__annotations__ |= {
    "count": int,
    "rate": float,
    "flag": bool,
    "name": str,
    "widths": tuple[int, ...],
    "choice": Literal["x", "y"],
    "limit": int | None,
    "cap": float | None,
    "build": Callable[[int], Mesh] | None,
    "part": Mesh | None,
}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"count": np.int64(3), "rate": np.float32(1), "limit": 4},
        {"rate": 1, "widths": [8], "choice": "of those who know"},
        {"build": lambda space: Mesh(), "part": Mesh()},
    ],
)
def test_what_is_right(given: dict[str, Any]) -> None:
    typed(Settings(**given))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"count": 2.5}, "Settings: count must be a whole number, got 2.5"),
        ({"count": True}, "Settings: count must be a whole number, got True"),
        ({"rate": "3e-4"}, "Settings: rate must be a number, got '3e-4'"),
        ({"flag": 1}, "Settings: flag must be True or False, got 1"),
        ({"name": 1}, "Settings: name must be a text, got 1"),
        ({"widths": 64}, "Settings: widths must be whole numbers such as (64, 64), got 64"),
        ({"widths": (64, 0.5)}, "Settings: widths must be whole numbers such as (64, 64), got (64, 0.5)"),
        ({"choice": 3}, "Settings: choice must be one of 'x', 'y', got 3"),
        ({"rate": math.nan}, "Settings: rate must be finite, got nan"),
        ({"cap": math.inf}, "Settings: cap must be finite, got inf; None has no limit"),
        ({"build": "cnn"}, "Settings: build must be a function from a space to a Mesh or None, got 'cnn'"),
        ({"part": 2}, "Settings: part must be a Mesh such as Mesh(data=...) or None, got 2"),
        ({"limit": "4"}, "Settings: limit must be a whole number or None, got '4'"),
    ],
)
def test_what_is_wrong_is_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ShoalError) as caught:
        typed(Settings(**given))
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "make",
    [
        lambda: PPO(hidden=64),  # pyright: ignore
        lambda: PPO(learning_rate="3e-4"),  # pyright: ignore
        lambda: DQN(train_every=2.5),  # pyright: ignore
        lambda: SAC(critics=None),  # pyright: ignore
        lambda: QLearning(double="yes"),  # pyright: ignore
        lambda: DQN(distributional="categorical", v_max=math.inf),
        lambda: SAC(target_entropy=math.nan),
        lambda: PPO(network="cnn"),  # pyright: ignore
        lambda: PPO(network=lambda space: 3).bind(BOX),  # pyright: ignore
        lambda: SAC(network=lambda space: 3).bind(BOX),  # pyright: ignore
        lambda: Local(envs="8"),  # pyright: ignore
        lambda: Local(envs=8.0),  # pyright: ignore
        lambda: Compiled(envs=2.5),  # pyright: ignore
    ],
)
def test_settings_are_checked(make: Any) -> None:
    with pytest.raises(ShoalError, match="must be"):
        make()
