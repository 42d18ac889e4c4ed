"""Runs the cases of test_mesh on four CPU devices, which a process must have from its start.

Usage: mesh_child.py FOLDER CASE...; prints a line of JSON for each case.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from compiling import hurry

from shoal import DQN, IMPALA, PPO, SAC, Compiled, Local, Mesh, Trainer
from shoal.execution.split import Split
from shoal.execution.unroll import fragment_form
from shoal.fingerprint import fingerprint
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe
from shoal.runtime import configure
from shoal.sgd import mean_gradient
from shoal.sharding import placed

configure(threads=1, devices=4)
hurry(True)

ITERATIONS = {Local: {"ppo": 20, "ppo-memory": 20, "impala": 20}, Compiled: {"impala": 20}}
HIDDEN = (48, 40)  # of sizes that nothing else here has
REPLAY: dict[str, Any] = {"learning_starts": 64, "capacity": 2000, "batch_size": 32, "hidden": HIDDEN}
ALGORITHMS: dict[str, tuple[Any, str]] = {
    "ppo": (PPO(rollout_length=16, epochs=2, minibatches=2, hidden=HIDDEN), "CartPole-v1"),
    "ppo-memory": (
        PPO(rollout_length=16, epochs=2, minibatches=2, hidden=HIDDEN, memory=24, shared=True),
        "CartPole-v1",
    ),
    "impala": (IMPALA(rollout_length=16, hidden=HIDDEN), "CartPole-v1"),
    "dqn": (DQN(rollout_length=8, train_every=16, prioritized=True, **REPLAY), "CartPole-v1"),
    # With relu a unit whose input is zero but for rounding is on in one sum and off in another.
    "sac": (SAC(rollout_length=8, train_every=16, activation="tanh", **REPLAY), "Pendulum-v1"),
}
MESHES = {
    "data=2": Mesh(data=2),
    "data=4": Mesh(data=4),
    "model=2": Mesh(model=2),
    "model=4": Mesh(model=4),
    "2x2": Mesh(data=2, model=2),
}
IN_JAX = {"CartPole-v1": "jax:CartPole-v1", "Pendulum-v1": "gymnax:Pendulum-v1"}


def experiment(name: str, where: type = Local) -> Experiment:
    algorithm, env = ALGORITHMS[name]
    env = env if where is Local else IN_JAX[env]
    recipe = Recipe(algorithm=algorithm, env={"env": env}, normalize=name == "ppo", scale=name == "ppo")
    return Experiment.of(recipe, 0)


STEPPED: dict[tuple[str, Mesh], list[int]] = {}  # of compiled runs: how many environments each device has


@cache
def trained(where: type, name: str, mesh: Mesh | None, attempt: int = 0) -> tuple[Any, list[dict[str, Any]]]:
    """The state after some iterations, and the metrics of each. attempt: another number runs it again."""
    run = where(envs=8, groups=2 if where is Local else 1, mesh=mesh).start(experiment(name, where))
    try:
        metrics = [dict(run.iterate().metrics) for _ in range(ITERATIONS[where].get(name, 8))]
        if mesh is not None:  # else some programs are those of other algorithms too
            programs = [run._iterate] if where is Compiled else run.learner._do[1:]
            assert max(program._cache_size() for program in programs) == 1  # what lies where stays so
            if where is Compiled:
                shards = run.loop.step.reward.addressable_shards  # [G, B]
                STEPPED[name, mesh] = [shard.data.shape[1] for shard in shards]
        return jax.device_get(run.learner.state), metrics
    finally:
        run.close()


def apart(a: Any, b: Any) -> float:
    """The greatest difference, relative to the greatest number of the leaf."""
    return max(
        float(np.max(np.abs(x - y)) / max(np.max(np.abs(x)), 1e-12))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def agreement(where: type, name: str, mesh: Mesh) -> dict[str, Any]:
    state, metrics = trained(where, name, mesh)
    alone, its_metrics = trained(where, name, None)
    begun = jax.device_get(jax.jit(experiment(name, where).agent.init)(key_for(0, "init")))
    off = {
        metric: max(
            abs(float(a[metric]) - float(b[metric])) / max(abs(float(b[metric])), 1e-2)
            for a, b in zip(metrics, its_metrics, strict=True)
            if metric in b
        )
        for metric in its_metrics[-1]
    }
    return {
        "params": apart(alone.params, state.params),
        "opt": apart(alone.opt, state.opt),
        "updates": int(state.updates.low),
        "learned": min(
            apart(x, y) for x, y in zip(*map(jax.tree.leaves, (state.params, begun.params)), strict=True)
        ),
        "same_counts": all(int(a) == int(b) for a, b in zip(state.updates, alone.updates, strict=True)),
        "metrics": off,
        "stepped": STEPPED.get((name, mesh)),
    }


def repeated(name: str, mesh: Mesh) -> dict[str, Any]:
    prints = [fingerprint(trained(Local, name, mesh, attempt)[0]) for attempt in (0, 1)]
    return {"same_bits": prints[0] == prints[1]}


def divided(name: str, mesh: Mesh) -> dict[str, Any]:
    """What each device holds of the state, and what a learning program gathers."""
    ex = experiment(name)
    run = Local(envs=8, mesh=mesh).start(ex)
    state = run.learner.state
    held = {device.id: 0 for device in jax.devices()[: mesh.size]}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    split = Split(mesh, jax.devices(), ex.agent)
    form = split.form(fragment_form(ex.agent, ex.source.spec, 8))
    learn = split.jit(ex.agent.learn, None)
    text = learn.lower(state, form, np.zeros(2, np.uint32)).compile().as_text()
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\].* all-gather(?:-start)?\(", text)
    leaves = placed(mesh, state)
    whole = [",".join(map(str, leaf.shape)) for leaf in leaves if len(leaf.shape) > 1 and any(leaf.axes)]
    whole += [",".join(shape.split(",")[::-1]) for shape in whole]  # transposed in the backward pass
    run.close()
    return {
        "held": list(held.values()),
        "expected": sum(leaf.per_device for leaf in leaves),
        "whole": sum(leaf.bytes for leaf in leaves),
        "kernels_gathered": sorted(set(whole) & set(gathered)),
        "all_reduces": text.count(" all-reduce("),
    }


def exchanges(name: str, mesh: Mesh) -> dict[str, Any]:
    """Of the loop over minibatches: how many arrays are added up over devices in each turn. On CPUs each of
    them is an exchange, also where XLA has several in one instruction."""
    ex = experiment(name)
    split = Split(mesh, jax.devices(), ex.agent)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(ex.agent.init, np.zeros(2, np.uint32)),
        split.state,
    )
    form = split.form(fragment_form(ex.agent, ex.source.spec, 8))
    text = split.jit(ex.agent.learn, None).lower(state, form, np.zeros(2, np.uint32)).compile().as_text()
    added = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text.partition("\nENTRY ")[0])
    return {
        "each": sum(len(re.findall(r"\w+\[", arrays)) for arrays in added),
        "leaves": len(jax.tree.leaves(state.params)),
    }


def clip(mesh: Mesh) -> dict[str, Any]:
    """A gradient that is split, clipped by the norm of the whole."""
    ex = experiment("ppo")
    split = Split(mesh, jax.devices(), ex.agent)
    rng = np.random.default_rng(0)
    form = jax.eval_shape(ex.agent.init, np.zeros(2, np.uint32)).params
    gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), form)
    norm = np.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in jax.tree.leaves(gradient)))
    where = split.state.params
    there = split.jit(lambda g: mean_gradient(g, np.float32(1), 0.5), where, (), (where,))(gradient)
    expected = jax.tree.map(lambda x: x * np.float32(0.5 / norm), gradient)
    parts = [len({str(shard.index) for shard in x.addressable_shards}) for x in jax.tree.leaves(there)]
    return {"apart": apart(expected, jax.device_get(there)), "most_parts": max(parts)}


def trainer(folder: Path, mesh: Mesh | None, name: str = "ppo", where: type = Local) -> Trainer:
    algorithm, env = ALGORITHMS[name]
    env = env if where is Local else IN_JAX[env]
    on = where(envs=8, mesh=mesh)
    return Trainer(algorithm, env, on=on, run_dir=folder, sinks=(), checkpoint_seconds=None)


def moved(folder: Path, name: str, where: type) -> dict[str, Any]:
    """Trained over one mesh, saved, and gone on with over others."""
    meshes = {"one": None, "2x2": Mesh(data=2, model=2), "model=4": Mesh(model=4)}
    results: dict[str, Any] = {}
    for begun, others in (("2x2", ("one", "model=4", "2x2")), ("one", ("2x2",))):
        with trainer(folder / f"{name}-{where.__name__}-{begun}", meshes[begun], name, where) as first:
            for _ in range(6):
                first.train()
            saved = first.save(folder / f"saved-{name}-{where.__name__}-{begun}")
            before = fingerprint(jax.device_get(first._run.learner.state))
            first.train()
            after = jax.device_get(first._run.learner.state)
        for other in others:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                on = None if other == begun else where(envs=8, mesh=meshes[other])
                second = Trainer.restore(saved, on=on)
            with second:
                same = fingerprint(jax.device_get(second._run.learner.state)) == before
                second.train()
                now = jax.device_get(second._run.learner.state)
                results[f"{begun} to {other}"] = {
                    "restored": same,
                    "apart": apart(after.params, now.params),
                    "same_bits": fingerprint(after) == fingerprint(now),
                    "warned": any("to rounding" in str(w.message) for w in told),
                    "recorded": second.config["on"].get("mesh"),
                }
    return results


def resumed(folder: Path) -> dict[str, Any]:
    """A run directory of two devices, gone on with on two and then on one."""
    place = folder / "resumed"
    with trainer(place, Mesh(data=2)) as first:
        first.fit(8 * 16 * 3)
    with Trainer.resume(place) as second:
        mesh = second.config["on"]["mesh"]
        played = second.evaluate(episodes=2).returns
        second.fit(8 * 16 * 5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        third = Trainer.resume(place, on=Local(envs=8))
    with third:
        third.fit(8 * 16 * 6)
        return {
            "mesh": mesh,
            "then": third.config["on"],
            "warned": len(told),
            "played": len(played),
            "fingerprint": third.fingerprint(),
        }


def case(folder: Path, name: str) -> dict[str, Any]:
    """KIND/ALGORITHM/MESH"""
    kind, algorithm, mesh = [*name.split("/"), "", ""][:3]
    match kind:
        case "local":
            return agreement(Local, algorithm, MESHES[mesh])
        case "compiled":
            return agreement(Compiled, algorithm, MESHES[mesh])
        case "repeated":
            return repeated(algorithm, MESHES[mesh])
        case "divided":
            return divided(algorithm, MESHES[mesh])
        case "exchanges":
            return exchanges(algorithm, MESHES[mesh])
        case "clip":
            return clip(MESHES[mesh])
        case "moved":
            return moved(folder, algorithm, {"local": Local, "compiled": Compiled}[mesh])
        case _:
            return resumed(folder)


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        begun = time.process_time()
        row = {"case": wanted, **case(Path(sys.argv[1]), wanted)}
        print(json.dumps({**row, "cpu_seconds": round(time.process_time() - begun, 1)}), flush=True)
