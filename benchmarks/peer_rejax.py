"""rejax's PPO and DQN (compiled, environments in JAX) on one case; see driver.py.

rejax trains in one call; here a call is `chunk` iterations, compiled once ahead of time and then repeated
with the state it returned, so that compilation is the first mark and every further mark is work alone.
Without a target nothing is evaluated. With one, rejax's own evaluation (128 episodes) runs after each
call and its mean is what is compared with the target: rejax keeps no record of training episodes.
"""

from __future__ import annotations

import os
from typing import Any

from driver import Run


def settings_of(case: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the algorithm's `create`."""
    return {"ppo": ppo, "dqn": dqn}[case["algorithm"]](case)


def dqn(case: dict[str, Any]) -> dict[str, Any]:
    """The library's DQN minimises the squared error, where the others take Huber's, clips element by
    element, and has two hidden layers of 64 in any case."""
    return {
        "num_envs": case["envs"],
        "num_epochs": case["envs"] * case["rows"] // case["train_every"],
        "batch_size": case["batch"],
        "buffer_size": case["replay"],
        "fill_buffer": case["learning_starts"],
        "learning_rate": case["learning_rate"],
        "gamma": case["gamma"],
        "max_grad_norm": case["max_grad_norm"],
        "target_update_freq": case["target_every"],
        "polyak": 0.0,
        "eps_end": case["epsilon"],
        "exploration_fraction": case["epsilon_steps"] / steps_of_a_call(case),
        "ddqn": False,
        "agent_kwargs": {"activation": case["activation"]},
    }


def ppo(case: dict[str, Any]) -> dict[str, Any]:
    """`own`: rejax's configs/gymnax/cartpole.yaml."""
    if case["preset"] == "own":
        return {
            "num_envs": 5,
            "num_steps": 100,
            "num_epochs": 5,
            "num_minibatches": 5,
            "learning_rate": 0.00075,
            "max_grad_norm": 0.5,
            "ent_coef": 0.01,
            "agent_kwargs": {"activation": "tanh"},
        }
    return {
        "num_envs": case["envs"],
        "num_steps": case["rows"],
        "num_epochs": case["epochs"],
        "num_minibatches": case["minibatches"],
        "learning_rate": case["learning_rate"],
        "gamma": case["gamma"],
        "gae_lambda": case["gae_lambda"],
        "clip_eps": case["clip"],
        "ent_coef": case["entropy"],
        "vf_coef": case["value"],
        "max_grad_norm": case["max_grad_norm"],  # rejax clips element by element, not by global norm
        "agent_kwargs": {"activation": case["activation"], "hidden_layer_sizes": case["hidden"]},
    }


def steps_of_a_call(case: dict[str, Any], settings: dict[str, Any] | None = None) -> int:
    """The environment steps of one call: `chunk` iterations."""
    settings = settings or {"num_envs": case["envs"]}
    return case["chunk"] * settings["num_envs"] * settings.get("num_steps", 1)


def main() -> None:
    run = Run()
    case = run.case
    import jax
    import rejax

    settings = settings_of(case)
    chunk = steps_of_a_call(case, settings)
    algorithm = getattr(rejax, case["algorithm"].upper()).create(
        env=case["env"], total_timesteps=chunk, eval_freq=chunk, skip_initial_evaluation=True, **settings
    )
    if case.get("target") is None:
        algorithm = algorithm.replace(eval_callback=lambda algorithm, state, rng: ())
    run.mark(0)
    state = jax.jit(algorithm.init_state)(jax.random.PRNGKey(case["seed"]))
    train = jax.jit(lambda state: algorithm.train(train_state=state)).lower(state).compile()
    jax.block_until_ready(state)
    run.mark(0)
    done = False
    while not done:
        state, evaluation = jax.block_until_ready(train(state))
        mean = float(evaluation[1].mean()) if evaluation else None
        done = run.mark(int(state.global_step), mean)
    run.report({"threads": os.environ.get("NPROC"), "chunk": case["chunk"], **settings})


if __name__ == "__main__":
    main()
