"""Conformance checks that anyone can run, and tiny environments whose answers are known.

    check_env("CartPole-v1")                     is this environment fit to be trained on, saved and repeated?
    check_agent(PPO().bind(spec), spec)          does this agent keep what executors rely on?

Both return a report of what they looked at, and raise ShoalError, one line, at the first fault.
"""

from __future__ import annotations

from shoal.testing.agents import AgentReport, check_agent
from shoal.testing.environments import EnvReport, check_env
from shoal.testing.tiny import Constant, Identity, Masked, Recall, as_gymnasium, sample

__all__ = [
    "AgentReport",
    "Constant",
    "EnvReport",
    "Identity",
    "Masked",
    "Recall",
    "as_gymnasium",
    "check_agent",
    "check_env",
    "sample",
]
