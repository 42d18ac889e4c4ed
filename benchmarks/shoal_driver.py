"""Shoal's PPO on one case, in process or compiled, or the whole `shoal train` command; see driver.py."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from driver import Run

# What Shoal recommends for CartPole, by number of environments: `preset: own`. Found by trying a dozen
# settings on three seeds each: these reach 475 after 70 to 85 thousand steps, with little spread.
SHORT = {"gae_lambda": 0.9, "discount": 0.98}
OWN: dict[int, dict[str, Any]] = {
    8: {"rollout_length": 128, "minibatches": 4, "epochs": 8, "learning_rate": 1e-3, **SHORT},
    64: {"rollout_length": 32, "minibatches": 8, "epochs": 4, "learning_rate": 2e-3, **SHORT},
}


def settings(case: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `shoal.PPO`."""
    if case["preset"] == "default":
        return {}
    if case["preset"] == "own":
        return OWN[case["envs"]]
    return {
        "rollout_length": case["rows"],
        "epochs": case["epochs"],
        "minibatches": case["minibatches"],
        "learning_rate": case["learning_rate"],
        "discount": case["gamma"],
        "gae_lambda": case["gae_lambda"],
        "clip": case["clip"],
        "entropy_coefficient": case["entropy"],
        "value_coefficient": case["value"],
        "max_grad_norm": case["max_grad_norm"],
        "hidden": tuple(case["hidden"]),
        "activation": case["activation"],
    }


def in_process(run: Run, compiled: bool) -> None:
    """`Trainer.train` in a loop, as a user would write it."""
    case, keywords = run.case, settings(run.case)
    from shoal import PPO, Compiled, Local, Trainer

    threads = case["threads"] or 1
    env, on = ("jax:" + case["env"], Compiled) if compiled else (case["env"], Local)
    vector = case.get("vector", False)
    trainer = Trainer(
        PPO(**keywords), env, seed=case["seed"], on=on(envs=case["envs"]), threads=threads, vector=vector
    )
    run.mark(0)
    done = False
    while not done:
        result = trainer.train()
        mean = result["episode_return_mean"] if result["episodes"] >= 100 else None
        done = run.mark(result["env_steps"], mean)
    run.report(
        {
            "env": env,
            "on": on.__name__,
            "envs": case["envs"],
            "vector": vector,
            "threads": threads,
            **keywords,
        },
        timing={k: v for k, v in result.items() if k.startswith("timing/")},
    )
    trainer.close()


def command(run: Run) -> None:
    """`shoal train ppo ...` until the target: the mark is the end of the process, files written and all."""
    case, keywords = run.case, settings(run.case)
    flags = [word for name, value in keywords.items() for word in ("--" + name.replace("_", "-"), str(value))]
    flags += ["--vector"] if case.get("vector") else []
    line = [
        *(str(Path(sys.executable).parent / "shoal"), "train", "ppo", case["env"]),
        *("--envs", str(case["envs"]), "--seed", str(case["seed"]), "--steps", str(case["steps"])),
        *("--target-return", str(case["target"]), "--run-dir", "run", *flags),
        *("--seconds", str(case["wall"])),
    ]
    run.mark(0, seconds=0.0)
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(Path("run/summary.json").read_text())
    run.mark(summary["env_steps"], summary["episode_return_mean"])
    run.report(
        {"command": " ".join(["shoal", *line[1:]])},
        peak_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        steps_per_second=None,  # only the whole is known; steps_per_second_with_start is that
        steps_per_cpu_second=None,
        first_iteration_seconds=None,
    )


if __name__ == "__main__":
    run_ = Run()
    if run_.case["library"] == "shoal_cli":
        command(run_)
    else:
        in_process(run_, compiled=run_.case["library"] == "shoal_compiled")
