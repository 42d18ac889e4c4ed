"""Trains on a given Ray for a minute, and writes what each iteration gave: a child of test_hosts.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium

ENVS, GROUPS = 8, 4
SECONDS = 60.0


class Slow(gymnasium.Wrapper):
    """CartPole that takes a millisecond for a step."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))

    def step(self, action: Any) -> Any:
        time.sleep(0.001)
        return super().step(action)


def main(plan: str, address: str, out: Path) -> None:
    from shoal import PPO, Cluster
    from shoal.algorithms.impala import IMPALA
    from shoal.fingerprint import fingerprint
    from shoal.recipe import Experiment, Recipe
    from shoal.runtime import configure

    configure(1)
    algorithm = PPO(rollout_length=32, minibatches=4) if plan == "ppo" else IMPALA(rollout_length=32)
    experiment = Experiment.of(Recipe(algorithm=algorithm, env={"env": Slow}), 0)
    run = Cluster(runners=2, envs=ENVS, groups=GROUPS, address=address).start(experiment)
    begun = None
    with out.with_suffix(".part").open("w") as file:
        while begun is None or time.monotonic() - begun < SECONDS:
            at = time.monotonic()
            iteration = run.iterate()
            if begun is None:
                begun = time.monotonic()
                out.touch()
            row = {
                "seconds": time.monotonic() - at,
                "runners": iteration.spent["runners"],
                "events": list(iteration.events),
                "fragments": {
                    name.partition("/")[2]: int(value)
                    for name, value in iteration.metrics.items()
                    if name.startswith("fragments/")
                },
                "fingerprint": fingerprint(run.learner.state),
            }
            file.write(json.dumps(row) + "\n")
    run.close()
    out.with_suffix(".part").replace(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
