"""A fragment of host environments: the only loop over their `step`. It knows nothing of JAX.

    T times: act(obs, first, reward, t, memory) -> action -> group.step(action)

Who acts is the caller's affair: a compiled policy in this process (`unroll.act_here`), or a policy elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from shoal import trees
from shoal.types import Carry, Group, Observation, Step, Trajectory

# (obs, first [B], reward [B] that led to obs, t, memory) -> (action of NumPy arrays, memory, extras)
ActHost = Callable[[Observation, np.ndarray, np.ndarray, int, Carry], tuple[Any, Carry, Any]]


def host_unroll(
    act: ActHost, group: Group, rows: int, carry: Carry, version: int, spent: dict[str, float]
) -> tuple[Trajectory, Carry]:
    """One fragment of a host group: (trajectory of NumPy arrays, memory after it).

    carry: the policy's memory before it. version: of the policy. spent: the seconds in "act" and "env" are
    added to it.
    """
    begun = perf_counter()
    step = group.current()
    size = group.size
    obs = trees.each(lambda x: np.empty((rows + 1, *x.shape), x.dtype), step.obs)
    buffers = trees.leaves(obs)
    lone = len(buffers) == 1 and obs.policy is buffers[0]  # the usual case, and a quick one
    first = np.empty((rows + 1, size), bool)
    reward = np.empty((rows + 1, size), np.float32)  # one row more: reward[t] led to obs[t]
    terminated = np.empty((rows, size), bool)
    actions: list[Any] = []
    extras: list[Any] = []
    start = carry

    def keep(step: Step, t: int) -> Observation:
        """Row t of the buffers, filled. It is what `act` reads and is never written again, for JAX may
        read it in place."""
        for buffer, leaf in zip(buffers, trees.leaves(step.obs), strict=True):
            buffer[t] = leaf
        first[t] = step.first
        reward[t] = step.reward
        return Observation(obs.policy[t]) if lone else trees.fill(obs, (buffer[t] for buffer in buffers))

    in_env = 0.0
    seen = keep(step, 0)
    for t in range(rows):
        action, carry, extra = act(seen, first[t], reward[t], t, carry)
        actions.append(action)
        extras.append(extra)
        before = perf_counter()
        step = group.step(action)
        terminated[t] = step.terminated
        in_env += perf_counter() - before
        seen = keep(step, t + 1)

    stack = lambda *leaves: np.stack([np.asarray(x) for x in leaves])  # noqa: E731
    trajectory = Trajectory(
        obs=obs,
        first=first,
        action=trees.each(stack, *actions),
        reward=reward[1:],
        terminated=terminated,
        version=np.full((rows, size), version, np.int32),
        extras=trees.each(stack, *extras),
        carry=trees.each(np.asarray, start),
    )
    spent["env"] += in_env
    spent["act"] += perf_counter() - begun - in_env
    return trajectory, carry
