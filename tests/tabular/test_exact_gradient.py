"""What REINFORCE, A2C and PPO climb is the exact gradient of the return, discounted too.

tests/algorithms/test_policy_gradient.py has the same of whole episodes, without discount.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import A2C, PPO, REINFORCE
from shoal.envs.jax import vectorize
from shoal.execution.unroll import compiled_unroll
from shoal.keys import key_for
from shoal.tabular import MDP, MDPEnv, policy_return, policy_value, random_mdp, under

S, A, GAMMA = 6, 3, 0.9
ROWS, ENVS = 256, 256
WORLD = random_mdp(S, A, 2, gamma=GAMMA, seed=0)
PLAIN: dict[str, Any] = {"rollout_length": ROWS, "discount": GAMMA, "hidden": ()}


def policy_of(params: Any) -> jax.Array:
    """float [S, A]: a table, since observations are numbers and there are no hidden layers."""
    return jax.nn.softmax(params["head"]["kernel"] + params["head"]["bias"])


def at_rest(mdp: MDP, policy: np.ndarray) -> MDP:
    """The MDP whose episodes begin as the policy's states are in the long run.

    A step then has that same distribution whichever it is. So has what is discounted, and the mean over all
    steps of grad log pi * advantage, which algorithms take, is 1 - gamma times the gradient of the return.
    """
    transition, _ = under(mdp, policy)
    start = np.linalg.matrix_power(transition, 200)[0]
    return replace(mdp, start=start / start.sum())


@pytest.mark.parametrize(
    "algorithm",
    [
        REINFORCE(**PLAIN, baseline=True),
        A2C(**PLAIN, gae_lambda=0.5, entropy_coefficient=0.0),
        # Before its first step, where the ratio is 1 and clips nothing.
        PPO(**PLAIN, gae_lambda=0.5, epochs=1, minibatches=1, normalize_advantages=False),
    ],
    ids=["REINFORCE", "A2C", "PPO"],
)
def test_the_mean_over_steps_is_the_exact_gradient(algorithm: Any) -> None:
    agent = algorithm.bind(MDPEnv(WORLD).spec)
    state = jax.jit(agent.init)(key_for(0, "init"))
    actor = state.params["policy"]
    # Far from uniform, so that the gradient is none of a special case.
    actor["head"]["kernel"] = 0.5 * jax.random.normal(jax.random.key(1), (S, A))
    policy = np.asarray(policy_of(actor), np.float64)
    mdp = at_rest(WORLD, policy / policy.sum(axis=1, keepdims=True))
    # With the true values, whatever lambda is and wherever a fragment ends, the estimate has no bias.
    state.params["value"]["head"]["kernel"] = policy_value(mdp, policy_of(actor))[:, None]
    env = vectorize(MDPEnv(mdp), ENVS)

    @jax.jit
    def estimate(key: Any) -> Any:
        vstate, step = env.start(key)
        numbers = jnp.arange(ENVS, dtype=jnp.int32)
        fragment, *_ = compiled_unroll(
            agent,
            env,
            ROWS,
            agent.policy(state),
            vstate,
            step,
            agent.begin(ENVS),
            key,
            numbers,
            jnp.zeros((), jnp.uint32),
        )
        batch = agent.batches(state, fragment, key)
        rows = jax.tree.map(lambda x: x[batch.index[0]], batch.rows)
        gradient = agent.grads(state, rows, key)
        return jax.tree.map(lambda x: x / gradient.weight, gradient.sum["policy"])

    exact = jax.grad(lambda params: (1 - GAMMA) * policy_return(mdp, policy_of(params)))(actor)
    # The loss is minimised: its gradient is minus the return's.
    estimated = -np.concatenate([np.ravel(x) for x in jax.tree.leaves(estimate(key_for(0, "test")))])
    truth = np.concatenate([np.ravel(x) for x in jax.tree.leaves(exact)])
    assert np.linalg.norm(estimated - truth) < 0.05 * np.linalg.norm(truth)
