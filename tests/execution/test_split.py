"""Learning over a mesh, as far as one device shows it: what is refused, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from shoal import DQN, PPO, Cluster, Compiled, Local, Mesh, ShoalError, Trainer, cli, cli_cluster, train_seeds
from shoal.execution.split import check
from shoal.recipe import Experiment, Recipe
from shoal.restoring import Given, moved

SMALL = PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,))
MEMORY = PPO(rollout_length=8, epochs=1, minibatches=2, hidden=(8,), memory=4)


def plan_of(algorithm: Any) -> Any:
    return Experiment.of(Recipe(algorithm=algorithm, env={"env": "jax:CartPole-v1"}), 0).agent.plan


@pytest.mark.parametrize(
    ("algorithm", "mesh", "envs", "groups", "said"),
    [
        (SMALL, Mesh(data=3), 8, 1, "data=3 must divide the 8 environments of an update"),
        (SMALL, Mesh(data=4), 8, 4, "data=4 must divide the 2 environments of a group"),
        (MEMORY, Mesh(data=4), 4, 1, "data=4 must divide the 2 environments' fragments of a minibatch"),
        (DQN(batch_size=30), Mesh(data=4), 8, 1, "data=4 must divide the 30 transitions of a minibatch"),
    ],
)
def test_what_does_not_divide(algorithm: Any, mesh: Mesh, envs: int, groups: int, said: str) -> None:
    with pytest.raises(ShoalError, match=said):
        check(mesh, plan_of(algorithm), envs, groups)
    check(Mesh(model=4), plan_of(algorithm), envs, groups)


@pytest.mark.parametrize("on", [Local(envs=4, mesh=Mesh()), Compiled(envs=4, mesh=Mesh())])
def test_a_mesh_of_one_device(on: Any) -> None:
    """Placed and given away as on several; what was learned is what one device learns without."""
    experiment = Experiment.of(Recipe(algorithm=SMALL, env={"env": "jax:CartPole-v1"}), 0)
    states = []
    for how in (on, type(on)(envs=4)):
        run = how.start(experiment)
        before = run.learner.state
        kept = run.learner.acting()
        for _ in range(2):
            metrics = run.iterate().metrics
        states.append(jax.device_get(run.learner.state))
        given_away = [leaf.is_deleted() for leaf in jax.tree.leaves(before.params)]
        assert all(given_away) if how is on else not any(given_away)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))  # an evaluation may hold it
        assert np.isfinite(metrics["loss/gradient_norm"])
        assert run.learner.env_steps > 0
        run.close()
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_too_few_devices_are_one_line() -> None:
    with pytest.raises(ShoalError, match="data=2,model=1 needs 2 devices and there are 1"):
        Trainer(SMALL, "CartPole-v1", on=Local(mesh=Mesh(data=2)))


def test_rules_are_checked_at_the_start() -> None:
    with pytest.raises(ShoalError, match="'nowhere' finds nothing in this model"):
        Trainer(SMALL, "CartPole-v1", on=Local(mesh=Mesh(rules=(("nowhere", ("model",)),))))


def test_seeds_at_once_need_one_device() -> None:
    with pytest.raises(ShoalError, match="several seeds at once run on one device"):
        train_seeds(SMALL, "jax:CartPole-v1", [0, 1], steps=10, on=Compiled(mesh=Mesh()))


def test_another_mesh_is_the_same_experiment_to_rounding() -> None:
    config: dict[str, Any] = {"on": {"name": "local", "envs": 8, "groups": 2}}
    on = Local(envs=8, groups=2, mesh=Mesh(data=2))
    with pytest.warns(UserWarning, match="learned on one device and goes on on data=2, model=1: .* rounding"):
        assert moved(config, Given(on=on)) == on
    with pytest.raises(ShoalError, match="another experiment"):
        moved(config, Given(on=Local(envs=4, mesh=Mesh(data=2))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert moved(config, Given(on=Local(envs=8, groups=2))).envs == 8
        assert moved(config, Given(on=Local(envs=8, groups=2, mesh=Mesh()))).envs == 8  # one device too


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    assert cli.main(["show", *arguments]) == expect
    out, err = capsys.readouterr()
    return out if expect == 0 else err


def test_show_says_what_each_device_would_hold(capsys: pytest.CaptureFixture[str]) -> None:
    wide = ("--hidden", "1024", "1024", "--envs", "16")
    out = shown(capsys, "ppo", "CartPole-v1", "--mesh", "data=2,model=4", *wide)
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert "data=2,model=4: 8 devices" in out and "256 on each of data=2" in out
    assert rows["parameters"][-4:] == ["8.5", "MB", "2.1", "MB"]
    assert rows["optimizer"][-4:] == ["16.9", "MB", "4.2", "MB"]
    assert rows["gradients"][-4:] == ["8.5", "MB", "2.1", "MB"]
    assert rows["all"][-4:] == ["33.8", "MB", "8.5", "MB"]
    assert "params/policy/torso/layers_1/kernel  1024 x 1024  axis 0 over model" in out
    assert "params/policy/torso/layers_0/kernel  4 x 1024     axis 1 over model" in out
    out = shown(capsys, "dqn", "CartPole-v1", "--learners", "model=2", "--normalize-observations")
    assert "2 learners, a process each" in out and "extra/dqn_target/torso/layers_1/kernel" in out
    assert "meaning" in shown(capsys, "ppo") and "usage" in shown(capsys, "--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "shoal show needs one algorithm: "),
        (("nope",), "unknown algorithm 'nope'"),
        (("ppo", "CartPole-v1", "--mesh", "modle=2"), "--mesh: expected data=N,model=M, got 'modle=2'"),
        (("ppo", "CartPole-v1", "--learners", "data=x"), "--learners: data needs a whole number"),
        (("ppo", "CartPole-v1", "--mesh", "data=3"), "data=3 must divide the 8 environments"),
        (("ppo", "CartPole-v1", "--mesh", "model=5"), "model=5 splits no parameter of this model"),
        (("ppo", "CartPole-v1", "--mesh", "data=2", "--learners", "data=2"), "give one"),
        (("ppo", "--mesh", "data=2"), "needs ENV"),
    ],
)
def test_show_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    err = shown(capsys, *arguments, expect=2)
    assert said in err and err.count("\n") == 1


def test_learners_on_the_command_line() -> None:
    from shoal.cli_options import OnCluster, OnServer

    flags = OnCluster(learners="data=2,model=2", learner_cpus=2.0, learner_memory=10**9)
    expected = {"learners": Mesh(data=2, model=2), "learner_cpus": 2.0, "learner_memory": 10**9}
    assert cli_cluster.settings(flags) == expected
    was = {"name": "cluster", "envs": 8, "groups": 2, "learners": {"data": 2, "model": 1}}
    on = cli_cluster.moved(OnCluster(runners=3), OnServer(), None, was)
    assert on == Cluster(runners=3, envs=8, groups=2, learners=Mesh(data=2))
    on = cli_cluster.moved(OnCluster(learners="none"), OnServer(), None, was)
    assert on == Cluster(envs=8, groups=2)
    early = cli_cluster._wanted("train", ["ppo", "CartPole-v1", "--on", "cluster", "--learners", "data=2"])
    assert isinstance(early, Cluster) and early.learners == Mesh(data=2)


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`shoal`, in a process where JAX has not started."""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    command = [sys.executable, "-m", "shoal.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)


def test_the_command_line_makes_devices_of_the_cpu(tmp_path: Path) -> None:
    small = (
        "--rollout-length",
        "8",
        "--epochs",
        "1",
        "--minibatches",
        "2",
        "--hidden",
        "8",
        "--sink",
        "tensorboard",
    )
    train = ("train", "ppo", "jax:CartPole-v1", "--on", "compiled", "--envs", "4", "--mesh", "data=2", *small)
    done = program(tmp_path, *train, "--steps", "60", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["on"] == {"name": "compiled", "envs": 4, "groups": 1, "mesh": {"data": 2, "model": 1}}
    done = program(tmp_path, "resume", "run", "--steps", "120", "--mesh", "none")
    assert done.returncode == 0 and "the same run to rounding" in done.stderr, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["on"] == {"name": "compiled", "envs": 4, "groups": 1}
    done = program(tmp_path, *train[: -len(small) - 2], "--mesh", "data=3", *small, "--run-dir", "other")
    assert done.returncode == 2 and "data=3 must divide the 4 environments" in done.stderr
    assert done.stderr.count("\n") == 1
