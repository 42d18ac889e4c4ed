"""Finite Markov decision processes: described, solved exactly, drawn, and made into environments.

The exact answers are the truth that learning algorithms are tested against.

    mdp = mdp_of("FrozenLake-v1", gamma=0.99, env_kwargs={"map_name": "8x8"})
    solution = value_iteration(mdp, tolerance=1e-9)     # V, policy, and a bound on the error of V
    evaluate(mdp, policy)                               # V of any policy, exactly
    MDPEnv(mdp)                                         # the same MDP as an environment to learn in

The public names are listed here once and imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "MDP": "shoal.tabular.mdp",
    "Grid": "shoal.tabular.mdp",
    "random_mdp": "shoal.tabular.random",
    "MDPEnv": "shoal.tabular.env",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from shoal.tabular.env import MDPEnv as MDPEnv
    from shoal.tabular.mdp import MDP as MDP
    from shoal.tabular.mdp import Grid as Grid
    from shoal.tabular.random import random_mdp as random_mdp


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
