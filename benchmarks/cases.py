"""What is measured: cases as plain data. A case is one kind of work; its entries are who does it, and how.

Keys of an entry's work, as the drivers get them: preset ("equal": the hyper-parameters below; "own": what
the library itself recommends for this environment; "default": the library's defaults), env, envs, rows
(rollout length), epochs, minibatches, learning_rate, gamma, gae_lambda, clip, entropy, value,
max_grad_norm, hidden, activation, steps (upper bound of environment steps), seconds (of measured time,
None: no bound), target (mean return at which the run ends), wall (seconds from process start after which
it ends at the latest), threads (of the numeric library; None: its default), cache ("cold": nothing compiled
before; "warm": a persistent compilation cache that an earlier run has filled), runners (RLlib), chunk
(rejax: iterations per call), vector (Shoal: Gymnasium's own vector version of the environment).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EQUAL = {
    "preset": "equal",
    "env": "CartPole-v1",
    "rows": 128,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "entropy": 0.0,
    "value": 0.5,
    "max_grad_norm": 0.5,
    "hidden": [64, 64],
    "activation": "tanh",
    "steps": 10_000_000,
    "seconds": 10,
    "target": None,
    "wall": 240,
    "threads": 1,
    "cache": "cold",
    "runners": 0,
    "chunk": 16,
}
TO_TARGET = {**EQUAL, "preset": "own", "target": 475.0, "seconds": None, "steps": 500_000}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Who runs a case: a library and what it has different from the case's work."""

    library: str
    work: dict[str, Any]

    @staticmethod
    def of(library: str, **work: Any) -> Entry:
        return Entry(library=library, work=work)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of work. `baseline` names the entry that the others' speed is divided by."""

    name: str
    suite: str
    title: str
    work: dict[str, Any]
    entries: dict[str, Entry]
    baseline: str


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            name="ppo-cartpole-8",
            suite="speed",
            title="PPO, Gymnasium CartPole-v1, 8 environments in one process, equal work "
            "(128 rows, 4 epochs of 4 minibatches, two 64x64 tanh networks), 1 thread",
            work={**EQUAL, "envs": 8},
            entries={
                "SB3": Entry.of("sb3"),
                "SB3, RL-Zoo settings (32 rows, 20 epochs)": Entry.of("sb3", preset="own", steps=100_000),
                "SB3, default settings (2048 rows, 10 epochs)": Entry.of("sb3", preset="default"),
                "SBX": Entry.of("sbx"),
                "RLlib, 0 runners": Entry.of("rllib"),
                "Shoal": Entry.of("shoal"),
                "Shoal, Gymnasium's vectorised CartPole": Entry.of("shoal", vector=True),
            },
            baseline="SB3",
        ),
        Case(
            name="ppo-cartpole-64",
            suite="speed",
            title="PPO, Gymnasium CartPole-v1, 64 environments in one process, equal work "
            "(128 rows, 4 epochs of 4 minibatches, two 64x64 tanh networks), 1 thread",
            work={**EQUAL, "envs": 64},
            entries={
                "SB3": Entry.of("sb3"),
                "SB3, 8 environments": Entry.of("sb3", envs=8),
                "SB3, 8 environments, RL-Zoo settings": Entry.of("sb3", envs=8, preset="own", steps=100_000),
                "Shoal": Entry.of("shoal"),
                "Shoal, Gymnasium's vectorised CartPole": Entry.of("shoal", vector=True),
            },
            baseline="SB3",
        ),
        Case(
            name="ppo-cartpole-64-small",
            suite="speed",
            title="PPO, Gymnasium CartPole-v1, 64 environments in one process, equal work with more gradient "
            "steps (32 rows, 4 epochs of 8 minibatches of 256), 1 thread",
            work={**EQUAL, "envs": 64, "rows": 32, "minibatches": 8},
            entries={
                "SB3": Entry.of("sb3"),
                "Shoal": Entry.of("shoal"),
                "Shoal, Gymnasium's vectorised CartPole": Entry.of("shoal", vector=True),
            },
            baseline="SB3",
        ),
        Case(
            name="ppo-cartpole-475",
            suite="target",
            title="PPO, Gymnasium CartPole-v1: seconds from process start to a mean of 475 over the last 100 "
            "training episodes, each library with the settings it recommends",
            work={**TO_TARGET, "envs": 8},
            entries={
                "SB3, RL-Zoo settings": Entry.of("sb3", steps=100_000),
                "SBX, RL-Zoo settings": Entry.of("sbx", steps=100_000),
                "RLlib, tuned example, 0 runners": Entry.of("rllib"),
                "Shoal, 8 environments": Entry.of("shoal"),
                "Shoal, 8 environments, warm cache": Entry.of("shoal", cache="warm"),
                "Shoal, 64 environments, warm cache": Entry.of("shoal", cache="warm", envs=64),
                "Shoal, 64 environments, vectorised CartPole, warm cache": Entry.of(
                    "shoal", cache="warm", envs=64, vector=True
                ),
            },
            baseline="SB3, RL-Zoo settings",
        ),
        Case(
            name="ppo-cartpole-475-runners",
            suite="target",
            title="PPO, Gymnasium CartPole-v1: seconds from process start to 475, RLlib with 2 runners",
            work={**TO_TARGET, "envs": 8, "runners": 2},
            entries={
                "RLlib, tuned example, 2 runners": Entry.of("rllib"),
                "RLlib, default settings, 2 runners": Entry.of("rllib", preset="default", steps=200_000),
            },
            baseline="RLlib, tuned example, 2 runners",
        ),
        Case(
            name="shoal-train-475",
            suite="target",
            title="The whole command `shoal train ppo CartPole-v1 --target-return 475`, run directory, "
            "TensorBoard and checkpoint included: seconds until the process has ended",
            work={**TO_TARGET, "envs": 8},
            entries={
                "defaults": Entry.of("shoal_cli", preset="default"),
                "defaults, warm cache": Entry.of("shoal_cli", preset="default", cache="warm"),
                "recommended settings": Entry.of("shoal_cli"),
                "recommended settings, warm cache": Entry.of("shoal_cli", cache="warm"),
                "recommended settings, 64 environments, warm cache": Entry.of(
                    "shoal_cli", cache="warm", envs=64
                ),
            },
            baseline="defaults",
        ),
        Case(
            name="compiled-256",
            suite="compiled",
            title="Compiled PPO, CartPole in JAX, 256 environments, equal hyper-parameters "
            "(32 rows, 4 epochs of 8 minibatches of 1024, two 64x64 tanh networks), 1 thread",
            work={**EQUAL, "envs": 256, "rows": 32, "minibatches": 8, "steps": 10**9},
            entries={"rejax": Entry.of("rejax"), "Shoal": Entry.of("shoal_compiled")},
            baseline="rejax",
        ),
        Case(
            name="compiled-256-threads",
            suite="compiled",
            title="The same with each library's own number of threads",
            work={**EQUAL, "envs": 256, "rows": 32, "minibatches": 8, "steps": 10**9, "threads": None},
            entries={"rejax": Entry.of("rejax"), "Shoal": Entry.of("shoal_compiled")},
            baseline="rejax",
        ),
        Case(
            name="compiled-64",
            suite="compiled",
            title="Compiled PPO, CartPole in JAX, 64 environments, equal hyper-parameters "
            "(64 rows, 4 epochs of 16 minibatches of 256, two 64x64 tanh networks), 1 thread",
            work={**EQUAL, "envs": 64, "rows": 64, "minibatches": 16, "steps": 10**9},
            entries={"rejax": Entry.of("rejax"), "Shoal": Entry.of("shoal_compiled")},
            baseline="rejax",
        ),
        Case(
            name="compiled-475",
            suite="compiled",
            title="Compiled PPO, CartPole in JAX: seconds from process start to 475, own settings",
            work={**TO_TARGET, "envs": 64, "steps": 1_000_000, "chunk": 10},
            entries={
                "rejax, its CartPole settings": Entry.of("rejax"),
                "rejax, its CartPole settings, warm cache": Entry.of("rejax", cache="warm"),
                "Shoal": Entry.of("shoal_compiled"),
                "Shoal, warm cache": Entry.of("shoal_compiled", cache="warm"),
            },
            baseline="rejax, its CartPole settings",
        ),
    )
}
SUITES = tuple(dict.fromkeys(case.suite for case in CASES.values()))
