"""RLlib's PPO, IMPALA and DQN (new API stack) on one case; see driver.py.

`own` is the library's tuned example for CartPole. PPO (rllib/examples/algorithms/ppo/cartpole_ppo.py): 6
epochs, one linear hidden layer of 32 shared with the value. IMPALA (.../impala/cartpole_impala.py): 500 steps
for an update, fragments of 50 steps, two 256x256 tanh layers shared with the value, observations normalised.
`runners` 0 samples in the driver's process; `learners` 0 learns there.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from driver import Run


def settings(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `.training` gets, what the model gets)."""
    return {"ppo": ppo, "impala": impala, "dqn": dqn}[case["algorithm"]](case)


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


def impala(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if case["preset"] == "own":
        return (
            {
                "train_batch_size_per_learner": 500,
                "grad_clip": 40.0,
                "grad_clip_by": "global_norm",
                "lr": 0.0005,
                "vf_loss_coeff": 0.05,
                "entropy_coeff": 0.0,
            },
            {"vf_share_layers": True},
        )
    return (
        {
            "train_batch_size_per_learner": case["rows"] * case["envs"] // max(1, case["runners"]),
            "grad_clip": case["max_grad_norm"],
            "grad_clip_by": "global_norm",
            "lr": case["learning_rate"],
            "gamma": case["gamma"],
            "vf_loss_coeff": case["value"],
            "entropy_coeff": case["entropy"],
        },
        {
            "fcnet_hiddens": case["hidden"],
            "fcnet_activation": case["activation"],
            "vf_share_layers": case.get("shared", False),
        },
    )


def main() -> None:
    run = Run()
    case = run.case
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    import ray
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.impala import IMPALAConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    runners, learners = case["runners"], case.get("learners", 0)
    ray.init(
        num_cpus=runners + learners + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    training, model = settings(case)
    config = (
        {"ppo": PPOConfig, "impala": IMPALAConfig, "dqn": DQNConfig}[case["algorithm"]]()
        .environment(case["env"])
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=case["envs"] // max(1, runners))
        .debugging(seed=case["seed"], log_level="ERROR")
    )
    if training:
        config = config.training(**training)
    if case["algorithm"] == "impala":
        config = config.learners(num_learners=learners).reporting(min_time_s_per_iteration=1)  # not ten
        if case["preset"] == "equal":  # `rows` of each environment come at once
            config = config.env_runners(rollout_fragment_length=case["rows"])
    if case.get("normalize"):
        config = config.env_runners(env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
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
        steps = int(result["num_env_steps_sampled_lifetime"])
        if steps:  # IMPALA returns after a second, whether anything has come or not
            done = run.mark(steps, None if mean is None else float(mean))
    what = {
        "runners": runners,
        "learners": learners,
        "envs": case["envs"],
        "preset": case["preset"],
        **training,
        **model,
    }
    run.report(what, **({"steps_per_cpu_second": None} if runners else {}))
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
