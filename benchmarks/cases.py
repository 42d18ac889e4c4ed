"""What is measured: cases as plain data. A case is one kind of work; its entries are who does it, and how.

Keys of an entry's work, as the drivers get them: preset ("equal": the hyper-parameters below; "own": what
the library itself recommends for this environment; "default": the library's defaults), env, envs, rows
(rollout length), epochs, minibatches, learning_rate, gamma, gae_lambda, clip, entropy, value,
max_grad_norm, hidden, activation, steps (upper bound of environment steps), seconds (of measured time,
None: no bound), target (mean return at which the run ends), wall (seconds from process start after which
it ends at the latest), threads (of the numeric library; None: its default), cache ("cold": nothing compiled
before; "warm": a persistent compilation cache that an earlier run has filled), runners (env runners on Ray),
chunk (rejax: iterations per call), vector (Shoal: Gymnasium's own vector version of the environment).
Optional: shared (policy and value share hidden layers), normalize (running statistics of observations),
learners (RLlib's learner actors; 0 learns in the driver), groups, per_update (Shoal's Cluster), staleness
(IMPALA), sleep (seconds that a step of the environment "Sleeping" takes).

Algorithms that learn from a replay (algorithm "dqn" or "sac", where "ppo" is the rest) have instead: batch,
train_every (environment steps for one gradient step), rows (that each environment acts between two calls
of the learner, so that a call makes envs * rows / train_every gradient steps), replay (its capacity),
learning_starts, target_every (environment steps between copies of the target network), epsilon and
epsilon_steps, prioritized; warmup: environment steps after which the measured time begins. core: the number
of the one core that the process may use; absent: any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flops import sac_update

EQUAL = {
    "algorithm": "ppo",
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
REPLAYED = {
    **{name: EQUAL[name] for name in ("preset", "steps", "target", "wall", "threads", "cache", "runners")},
    "seconds": 6,
    "rows": 1,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "activation": "relu",
    "prioritized": False,
}
DQN = {
    **REPLAYED,
    "algorithm": "dqn",
    "env": "CartPole-v1",
    "envs": 8,
    "batch": 64,
    "train_every": 4,
    "replay": 100_000,
    "warmup": 2_000,
    "learning_rate": 5e-4,
    "target_every": 1_000,
    "epsilon": 0.05,
    "epsilon_steps": 1_000,
    "max_grad_norm": 10.0,
    "hidden": [64, 64],
}
SAC = {
    **REPLAYED,
    "algorithm": "sac",
    "env": "HalfCheetah-v5",
    "envs": 1,
    "batch": 256,
    "train_every": 1,
    "replay": 1_000_000,
    "warmup": 1_200,
    "learning_rate": 3e-4,
    "tau": 0.005,
    "hidden": [256, 256],
    "threads": None,
}
TO_TARGET = {**EQUAL, "preset": "own", "target": 475.0, "seconds": None, "steps": 500_000}
RUNNERS = {**EQUAL, "envs": 8, "runners": 2}
# What RLlib's tuned example for PPO asks for (its layer of 32 is linear), 500 rows of 8 environments.
TUNED = {
    "rows": 500,
    "epochs": 6,
    "minibatches": 32,
    "learning_rate": 3e-4,
    "value": 0.01,
    "hidden": [32],
    "shared": True,
}
# What RLlib's tuned example for IMPALA asks for: 500 steps for an update are 512 of 16 environments here.
IMPALA = {
    **RUNNERS,
    "algorithm": "impala",
    "envs": 32,
    "rows": 32,
    "epochs": 1,
    "minibatches": 1,
    "learning_rate": 5e-4,
    "gae_lambda": 1.0,
    "value": 0.05,
    "max_grad_norm": 40.0,
    "hidden": [256, 256],
    "shared": True,
    "normalize": True,
    "staleness": 4,
    "per_update": 1,
}
SLEEPING = {
    "env": "Sleeping",
    "sleep": 1e-3,
    "envs": 8,
    "groups": 2,
    "rows": 64,
    "hidden": [64, 64],
    "shared": False,
    "normalize": False,
}


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
    """One kind of work. `baseline` names the entry that the others' speed is divided by.

    flops: floating-point operations per environment step, where they are to be stated as a share of what
    the machine can do; entries of the library "shoal_matmul" measure that.
    """

    name: str
    suite: str
    title: str
    work: dict[str, Any]
    entries: dict[str, Entry]
    baseline: str
    flops: float | None = None


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
        Case(
            name="dqn-cartpole-8",
            suite="values",
            title="DQN, Gymnasium CartPole-v1, 8 environments in one process, a gradient step of batch 64 "
            "for every 4 environment steps (two 64x64 relu networks, uniform replay of 100k, nothing added), "
            "1 thread. `rows`: how many steps each environment makes between two calls of the learner",
            work=DQN,
            entries={
                "SB3": Entry.of("sb3"),
                "SB3, 16 rows": Entry.of("sb3", rows=16),
                "SBX": Entry.of("sbx"),
                "SBX, 16 rows": Entry.of("sbx", rows=16),
                "RLlib, 0 runners": Entry.of("rllib", warmup=1_500),
                "RLlib, 0 runners, prioritised": Entry.of("rllib", warmup=1_500, prioritized=True),
                "Shoal, 16 rows (its default)": Entry.of("shoal", rows=16, warmup=10_000),
                "Shoal, 1 row": Entry.of("shoal"),
                "Shoal, 64 rows": Entry.of("shoal", rows=64, warmup=10_000),
                "SB3, on one core": Entry.of("sb3", core=1),
                "SBX, 16 rows, on one core": Entry.of("sbx", rows=16, core=1),
                "Shoal, 16 rows, on one core": Entry.of("shoal", rows=16, warmup=10_000, core=1),
                "Shoal, 64 rows, on one core": Entry.of("shoal", rows=64, warmup=10_000, core=1),
                "Shoal, 16 rows, prioritised": Entry.of("shoal", rows=16, warmup=10_000, prioritized=True),
            },
            baseline="SB3",
        ),
        Case(
            name="sac-halfcheetah",
            suite="values",
            title="SAC, HalfCheetah-v5, 1 environment, a gradient step of batch 256 for every environment "
            "step (two hidden layers of 256 relu units, two critics); each library's own number of threads "
            "unless said",
            work=SAC,
            entries={
                "SB3": Entry.of("sb3"),
                "SBX": Entry.of("sbx"),
                "SBX, 8 rows": Entry.of("sbx", rows=8),
                "Shoal, 8 rows (its default), 2 threads": Entry.of("shoal", rows=8, threads=2),
                "Shoal, 8 rows (its default), 1 thread (its default)": Entry.of("shoal", rows=8, threads=1),
                "Shoal, 1 row, 2 threads": Entry.of("shoal", threads=2),
                "matrix products alone, 2 threads": Entry.of("shoal_matmul", threads=2, seconds=3, warmup=0),
                "matrix products alone, 1 thread": Entry.of("shoal_matmul", threads=1, seconds=3, warmup=0),
            },
            baseline="SBX",
            flops=sac_update(observation=17, action=6, hidden=(256, 256), batch=256),
        ),
        Case(
            name="dqn-compiled-8",
            suite="values",
            title="Compiled DQN, CartPole in JAX, 8 environments, a gradient step of batch 64 for every 4 "
            "environment steps (two 64x64 relu networks, uniform replay of 100k), 1 thread",
            work={**DQN, "steps": 10**9, "chunk": 512},
            entries={
                "rejax": Entry.of("rejax"),
                "Shoal, 16 rows (its default)": Entry.of("shoal_compiled", rows=16),
                "Shoal, 1 row": Entry.of("shoal_compiled"),
            },
            baseline="rejax",
        ),
        Case(
            name="ppo-cartpole-2-runners",
            suite="cluster",
            title="PPO, Gymnasium CartPole-v1, 2 env runners with 4 environments each, 1 thread a process. "
            "RLlib's tuned example: 4,000 steps, 6 epochs, minibatches of 128, one linear layer of 32 shared "
            "with the value; in Shoal the same with minibatches of 125 and a tanh layer. Equal work: 1,024 "
            "steps, 4 epochs of 4 minibatches, two 64x64 tanh networks",
            work=RUNNERS,
            entries={
                "RLlib, tuned example": Entry.of("rllib", preset="own"),
                "RLlib, equal work": Entry.of("rllib"),
                "RLlib, 4,000 steps, 4 epochs of 4 minibatches": Entry.of("rllib", rows=500),
                "Shoal, tuned example's work": Entry.of("shoal_cluster", **TUNED),
                "Shoal, equal work": Entry.of("shoal_cluster"),
                "Shoal, equal work, warm cache": Entry.of("shoal_cluster", cache="warm"),
                "Shoal, 4,000 steps, 4 epochs of 4 minibatches": Entry.of("shoal_cluster", rows=500),
                "`ray.init()` alone": Entry.of("shoal_ray"),
            },
            baseline="RLlib, tuned example",
        ),
        Case(
            name="impala-cartpole-2-runners",
            suite="cluster",
            title="IMPALA, Gymnasium CartPole-v1, 2 env runners with 16 environments each, as RLlib's tuned "
            "example has it: 500 steps for an update, two 256x256 tanh layers shared with the value, "
            "observations normalised (Shoal: 512 steps). Without these: two 64x64 tanh networks, no "
            "normalisation, minibatches of 4 environments (Shoal alone, as benchmarks/learning.toml has it)",
            work=IMPALA,
            entries={
                "RLlib, tuned example, 1 learner": Entry.of("rllib", preset="own", learners=1),
                "RLlib, tuned example, learning in the driver": Entry.of("rllib", preset="own"),
                "Shoal, tuned example's work": Entry.of("shoal_cluster"),
                "Shoal, its own settings": Entry.of(
                    "shoal_cluster", rows=16, minibatches=4, hidden=[64, 64], shared=False, normalize=False
                ),
            },
            baseline="RLlib, tuned example, 1 learner",
        ),
        *(
            Case(
                name=f"{algorithm}-sleeping",
                suite="cluster",
                title=f"{algorithm.upper()}, 8 environments in 2 groups whose steps sleep 1 ms, fragments of "
                "64 rows",
                work={**work, **SLEEPING, "algorithm": algorithm},
                entries={
                    "1 runner": Entry.of("shoal_cluster", runners=1),
                    "2 runners": Entry.of("shoal_cluster", runners=2),
                },
                baseline="1 runner",
            )
            for algorithm, work in (("ppo", RUNNERS), ("impala", IMPALA))
        ),
    )
}
SUITES = tuple(dict.fromkeys(case.suite for case in CASES.values()))
