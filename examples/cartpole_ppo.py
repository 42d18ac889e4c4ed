"""PPO on CartPole-v1: ten iterations, save, restore in a fresh object, and one episode with what was learned.

python examples/cartpole_ppo.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gymnasium

from shoal import PPO, Trainer


def main(iterations: int = 10) -> float:
    """Train, and return the total reward of one episode of the restored policy."""
    trainer = Trainer(PPO(), "CartPole-v1", seed=0)
    for _ in range(iterations):
        print(trainer.train(), end="\n\n")

    with tempfile.TemporaryDirectory() as folder:
        path = trainer.save(Path(folder) / "cartpole")
        trainer.close()
        restored = Trainer.restore(path)

    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=42)
    total, done = 0.0, False
    while not done:
        action = restored.compute_single_action(obs)  # the likeliest one
        obs, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    env.close()
    restored.close()
    print(f"total reward of one episode: {total:g}")
    return total


if __name__ == "__main__":
    main()
