"""Shoal: parallel and distributed reinforcement learning.

The same few lines run in one process, compiled into one program, or on a cluster, to the same bits.
The public names are listed here once and imported when they are used, so that `import shoal` is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# The threads of OpenBLAS, which NumPy and SciPy bring along, spin for 2^26 cycles before they sleep: a tenth
# of a second of a core in every process that imports either, such as Ray's own. 2^20 are enough.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

__version__ = "0.1.0"

_PUBLIC = {
    "PPO": "shoal.algorithms.ppo",
    "A2C": "shoal.algorithms.a2c",
    "A3C": "shoal.algorithms.a2c",
    "REINFORCE": "shoal.algorithms.reinforce",
    "DQN": "shoal.algorithms.dqn",
    "Rainbow": "shoal.algorithms.dqn_presets",
    "ApexDQN": "shoal.algorithms.dqn_presets",
    "IMPALA": "shoal.algorithms.impala",
    "APPO": "shoal.algorithms.appo",
    "SAC": "shoal.algorithms.sac",
    "TD3": "shoal.algorithms.td3",
    "DDPG": "shoal.algorithms.td3",
    "QLearning": "shoal.algorithms.q_learning",
    "SARSA": "shoal.algorithms.sarsa",
    "Trainer": "shoal.trainer",
    "Policy": "shoal.policy",
    "Local": "shoal.execution.local",
    "Compiled": "shoal.execution.compiled",
    "Cluster": "shoal.execution.cluster",
    "ParameterServer": "shoal.execution.parameter_server",
    "Mesh": "shoal.mesh",
    "Evaluation": "shoal.evaluation",
    "train_seeds": "shoal.seeds",
    "GridWorld": "shoal.envs.gridworld",
    "Result": "shoal.metrics",
    "ShoalError": "shoal.errors",
    "PPOTrainer": "shoal.bridge",
    "pretty_print": "shoal.bridge",
}

__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from shoal.algorithms.a2c import A2C as A2C
    from shoal.algorithms.a2c import A3C as A3C
    from shoal.algorithms.appo import APPO as APPO
    from shoal.algorithms.dqn import DQN as DQN
    from shoal.algorithms.dqn_presets import ApexDQN as ApexDQN
    from shoal.algorithms.dqn_presets import Rainbow as Rainbow
    from shoal.algorithms.impala import IMPALA as IMPALA
    from shoal.algorithms.ppo import PPO as PPO
    from shoal.algorithms.q_learning import QLearning as QLearning
    from shoal.algorithms.reinforce import REINFORCE as REINFORCE
    from shoal.algorithms.sac import SAC as SAC
    from shoal.algorithms.sarsa import SARSA as SARSA
    from shoal.algorithms.td3 import DDPG as DDPG
    from shoal.algorithms.td3 import TD3 as TD3
    from shoal.bridge import PPOTrainer as PPOTrainer
    from shoal.bridge import pretty_print as pretty_print
    from shoal.envs.gridworld import GridWorld as GridWorld
    from shoal.errors import ShoalError as ShoalError
    from shoal.evaluation import Evaluation as Evaluation
    from shoal.execution.cluster import Cluster as Cluster
    from shoal.execution.compiled import Compiled as Compiled
    from shoal.execution.local import Local as Local
    from shoal.execution.parameter_server import ParameterServer as ParameterServer
    from shoal.mesh import Mesh as Mesh
    from shoal.metrics import Result as Result
    from shoal.policy import Policy as Policy
    from shoal.seeds import train_seeds as train_seeds
    from shoal.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
