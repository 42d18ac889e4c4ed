"""Environments: `resolve` gives the `Source` of what a user names; one convention for all.

Names are imported when they are used, so that `import shoal.envs` needs neither Gymnasium nor JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Source": "source",
    "resolve": "source",
    "EnvError": "errors",
    "GymnasiumGroup": "gymnasium",
    "JaxGroup": "jax",
    "VectorEnv": "jax",
    "vectorize": "jax",
    "VectorGroup": "vector",
    "GridWorld": "gridworld",
    "mdp_of": "toy_text",
    "CartPole": "cartpole",
    "atari": "wrappers",
    "frame_stack": "wrappers",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
