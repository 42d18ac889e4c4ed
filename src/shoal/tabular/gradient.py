"""The value of a stochastic policy as a function that JAX differentiates: the exact policy gradient.

    jax.grad(lambda theta: policy_return(mdp, jax.nn.softmax(theta)))(theta)

One linear solve forwards and one backwards, in the dtype of the policy: float32 unless JAX is told otherwise
(`jax.enable_x64`). For dense MDPs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from shoal.errors import ShoalError
from shoal.tabular.mdp import MDP
from shoal.types import Array


def policy_value(mdp: MDP, policy: Array) -> jax.Array:
    """V of a policy [S, A]: (I - gamma * P_pi)^-1 r_pi over the live states, 0 for terminal ones. [S]

    With gamma = 1 the policy must end every episode (`bellman.evaluate` checks it; here it gives inf or NaN).
    Raises ShoalError for a sparse MDP.
    """
    if mdp.sparse:
        raise ShoalError("policy_value needs a dense MDP; evaluate takes sparse ones")
    policy = jnp.asarray(policy)
    live = np.flatnonzero(~mdp.terminal)
    pi = policy[live]
    given = mdp.reward if mdp.allowed is None else np.where(mdp.allowed, mdp.reward, 0.0)
    reward = jnp.sum(pi * given[live].astype(policy.dtype), axis=1)
    among = mdp.transition[live][:, :, live].astype(policy.dtype)
    transition = jnp.einsum("sa,sat->st", pi, among)
    v = jnp.linalg.solve(jnp.eye(len(live), dtype=policy.dtype) - mdp.gamma * transition, reward)
    return jnp.zeros(mdp.states, policy.dtype).at[live].set(v)


def policy_return(mdp: MDP, policy: Array) -> jax.Array:
    """J of a policy [S, A], the expected discounted return of an episode: start . V. []"""
    return policy_value(mdp, policy) @ mdp.start.astype(jnp.asarray(policy).dtype)
