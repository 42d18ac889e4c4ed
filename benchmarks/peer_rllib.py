"""RLlib's PPO and DQN (new API stack) on one case; see driver.py.

PPO's `own` is the library's tuned example for CartPole (rllib/examples/algorithms/ppo/cartpole_ppo.py):
6 epochs, one linear hidden layer of 32 shared with the value. `runners` 0 samples in the driver's process.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from driver import Run


def settings(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `.training` gets, what the model gets)."""
    return {"ppo": ppo, "dqn": dqn}[case["algorithm"]](case)


def dqn(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each round of the library steps every environment once and then makes `training_intensity` times the
    new steps / batch size gradient steps."""
    kind = "PrioritizedEpisodeReplayBuffer" if case["prioritized"] else "EpisodeReplayBuffer"
    priorities = {"alpha": 0.6, "beta": 0.4} if case["prioritized"] else {}
    return (
        {
            "train_batch_size_per_learner": case["batch"],
            "training_intensity": case["batch"] / case["train_every"],
            "replay_buffer_config": {"type": kind, "capacity": case["replay"], **priorities},
            "num_steps_sampled_before_learning_starts": case["learning_starts"],
            "target_network_update_freq": case["target_every"],
            "epsilon": [(0, 1.0), (case["epsilon_steps"], case["epsilon"])],
            "lr": case["learning_rate"],
            "gamma": case["gamma"],
            "grad_clip": case["max_grad_norm"],
            "grad_clip_by": "global_norm",
            "double_q": False,
            "dueling": False,
        },
        {"fcnet_hiddens": case["hidden"], "fcnet_activation": case["activation"]},
    )


def ppo(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
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
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    runners = case["runners"]
    ray.init(num_cpus=runners + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    training, model = settings(case)
    config = (
        {"ppo": PPOConfig, "dqn": DQNConfig}[case["algorithm"]]()
        .environment(case["env"])
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=case["envs"] // max(1, runners))
        .debugging(seed=case["seed"], log_level="ERROR")
    )
    if training:
        config = config.training(**training)
    if case["algorithm"] == "dqn":
        config = config.reporting(min_sample_timesteps_per_iteration=250)  # two seconds, not eight
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
