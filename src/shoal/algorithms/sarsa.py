"""SARSA and expected SARSA, with a table (Rummery and Niranjan 1994; van Seijen et al. 2009).

fragments -> for each row, in time order: Q(s, a) moves towards r + gamma * Q(s', a'), a' what is done next.

For Discrete observations and actions. Both learn the value of the epsilon-greedy policy itself, exploration
included. Expected SARSA takes the mean over a' that the policy gives, which has the same expectation
and less noise. SARSA does so too for the steps whose a' it does not know: the last row of a
fragment, whose next action belongs to the next, and a step that a time limit cut. So each real step is
learned from once; with rollout_length=1 SARSA is expected SARSA.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from shoal.checks import typed
from shoal.tabular.learning import Steps, check_settings, mean_value, table_agent
from shoal.types import Agent, EnvSpec


@dataclass(frozen=True, kw_only=True)
class SARSA:
    """Hyper-parameters of SARSA. Steps are environment steps unless said otherwise."""

    learning_rate: float = 0.1
    """Alpha, how far a step moves its cell towards its target. Raising it learns faster, and noisier."""
    visit_exponent: float = 0.0
    """Alpha is divided by (visits of the cell) to this power: 0 keeps it, above 0.5 its noise dies out."""
    rollout_length: int = 16
    """Rows each environment acts between updates. Raising it runs faster and acts on older values."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, and values are slower to settle."""
    expected: bool = False
    """Expected SARSA: the mean over the next action in place of the one that was taken."""
    initial_value: float = 0.0
    """What the table begins with. Above every return that occurs, it explores by optimism."""
    epsilon_start: float = 1.0
    """Chance of a random action at first. Raising it explores more."""
    epsilon_end: float = 0.05
    """Chance of a random action in the end, which the values know of. Raising it plays safer and worse."""
    epsilon_steps: int = 10_000
    """Environment steps over which epsilon falls linearly. Raising it explores longer."""

    def __post_init__(self) -> None:
        typed(self)
        check_settings(self)

    def bind(self, spec: EnvSpec) -> Agent:
        """SARSA for these spaces, as pure functions. Raises ShoalError where they are not Discrete."""

        def after(q: jax.Array, steps: Steps, epsilon: jax.Array) -> jax.Array:
            follows = q[0, steps.next_state]
            mean = mean_value(follows, steps.next_mask, epsilon)
            if self.expected:
                return mean
            taken = q[0, steps.next_state, steps.next_action]
            return jnp.where(steps.followed, taken, mean)

        return table_agent(spec, self, after)
