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
    "q_from_v": "shoal.tabular.bellman",
    "v_from_q": "shoal.tabular.bellman",
    "expectation": "shoal.tabular.bellman",
    "optimality": "shoal.tabular.bellman",
    "greedy": "shoal.tabular.bellman",
    "greedy_actions": "shoal.tabular.bellman",
    "uniform_policy": "shoal.tabular.bellman",
    "under": "shoal.tabular.bellman",
    "evaluate": "shoal.tabular.bellman",
    "sweeps": "shoal.tabular.bellman",
    "policy_value": "shoal.tabular.gradient",
    "policy_return": "shoal.tabular.gradient",
    "Solution": "shoal.tabular.planning",
    "solve": "shoal.tabular.planning",
    "value_iteration": "shoal.tabular.planning",
    "policy_iteration": "shoal.tabular.planning",
    "finite_horizon": "shoal.tabular.planning",
    "reachable": "shoal.tabular.structure",
    "never_ending": "shoal.tabular.structure",
    "mdp_of": "shoal.envs.toy_text",
    "draw": "shoal.tabular.picture",
    "text_grid": "shoal.tabular.picture",
    "random_mdp": "shoal.tabular.random",
    "MDPEnv": "shoal.tabular.env",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from shoal.envs.toy_text import mdp_of as mdp_of
    from shoal.tabular.bellman import evaluate as evaluate
    from shoal.tabular.bellman import expectation as expectation
    from shoal.tabular.bellman import greedy as greedy
    from shoal.tabular.bellman import greedy_actions as greedy_actions
    from shoal.tabular.bellman import optimality as optimality
    from shoal.tabular.bellman import q_from_v as q_from_v
    from shoal.tabular.bellman import sweeps as sweeps
    from shoal.tabular.bellman import under as under
    from shoal.tabular.bellman import uniform_policy as uniform_policy
    from shoal.tabular.bellman import v_from_q as v_from_q
    from shoal.tabular.env import MDPEnv as MDPEnv
    from shoal.tabular.gradient import policy_return as policy_return
    from shoal.tabular.gradient import policy_value as policy_value
    from shoal.tabular.mdp import MDP as MDP
    from shoal.tabular.mdp import Grid as Grid
    from shoal.tabular.picture import draw as draw
    from shoal.tabular.picture import text_grid as text_grid
    from shoal.tabular.planning import Solution as Solution
    from shoal.tabular.planning import finite_horizon as finite_horizon
    from shoal.tabular.planning import policy_iteration as policy_iteration
    from shoal.tabular.planning import solve as solve
    from shoal.tabular.planning import value_iteration as value_iteration
    from shoal.tabular.random import random_mdp as random_mdp
    from shoal.tabular.structure import never_ending as never_ending
    from shoal.tabular.structure import reachable as reachable


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
