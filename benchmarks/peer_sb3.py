"""Stable-Baselines3's algorithms (and SBX's, which have the same interface) on one case; see driver.py."""

from __future__ import annotations

import importlib
import os
from typing import Any

from driver import Run, mean_of_last


def settings(case: dict[str, Any], library: str) -> dict[str, Any]:
    """The algorithm's keyword arguments."""
    if case["preset"] == "default":
        return {}
    return {"ppo": ppo, "dqn": dqn, "sac": sac}[case["algorithm"]](case, library)


def ppo(case: dict[str, Any], library: str) -> dict[str, Any]:
    """`own`: RL Zoo's hyperparams/ppo.yml, entry CartPole-v1 (100k steps)."""
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


def replayed(case: dict[str, Any]) -> dict[str, Any]:
    """What DQN and SAC have in common. `train_freq` counts steps of the vector of environments."""
    return {
        "learning_rate": case["learning_rate"],
        "gamma": case["gamma"],
        "batch_size": case["batch"],
        "buffer_size": case["replay"],
        "learning_starts": case["learning_starts"],
        "train_freq": case["rows"],
        "gradient_steps": case["envs"] * case["rows"] // case["train_every"],
        "policy_kwargs": {"net_arch": case["hidden"]},  # relu is the default of both
    }


def dqn(case: dict[str, Any], library: str) -> dict[str, Any]:
    return {
        **replayed(case),
        "target_update_interval": case["target_every"],
        "exploration_fraction": case["epsilon_steps"] / case["steps"],
        "exploration_final_eps": case["epsilon"],
        **({"max_grad_norm": case["max_grad_norm"]} if library == "sb3" else {}),  # SBX's DQN never clips
    }


def sac(case: dict[str, Any], library: str) -> dict[str, Any]:
    return {**replayed(case), "tau": case["tau"]}


def train(run: Run, library: str) -> None:
    case = run.case
    module = importlib.import_module({"sbx": "sbx", "sb3": "stable_baselines3"}[library])
    algorithm = getattr(module, case["algorithm"].upper())
    if library == "sb3" and case["threads"]:
        import torch

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

    written = settings(case, library)
    keywords = {k: eval(v) if isinstance(v, str) else v for k, v in written.items()}
    env = make_vec_env(case["env"], n_envs=case["envs"], seed=case["seed"])
    device = "cpu" if library == "sb3" else "auto"
    model = algorithm("MlpPolicy", env, seed=case["seed"], device=device, **keywords)
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
