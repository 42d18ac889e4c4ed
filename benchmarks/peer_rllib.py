"""RLlib's PPO (new API stack) on one case; see driver.py.

`own` is the library's tuned example for CartPole (rllib/examples/algorithms/ppo/cartpole_ppo.py): 6 epochs,
one linear hidden layer of 32 shared with the value. `runners` 0 samples in the driver's own process.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from driver import Run


def settings(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `.training` gets, what the model gets)."""
    if case["preset"] == "default":
        return {}, {}
    if case["preset"] == "own":
        return (
            {"lr": 0.0003, "num_epochs": 6, "vf_loss_coeff": 0.01},
            {"fcnet_hiddens": [32], "fcnet_activation": "linear", "vf_share_layers": True},
        )
    rows = case["envs"] * case["rows"]
    return (
        {
            "train_batch_size_per_learner": rows,
            "minibatch_size": rows // case["minibatches"],
            "num_epochs": case["epochs"],
            "lr": case["learning_rate"],
            "gamma": case["gamma"],
            "lambda_": case["gae_lambda"],
            "clip_param": case["clip"],
            "entropy_coeff": case["entropy"],
            "vf_loss_coeff": case["value"],
            "vf_clip_param": 1e9,
            "grad_clip": case["max_grad_norm"],
            "grad_clip_by": "global_norm",
            "use_kl_loss": False,
        },
        {"fcnet_hiddens": case["hidden"], "fcnet_activation": case["activation"], "vf_share_layers": False},
    )


def main() -> None:
    run = Run()
    case = run.case
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    runners = case["runners"]
    ray.init(num_cpus=runners + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    training, model = settings(case)
    config = (
        PPOConfig()
        .environment(case["env"])
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=case["envs"] // max(1, runners))
        .debugging(seed=case["seed"], log_level="ERROR")
    )
    if training:
        config = config.training(**training)
    if model:
        config = config.rl_module(model_config=DefaultModelConfig(**model))
    algorithm = config.build_algo()
    run.mark(0)
    done = False
    while not done:
        result = algorithm.train()
        episodes = result["env_runners"].get("num_episodes_lifetime", 0)
        mean = result["env_runners"].get("episode_return_mean") if episodes >= 100 else None
        done = run.mark(result["num_env_steps_sampled_lifetime"], None if mean is None else float(mean))
    what = {"runners": runners, "envs": case["envs"], "preset": case["preset"], **training, **model}
    run.report(what, **({"steps_per_cpu_second": None} if runners else {}))
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
