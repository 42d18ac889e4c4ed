"""REINFORCE and A2C estimate the exact gradient of the expected return, known through a linear solve."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import A2C, REINFORCE, GridWorld
from shoal.envs.jax import vectorize
from shoal.execution.unroll import compiled_unroll
from shoal.keys import key_for
from shoal.tabular.gradient import policy_return

WORLD = GridWorld(size=2, step_cost=0.1, slip=0.2)
ROWS, ENVS = 512, 256


def exact_gradient(policy: Any, params: Any) -> tuple[Any, float]:
    """(gradient of J, J) of the policy that `policy` makes of params, undiscounted."""
    mdp = WORLD.mdp(gamma=1.0)
    value, gradient = jax.value_and_grad(lambda params: policy_return(mdp, policy(params)))(params)
    return gradient, float(value)


@pytest.mark.parametrize(
    "algorithm",
    [
        REINFORCE(rollout_length=ROWS, discount=1.0, hidden=(), baseline=False),
        REINFORCE(rollout_length=ROWS, discount=1.0, hidden=(), baseline=True),
        A2C(rollout_length=ROWS, discount=1.0, gae_lambda=1.0, hidden=(), entropy_coefficient=0.0),
    ],
    ids=["reinforce", "reinforce-baseline", "a2c"],
)
def test_estimates_the_exact_gradient(algorithm: Any) -> None:
    """With gamma = 1, the mean over episodes of sum_t grad log pi(a_t|s_t) G_t is grad J."""
    agent = algorithm.bind(WORLD.spec)
    env = vectorize(WORLD, ENVS)
    state = jax.jit(agent.init)(key_for(0, "init"))
    # Far from uniform, so that the gradient is none of a special case.
    head = state.params["policy"]["head"]
    kernel = 0.5 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    state.params["policy"]["head"] = {**head, "kernel": kernel}

    @jax.jit
    def estimate(key: Any) -> Any:
        vstate, step = env.start(key)
        trajectory, *_ = compiled_unroll(
            agent,
            env,
            ROWS,
            agent.policy(state),
            vstate,
            step,
            agent.begin(ENVS),
            key,
            jnp.arange(ENVS, dtype=jnp.int32),
            jnp.zeros((), jnp.uint32),
        )
        batch = agent.batches(state, trajectory, key)
        rows = jax.tree.map(lambda x: x[batch.index[0]], batch.rows)
        gradient = agent.grads(state, rows, key)
        return (
            gradient.sum["policy"],
            trajectory.first[1:].sum(),
            (trajectory.reward * trajectory.weight).sum(),
        )

    sums, ends, rewards = estimate(key_for(0, "test"))

    def policy(params: Any) -> jax.Array:
        cells = np.eye(WORLD.size**2, dtype=np.float32)
        return jax.nn.softmax(cells @ params["head"]["kernel"] + params["head"]["bias"])

    exact, value = exact_gradient(policy, state.params["policy"])
    assert float(rewards / ends) == pytest.approx(value, abs=0.03)
    # The loss is minimised: its gradient is -grad J for each episode.
    estimated = -np.concatenate([np.ravel(x) for x in jax.tree.leaves(sums)]) / float(ends)
    truth = np.concatenate([np.ravel(x) for x in jax.tree.leaves({"head": exact["head"]})])
    assert np.linalg.norm(estimated - truth) < 0.08 * np.linalg.norm(truth)
