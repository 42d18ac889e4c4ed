"""Many seeds at once: one compiled program, batched over seeds with `vmap`, as PureJaxRL and rejax do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from shoal.counters import value
from shoal.errors import ShoalError
from shoal.execution.compiled import Compiled, CompiledRun, iteration_of
from shoal.metrics import Result
from shoal.signals import held
from shoal.trainer import Trainer


def train_seeds(
    algorithm: Any,
    env: Any,
    seeds: Sequence[int],
    *,
    steps: int,
    on: Compiled | None = None,
    run_dir: str | Path | None = None,
    on_results: Callable[[list[Result]], None] | None = None,
    **options: Any,
) -> list[Trainer]:
    """Train one policy per seed, all in one program, until each has made `steps` environment steps.

    Returns a Trainer per seed, which evaluates, saves and goes on alone. Each run is the experiment of
    its seed; its bits may differ from a run of that seed alone, because a batch over seeds is another
    batch shape. run_dir: the folder that gets a run directory `seed_N` per seed, with a checkpoint at the
    end. on_results is called after each iteration with a result per seed. options: those of Trainer.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ShoalError(f"seeds must be different numbers, at least one; got {list(seeds)}")
    on = on or Compiled()
    if not isinstance(on, Compiled):
        raise ShoalError(f"several seeds at once need on=Compiled(...), got {on!r}")
    if on.mesh is not None:
        raise ShoalError(
            "several seeds at once run on one device: leave out mesh=, or train one seed at a time"
        )
    options = {"checkpoint_seconds": None, **options}
    for name in ("checkpoint_every", "checkpoint_seconds", "evaluate_every"):
        if options.get(name) is not None:
            raise ShoalError(f"{name} is for a run alone; several seeds at once are saved at the end")
    where = [None if run_dir is None else Path(run_dir) / f"seed_{seed}" for seed in seeds]
    trainers = [
        Trainer(algorithm, env, seed=seed, on=on, run_dir=place, **options)
        for seed, place in zip(seeds, where, strict=True)
    ]
    runs = [run for trainer in trainers if isinstance(run := trainer._run, CompiledRun)]
    together = jax.jit(jax.vmap(runs[0].program), donate_argnums=3)
    stacked = lambda *leaves: jax.numpy.stack(leaves)  # noqa: E731
    keys = jax.tree.map(stacked, *[run.keys for run in runs])
    state = jax.tree.map(stacked, *[run.learner.state for run in runs])
    loop = jax.tree.map(stacked, *[run.loop for run in runs])
    store = jax.tree.map(stacked, *[run.store for run in runs])
    done = [0] * len(seeds)
    for trainer in trainers:
        trainer._aim({"steps": steps, "seconds": None, "target_return": None})

    def iteration() -> list[Result]:
        """Of all seeds; each Trainer notes its own."""
        nonlocal state, loop, store
        begun = time.perf_counter()
        for trainer in trainers:
            trainer._unbroken.begin()
        state, loop, store, seen = together(keys, state, loop, store)
        seen, counts = jax.device_get((seen, state.env_steps))
        spent = time.perf_counter() - begun
        results, faults = [], []
        for s, trainer in enumerate(trainers):
            part = iteration_of(jax.tree.map(lambda x, s=s: x[s], seen), spent)
            done[s] = value(jax.tree.map(lambda x, s=s: x[s], counts))
            try:
                results.append(trainer._take(part, done[s], begun))
                trainer._unbroken.end()
            except ShoalError as error:  # the other seeds' iterations are whole all the same
                faults.append(error)
        if faults:
            raise faults[0]
        return results

    def hand_over() -> None:
        """To each Trainer what is its own, but to those whose iteration is not whole."""
        for s, (run, trainer) in enumerate(zip(runs, trainers, strict=True)):
            if trainer._unbroken.whole:
                of_seed = lambda x, s=s: x[s]  # noqa: E731
                run.learner.state, run.loop, run.store = jax.tree.map(of_seed, (state, loop, store))
                trainer._finish(done=min(done) >= steps)

    try:
        try:
            while min(done) < steps:
                with held():
                    results = iteration()
                    if on_results is not None:
                        on_results(results)
        finally:
            hand_over()
    except BaseException:
        for trainer in trainers:
            trainer._release()
        raise
    return trainers
