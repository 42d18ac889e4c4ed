"""Random finite MDPs of a given size: the Garnet problems of Archibald, McKinnon and Thomas (1995), "On the
generation of Markov decision processes", Journal of the Operational Research Society 46(3)."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from shoal.checks import number
from shoal.errors import ShoalError
from shoal.keys import key_for, uniform
from shoal.tabular.mdp import MDP


def random_mdp(
    states: int,
    actions: int,
    successors: int,
    *,
    gamma: float,
    seed: int,
    terminals: int = 0,
    sparse: bool | None = None,
) -> MDP:
    """A random MDP. Equal arguments give equal MDPs.

    successors: how many next states each pair of state and action has (where the same is drawn twice, its
    probabilities are added), at probabilities uniform on the simplex. Rewards are uniform in (-1, 1), one for
    each pair. The last `terminals` states are terminal; episodes begin in any other, all alike.
    sparse: None is sparse above ten million dense entries.
    """
    sizes = {"states": states, "actions": actions, "successors": successors, "terminals": terminals}
    for name, size in sizes.items():
        number(f"random_mdp: {name}", size, 0 if name == "terminals" else 1, Integral)
    if successors > states or terminals >= states:
        raise ShoalError(
            f"random_mdp: of {states} states at most {states} can be successors and {states - 1} terminals, "
            f"not {successors} and {terminals}"
        )
    from scipy.sparse import csr_array

    pairs = states * actions

    def draw(name: str, n: int) -> np.ndarray:
        return np.asarray(uniform(key_for(seed, "mdp", name), n), np.float64)

    chance = -np.log(draw("chance", pairs * successors)).reshape(pairs, successors)
    chance /= chance.sum(axis=1, keepdims=True)
    target = (draw("next", pairs * successors) * states).astype(
        np.int32
    )  # float64: exact to 2^-23 of a state
    np.minimum(target, states - 1, out=target)
    indptr = np.arange(0, pairs * successors + 1, successors)
    matrix = csr_array((chance.reshape(-1), target, indptr), shape=(pairs, states))
    reward = 2.0 * draw("reward", pairs).reshape(states, actions) - 1.0
    if sparse is None:
        sparse = pairs * states > 10_000_000
    terminal = np.arange(states) >= states - terminals
    transition = matrix if sparse else matrix.toarray().reshape(states, actions, states)
    return MDP.of(transition, reward, gamma=gamma, terminal=terminal)
