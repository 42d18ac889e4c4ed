"""How many floating-point operations an update takes: counted from the shapes of its matrix products.

A layer [N, in] x [in, out] takes 2 N in out operations forward (a multiplication and an addition for each of
N in out weights used), as many again for its gradient by the weights, and as many for that by its input.
Operations element by element (activations, the distribution, Adam, the target's average) are left out: they
are about 1 % of the whole for the networks measured here. (XLA's own count of Shoal's whole SAC update on
HalfCheetah, those included, is 0.590 GFLOP; what is counted here is 0.577.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def sac_update(*, observation: int, action: int, hidden: Sequence[int], batch: int) -> float:
    """Of one gradient step of SAC with two critics, all in one: critics, actor (temperature: none).

    The least that the mathematics needs: what follows is seen by the actor and both target critics; the
    critics' loss goes forward and back to their weights; the actor's loss goes forward through actor and
    critics, back through the critics to the action (not to their weights), and back to the actor's weights.
    """
    actor = list(pairwise([observation, *hidden, 2 * action]))
    critic = list(pairwise([observation + action, *hidden, 1]))
    target = weights(actor) + 2 * weights(critic)
    critics = 2 * (weights(critic) + weights(critic) + weights(critic[1:]))
    through = 2 * (weights(critic) + weights(critic[1:]) + action * hidden[0])
    actors = weights(actor) + weights(actor) + weights(actor[1:])
    return 2.0 * batch * (target + critics + through + actors)


def weights(layers: Sequence[tuple[int, int]]) -> int:
    return sum(inputs * outputs for inputs, outputs in layers)
