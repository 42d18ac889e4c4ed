"""What the tests of IMPALA and APPO share: a fragment of another policy, and the networks in float64."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from transitions import assert_close, compiled, double, slopes

from shoal.keys import key_for
from shoal.spaces import Box, Discrete, MultiDiscrete
from shoal.types import EnvSpec, Observation, Trajectory

__all__ = [
    "SPACES",
    "SPEC",
    "B",
    "T",
    "assert_close",
    "compiled",
    "fragment",
    "minibatch",
    "outputs",
    "slopes",
]

SPEC = EnvSpec(id="test", observation=Box((3,)), action=Discrete(2))
T, B = 6, 4

# name -> (actions, masked, memory)
SPACES: dict[str, tuple[Any, bool, int]] = {
    "masked": (Discrete(3, start=-1), True, 0),
    "several choices": (MultiDiscrete((2, 3)), False, 3),
    "box": (Box((2,), -1.0, 3.0), False, 0),
}


def spec_of(name: str) -> tuple[EnvSpec, int]:
    """(spec, units of memory)."""
    action, masked, memory = SPACES[name]
    return EnvSpec(id="test", observation=Box((3,)), action=action, masked=masked), memory


def fragment(seed: int = 0) -> Trajectory:
    """Environment 1 terminates and resets; environment 2 meets a time limit at the last row."""
    rng = np.random.default_rng(seed)
    first = np.zeros((T + 1, B), bool)
    first[0] = True
    first[3, 1] = True  # row 2 of environment 1 only resets
    terminated = np.zeros((T, B), bool)
    terminated[1, 1] = True
    reward = rng.normal(size=(T, B)).astype(np.float32)
    raw = rng.integers(0, 2, (T, B)).astype(np.int32)
    return Trajectory(
        obs=Observation(rng.normal(size=(T + 1, B, 3)).astype(np.float32)),
        first=first,
        action=raw,
        reward=np.where(first[1:], np.float32(0), reward),
        terminated=terminated,
        version=np.zeros((T, B), np.int32),
        extras={"raw_action": raw, "log_prob": np.log(rng.uniform(0.2, 0.8, (T, B))).astype(np.float32)},
        carry=(),
    )


def minibatch(agent: Any, state: Any, exp: Trajectory) -> Any:
    """The rows of the first minibatch."""
    batch = agent.batches(state, exp, key_for(0, "b"))
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(batch.index)[0]], batch.rows)


def outputs(params: Any, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities, values) of the two small networks, in float64."""
    found = []
    for part in ("policy", "value"):
        layers = double(params[part])
        hidden = layers["torso"]["layers_0"]
        y = np.tanh(np.asarray(obs, np.float64) @ hidden["kernel"] + hidden["bias"])
        found.append(y @ layers["head"]["kernel"] + layers["head"]["bias"])
    logits, values = found
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), values[..., 0]
