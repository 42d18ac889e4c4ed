"""Stable-Baselines3's learning curve of one off-policy run, to be laid beside Shoal's (see curves.py).

    .venvs/sb3/bin/python benchmarks/curve_sb3.py sac Hopper-v5 --seed 0 --out sb3-sac-Hopper-v5-0.jsonl

curves.py reads from the file's name what it is: sb3-ALGORITHM-ENVIRONMENT-SEED.jsonl. Writes JSON lines:
{"env_steps", "return", "seconds"} at every episode's end, and at last {"env_steps", "greedy_returns",
"seconds", "settings"}. The settings are RL Zoo's (hyperparams/*.yml).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

ZOO: dict[str, dict[str, Any]] = {
    "sac": {"learning_starts": 10_000},
    "td3": {
        "learning_starts": 10_000,
        "learning_rate": 1e-3,
        "batch_size": 256,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [400, 300]},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", choices=ZOO)
    parser.add_argument("env")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    import numpy as np
    import torch
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.noise import NormalActionNoise

    torch.set_num_threads(1)
    begun = time.process_time()
    file = args.out.open("w")

    def write(**row: Any) -> None:
        file.write(json.dumps({**row, "seconds": round(time.process_time() - begun, 2)}) + "\n")
        file.flush()

    class Episodes(BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    write(env_steps=self.num_timesteps, **{"return": float(info["episode"]["r"])})
            return True

    env = make_vec_env(args.env, n_envs=1, seed=args.seed)
    settings = dict(ZOO[args.algorithm])
    if args.algorithm == "td3":
        size = env.action_space.shape[-1]
        noise = NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))
        model: Any = TD3("MlpPolicy", env, seed=args.seed, device="cpu", action_noise=noise, **settings)
    else:
        model = SAC("MlpPolicy", env, seed=args.seed, device="cpu", **settings)
    model.learn(args.steps, callback=Episodes(), log_interval=10**9)
    test = make_vec_env(args.env, n_envs=1, seed=args.seed + 1000)
    returns, _ = evaluate_policy(model, test, n_eval_episodes=10, return_episode_rewards=True)
    write(env_steps=args.steps, greedy_returns=[float(r) for r in returns], settings=settings)


if __name__ == "__main__":
    main()
