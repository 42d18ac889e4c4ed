"""What the tests of SAC and TD3 share: made-up draws, small networks in float64, and finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shoal.spaces import Box
from shoal.types import Agent, Draws, EnvSpec, Observation, Transitions

SPEC = EnvSpec(id="test", observation=Box((3,)), action=Box((2,), -2.0, 2.0))
N = 6


def drawn(k: int = 1, n: int = N, seed: int = 0, n_step: int = 1) -> Draws:
    """K minibatches of N transitions; some of them ended, and row 1 only reset."""
    rng = np.random.default_rng(seed)
    reals = lambda *shape: rng.normal(size=(k, n, *shape)).astype(np.float32)  # noqa: E731
    weight = np.ones((k, n), np.float32)
    weight[:, 1] = 0.0
    return Draws(
        Transitions(
            obs=Observation(reals(3)),
            action=np.tanh(reals(2)),
            reward=reals(n_step),
            steps=np.full((k, n), n_step, np.int32),
            terminated=np.arange(k * n).reshape(k, n) % 3 == 2,
            next_obs=Observation(reals(3)),
            weight=weight,
            index=np.zeros((k, n), np.int32),
        ),
        np.int32(k),
    )


def compiled(agent: Agent) -> Agent:
    """The agent with every function compiled: one operation at a time takes far longer."""
    names = ("init", "policy", "act", "batches", "grads", "apply", "learn")
    return dataclasses.replace(agent, **{name: jax.jit(getattr(agent, name)) for name in names})


def minibatch(agent: Any, state: Any, draws: Draws, key: Any) -> Any:
    """The rows of the first minibatch."""
    return jax.tree.map(lambda x: x[0], agent.batches(state, draws, key).rows)


def double(tree: Any) -> Any:
    """The tree in float64 NumPy."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def relu_net(body: Any, head: Any, *inputs: np.ndarray) -> np.ndarray:
    """A perceptron with one hidden layer."""
    hidden = np.maximum(np.concatenate(inputs, -1) @ body["layers_0"]["kernel"] + body["layers_0"]["bias"], 0)
    return hidden @ head["kernel"] + head["bias"]


def q_values(critics: Any, obs: np.ndarray, action: np.ndarray) -> list[np.ndarray]:
    return [relu_net(c["torso"], c["head"], action, obs)[:, 0] for _, c in sorted(critics.items())]


def actor_output(params: Any, obs: np.ndarray) -> np.ndarray:
    return relu_net(params["policy"]["torso"], params["policy"]["head"], obs)


def slopes(function: Callable[[Any], float], tree: Any) -> Any:
    """The gradient of function(tree) by central differences, in float64."""
    flat, form = jax.tree.flatten(double(tree))
    found = []
    for i, leaf in enumerate(flat):
        slope = np.zeros_like(leaf)
        for place in np.ndindex(*leaf.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in flat]
                moved[i][place] += step
                values.append(function(jax.tree.unflatten(form, moved)))
            slope[place] = (values[0] - values[1]) / 2e-5
        found.append(slope)
    return jax.tree.unflatten(form, found)


def assert_close(one: Any, other: Any, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def halves(rows: Any) -> list[Any]:
    """Two parts of a minibatch, of unequal size; the noise is a row's own and goes with it."""
    return [jax.tree.map(lambda x, part=part: x[part], rows) for part in (slice(0, 2), slice(2, None))]
