"""The algorithms, by name. A new one is one file, its test, its page, and one line here."""

from __future__ import annotations

import importlib
from typing import Any

from shoal.errors import ShoalError, did_you_mean

REGISTRY = {
    "q_learning": "shoal.algorithms.q_learning:QLearning",
    "sarsa": "shoal.algorithms.sarsa:SARSA",
    "reinforce": "shoal.algorithms.reinforce:REINFORCE",
    "a2c": "shoal.algorithms.a2c:A2C",
    "ppo": "shoal.algorithms.ppo:PPO",
    "impala": "shoal.algorithms.impala:IMPALA",
    "appo": "shoal.algorithms.appo:APPO",
    "dqn": "shoal.algorithms.dqn:DQN",
    "sac": "shoal.algorithms.sac:SAC",
    "td3": "shoal.algorithms.td3:TD3",
}

# Functions that give an algorithm's dataclass with other defaults.
PRESETS = {
    "a3c": "shoal.algorithms.a2c:A3C",
    "rainbow": "shoal.algorithms.dqn_presets:Rainbow",
    "apex": "shoal.algorithms.dqn_presets:ApexDQN",
    "ddpg": "shoal.algorithms.td3:DDPG",
}


def load(name: str) -> type[Any]:
    """The dataclass of an algorithm's (or a preset's) hyper-parameters. ShoalError for an unknown name."""
    made = _named(name)
    return made if isinstance(made, type) else type(made())


def default(name: str) -> Any:
    """The algorithm as it is where nothing is set; of a preset, with its values."""
    return _named(name)()


def _named(name: str) -> Any:
    known = {**REGISTRY, **PRESETS}
    if name.lower() not in known:
        raise ShoalError(f"unknown algorithm {name!r}: {did_you_mean(name, known)}")
    module, _, attribute = known[name.lower()].partition(":")
    return getattr(importlib.import_module(module), attribute)


def name_of(algorithm: object) -> str | None:
    """The registered name of an algorithm's dataclass instance; None for a user's own."""
    cls = type(algorithm)
    reference = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, known in REGISTRY.items() if known == reference), None)
