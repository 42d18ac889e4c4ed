"""DQN with its parts set as two papers did: Rainbow, with all of them, and Ape-X, for many env runners."""

from __future__ import annotations

from typing import Any

from shoal.algorithms.dqn import DQN


def Rainbow(**changes: Any) -> DQN:
    """DQN with all of its parts, and the settings of Hessel et al. 2018, table 1; `changes` are DQN's fields.

    Made for Atari: a small task wants a higher learning rate, an earlier start, a smaller target_every, and
    v_min and v_max around its returns. Of images hidden is not used, and activation in the head alone.
    """
    return DQN(
        **{
            "learning_rate": 6.25e-5,
            "adam_epsilon": 1.5e-4,
            "capacity": 1_000_000,
            "batch_size": 32,
            "learning_starts": 20_000,
            "target_every": 2_000,
            "double": True,
            "dueling": True,
            "n_step": 3,
            "prioritized": True,
            "priority_exponent": 0.5,
            "importance_exponent": 0.4,
            "importance_steps": 50_000_000,
            "distributional": "categorical",
            "noisy": True,
            "epsilon_start": 0.0,
            "epsilon_end": 0.0,
            **changes,
        }
    )


def ApexDQN(**changes: Any) -> DQN:
    """DQN as Horgan et al. 2018 ran it on many env runners (Ape-X); `changes` are DQN's fields.

    Made for Atari, and for so much data that each step is drawn about once: a small task wants a higher
    learning rate, a smaller train_every, batch_size and target_every, and an earlier start.
    """
    return DQN(
        **{
            "learning_rate": 6.25e-5,
            "adam_epsilon": 1.5e-4,
            "max_grad_norm": 40.0,
            "rollout_length": 50,
            "capacity": 2_000_000,
            "batch_size": 512,
            "train_every": 512,
            "learning_starts": 50_000,
            "target_every": 2_500,
            "double": True,
            "dueling": True,
            "n_step": 3,
            "prioritized": True,
            "priority_exponent": 0.6,
            "importance_exponent": 0.4,
            "importance_steps": None,
            "epsilon_start": 0.4,
            "epsilon_end": 0.4,
            "epsilon_spread": 7.0,
            "staleness": 100,
            **changes,
        }
    )
