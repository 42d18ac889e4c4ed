"""The same through RLlib's old interface: only the import has changed.

python examples/rllib_style.py
"""

from __future__ import annotations

import tempfile

import gymnasium

import shoal
from shoal import pretty_print


def main(iterations: int = 10) -> float:
    """Train, and return the total reward of one episode of the restored policy."""
    config = {
        "env": "CartPole-v1",
        "num_workers": 2,
        "num_envs_per_worker": 4,
        "framework": "torch",
        "train_batch_size": 2048,
        "sgd_minibatch_size": 128,
        "lr": 3e-4,
    }
    trainer = shoal.PPOTrainer(config=config)
    for _ in range(iterations):
        print(pretty_print(trainer.train()), end="\n\n")

    with tempfile.TemporaryDirectory() as folder:
        path = trainer.save(folder)
        trainer.stop()
        trainer = shoal.PPOTrainer(config=config)
        trainer.restore(path)

    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=42)
    total, done = 0.0, False
    while not done:
        action = trainer.compute_single_action(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    env.close()
    trainer.stop()
    print(f"total reward of one episode: {total:g}")
    return total


if __name__ == "__main__":
    main()
