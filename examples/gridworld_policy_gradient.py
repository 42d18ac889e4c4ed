"""Policy gradient (REINFORCE) on the 4 x 4 gridworld: from random walks to the shortest way.

The agent starts in the top left cell and moves up, down, left or right; entering the bottom right cell gives
reward 1 and ends the episode. A move off the grid stays where it is. The shortest way takes 6 steps.

    python examples/gridworld_policy_gradient.py
"""

from __future__ import annotations

import jax
import numpy as np

from shoal import REINFORCE, Compiled, GridWorld, Trainer
from shoal.actor import actor_for
from shoal.types import Observation

ARROWS = "↑↓←→"  # actions 0 ... 3


def probabilities(algorithm: REINFORCE, world: GridWorld, params: object) -> np.ndarray:
    """What the policy does in each cell: float32 [cells, 4]."""
    network, _ = actor_for(world.spec, algorithm)
    cells = np.arange(world.size**2, dtype=np.int32)
    logits, _ = network.step(params, (), Observation(cells), np.ones(len(cells), bool))
    return np.asarray(jax.nn.softmax(logits))


def drawn(chances: np.ndarray, world: GridWorld) -> str:
    """The likeliest action of each cell and its probability, row by row."""
    texts = [f"{ARROWS[row.argmax()]} {row.max():.2f}" for row in chances]
    texts[world.goal] = " goal "
    rows = np.reshape(texts, (world.size, world.size))
    return "\n".join("   ".join(row) for row in rows)


def main(iterations: int = 60) -> list[int]:
    """Train, show what was learned, and return the cells that the learned policy passes through."""
    world = GridWorld(size=4, max_steps=100)
    # Without hidden layers the policy is a table: one number for each cell and action.
    algorithm = REINFORCE(hidden=(), learning_rate=0.1, rollout_length=64)
    with Trainer(algorithm, world, seed=0, on=Compiled(envs=32)) as trainer:
        print("before:\n" + drawn(probabilities(algorithm, world, trainer.policy().params), world) + "\n")
        for _ in range(iterations):
            result = trainer.train()
            if result["iteration"] % 10 == 0:
                length = result["episode_length_mean"]
                print(f"iteration {result['iteration']:3}: {length:5.2f} steps to the goal")
        print("\nafter:\n" + drawn(probabilities(algorithm, world, trainer.policy().params), world))

        cells = [world.start]
        while cells[-1] != world.goal and len(cells) <= world.size**2:
            action = trainer.compute_single_action(np.int32(cells[-1]))
            cells.append(int(world.next_cell[cells[-1], action]))
    print(f"\nthe learned way: {' → '.join(map(str, cells))}, {len(cells) - 1} steps")
    return cells


if __name__ == "__main__":
    main()
