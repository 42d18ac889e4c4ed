"""Stable-Baselines3's PPO (and SBX's, which has the same interface) on one case; see driver.py."""

from __future__ import annotations

import os
from typing import Any

from driver import Run, mean_of_last


def settings(case: dict[str, Any]) -> dict[str, Any]:
    """PPO's keyword arguments. `own`: RL Zoo's hyperparams/ppo.yml, entry CartPole-v1 (100k steps)."""
    if case["preset"] == "default":
        return {}
    if case["preset"] == "own":
        linear = {"learning_rate": "lambda left: 0.001 * left", "clip_range": "lambda left: 0.2 * left"}
        return dict(
            n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, ent_coef=0.0, **linear
        )
    rows = case["envs"] * case["rows"]
    return {
        "n_steps": case["rows"],
        "batch_size": rows // case["minibatches"],
        "n_epochs": case["epochs"],
        "learning_rate": case["learning_rate"],
        "gamma": case["gamma"],
        "gae_lambda": case["gae_lambda"],
        "clip_range": case["clip"],
        "ent_coef": case["entropy"],
        "vf_coef": case["value"],
        "max_grad_norm": case["max_grad_norm"],
    }


def train(run: Run, library: str) -> None:
    case = run.case
    if library == "sbx":
        from sbx import PPO
    else:
        import torch
        from stable_baselines3 import PPO

        if case["threads"]:
            torch.set_num_threads(case["threads"])
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Marks(BaseCallback):
        done = False

        def _on_rollout_start(self) -> None:
            buffer = self.model.ep_info_buffer or ()
            self.done = run.mark(self.num_timesteps, mean_of_last([e["r"] for e in buffer]))

        def _on_step(self) -> bool:
            return not self.done

        def _on_training_end(self) -> None:
            if not self.done:
                self._on_rollout_start()

    written = settings(case)
    keywords = {k: eval(v) if isinstance(v, str) else v for k, v in written.items()}
    env = make_vec_env(case["env"], n_envs=case["envs"], seed=case["seed"])
    model = PPO("MlpPolicy", env, seed=case["seed"], device="cpu" if library == "sb3" else "auto", **keywords)
    model.learn(case["steps"], callback=Marks(), log_interval=10**9)
    run.report(
        {
            "envs": case["envs"],
            "preset": case["preset"],
            "threads": os.environ.get("OMP_NUM_THREADS"),
            **written,
        }
    )


if __name__ == "__main__":
    train(Run(), "sb3")
