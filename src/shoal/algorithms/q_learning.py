"""Q-learning and double Q-learning, with a table (Watkins and Dayan 1992; van Hasselt 2010).

fragments -> for each row, in time order: Q(s, a) moves towards r + gamma * max Q(s', .).

For Discrete observations and actions. With a learning rate that falls with the visits of a cell
(`visit_exponent`) and a policy that keeps exploring, Q converges to Q*.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from shoal.checks import typed
from shoal.tabular.learning import Steps, check_settings, greedy_value, table_agent
from shoal.types import Agent, EnvSpec


@dataclass(frozen=True, kw_only=True)
class QLearning:
    """Hyper-parameters of Q-learning. Steps are environment steps unless said otherwise."""

    learning_rate: float = 0.1
    """Alpha, how far a step moves its cell towards its target. Raising it learns faster, and noisier."""
    visit_exponent: float = 0.0
    """Alpha is divided by (visits of the cell) to this power: 0 keeps it, above 0.5 its noise dies out."""
    rollout_length: int = 16
    """Rows each environment acts between updates. Raising it runs faster and acts on older values."""
    discount: float = 0.99
    """Gamma, per step. Raising it looks further ahead, and values are slower to settle."""
    double: bool = False
    """Two tables, each valuing the other's choices: no overestimation (van Hasselt 2010)."""
    initial_value: float = 0.0
    """What the table begins with. Above every return that occurs, it explores by optimism."""
    epsilon_start: float = 1.0
    """Chance of a random action at first. Raising it explores more."""
    epsilon_end: float = 0.05
    """Chance of a random action in the end. Raising it keeps exploring, and acts worse."""
    epsilon_steps: int = 10_000
    """Environment steps over which epsilon falls linearly. Raising it explores longer."""

    def __post_init__(self) -> None:
        typed(self)
        check_settings(self)

    def bind(self, spec: EnvSpec) -> Agent:
        """Q-learning for these spaces, as pure functions. Raises ShoalError where they are not Discrete."""

        def after(q: jax.Array, steps: Steps, epsilon: jax.Array) -> jax.Array:
            del epsilon
            other = 1 - steps.table if self.double else steps.table
            choice, value = q[steps.table, steps.next_state], q[other, steps.next_state]
            return greedy_value(choice, value, steps.next_mask)

        return table_agent(spec, self, after, tables=2 if self.double else 1)
