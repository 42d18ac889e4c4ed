"""Shoal on one case: in process, compiled, on a cluster, or all of `shoal train`; see driver.py."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
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
    """The keyword arguments of the algorithm."""
    if case["preset"] == "default":
        return {}
    return {"ppo": ppo, "impala": impala, "dqn": dqn, "sac": sac}[case["algorithm"]](case)


def replayed(case: dict[str, Any]) -> dict[str, Any]:
    """What DQN and SAC have in common."""
    return {
        "rollout_length": case["rows"],
        "capacity": case["replay"],
        "batch_size": case["batch"],
        "train_every": case["train_every"],
        "learning_starts": case["learning_starts"],
        "learning_rate": case["learning_rate"],
        "discount": case["gamma"],
        "hidden": tuple(case["hidden"]),
        "activation": case["activation"],
    }


def dqn(case: dict[str, Any]) -> dict[str, Any]:
    return {
        **replayed(case),
        "target_every": case["target_every"] // case["train_every"],  # Shoal counts gradient steps here
        "epsilon_end": case["epsilon"],
        "epsilon_steps": case["epsilon_steps"],
        "max_grad_norm": case["max_grad_norm"],
        "prioritized": case["prioritized"],
    }


def sac(case: dict[str, Any]) -> dict[str, Any]:
    return {**replayed(case), "tau": case["tau"]}


def on_policy(case: dict[str, Any]) -> dict[str, Any]:
    """What PPO and IMPALA have in common."""
    return {
        "rollout_length": case["rows"],
        "epochs": case["epochs"],
        "minibatches": case["minibatches"],
        "learning_rate": case["learning_rate"],
        "discount": case["gamma"],
        "gae_lambda": case["gae_lambda"],
        "entropy_coefficient": case["entropy"],
        "value_coefficient": case["value"],
        "max_grad_norm": case["max_grad_norm"],
        "hidden": tuple(case["hidden"]),
        "activation": case["activation"],
        "shared": case.get("shared", False),
    }


def ppo(case: dict[str, Any]) -> dict[str, Any]:
    if case["preset"] == "own":
        return OWN[case["envs"]]
    return {**on_policy(case), "clip": case["clip"]}


def impala(case: dict[str, Any]) -> dict[str, Any]:
    return {**on_policy(case), "staleness": case["staleness"]}


def executor(case: dict[str, Any]) -> Any:
    """Where the case's library runs it."""
    from shoal import Cluster, Compiled, Local

    if case["library"] == "shoal_cluster":
        where = {name: case[name] for name in ("groups", "per_update") if name in case}
        return Cluster(runners=case["runners"], envs=case["envs"], **where)
    return (Compiled if case["library"] == "shoal_compiled" else Local)(envs=case["envs"])


def environment(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(what the Trainer is given, its settings)."""
    if case["env"] == "Sleeping":
        from cluster_env import Sleeping

        return Sleeping, {"seconds": case["sleep"]}
    return ("jax:" if case["library"] == "shoal_compiled" else "") + case["env"], {}


def training(run: Run) -> None:
    """`Trainer.train` in a loop, as a user would write it."""
    case, keywords = run.case, settings(run.case)
    import shoal
    from shoal import Trainer

    threads = case["threads"] or 1
    on, (env, env_kwargs) = executor(case), environment(case)
    vector, normalize = case.get("vector", False), case.get("normalize", False)
    algorithm = getattr(shoal, case["algorithm"].upper())
    trainer = Trainer(
        algorithm(**keywords),
        env,
        seed=case["seed"],
        on=on,
        threads=threads,
        vector=vector,
        env_kwargs=env_kwargs,
        normalize_observations=normalize,
    )
    run.mark(0)
    done = False
    while not done:
        result = trainer.train()
        mean = result["episode_return_mean"] if result["episodes"] >= 100 else None
        done = run.mark(result["env_steps"], mean)
    run.report(
        {
            "env": case["env"],
            "on": repr(on),
            "envs": case["envs"],
            "vector": vector,
            "normalize_observations": normalize,
            "threads": threads,
            **keywords,
        },
        timing={k: v for k, v in result.items() if k.startswith("timing/")},
        **({"steps_per_cpu_second": None} if case["library"] == "shoal_cluster" else {}),
    )
    trainer.close()


def ray_alone(run: Run) -> None:
    """Nothing but the start of Ray, as a program of ours would call it."""
    run.mark(0)
    import ray

    ray.init(num_cpus=run.case["runners"], include_dashboard=False, log_to_driver=False)
    run.mark(1)
    run.report(
        {"num_cpus": run.case["runners"]},
        steps_per_second=None,
        steps_per_cpu_second=None,
        steps_per_second_with_start=None,
    )
    ray.shutdown()


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


def matmul(run: Run, size: int = 256) -> None:
    """What the machine can do at most: float32 products of 256x256 matrices in NumPy and in JAX, the better.

    `gflops`: the median over pieces of 20 products of whichever library is faster.
    """
    threads = run.case["threads"]
    import jax
    import numpy as np

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) / size**0.5 for _ in range(2))
    count, out = 20, np.empty_like(a)

    def in_numpy() -> None:
        for _ in range(count):
            np.matmul(a, b, out=out)

    many = jax.jit(lambda a, b: jax.lax.fori_loop(0, count, lambda _, x: x @ b, a))
    in_jax = lambda: many(a, b).block_until_ready()  # noqa: E731
    run.mark(0)
    found = {}
    for name, call in (("numpy", in_numpy), ("jax", in_jax)):
        call()
        begun, pieces = time.perf_counter(), []
        while time.perf_counter() - begun < run.case["seconds"] / 2:
            start = time.perf_counter()
            call()
            pieces.append(2.0 * size**3 * count / (time.perf_counter() - start) / 1e9)
        found[name] = statistics.median(pieces)
        run.mark(run.marks[-1][1] + count * len(pieces))
    run.report(
        {"threads": threads, "size": size, **found},
        gflops=max(found.values()),
        steps_per_second=None,
        steps_per_cpu_second=None,
        steps_per_second_with_start=None,
    )


if __name__ == "__main__":
    run_ = Run()
    if run_.case["library"] == "shoal_cli":
        command(run_)
    elif run_.case["library"] == "shoal_matmul":
        matmul(run_)
    elif run_.case["library"] == "shoal_ray":
        ray_alone(run_)
    else:
        training(run_)
