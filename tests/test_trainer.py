"""The public face: what a Trainer gives, keeps, and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

from shoal import A2C, DQN, PPO, Compiled, Local, Policy, Result, ShoalError, Trainer, checkpoint
from shoal.config import algorithm_from_json, algorithm_to_json, check_settings
from shoal.counters import value
from shoal.rundir import RunDir
from shoal.types import Agent, EnvSpec

SMALL = PPO(rollout_length=16, epochs=1, minibatches=2, hidden=(8,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    with Trainer(
        SMALL,
        "CartPole-v1",
        on=Local(envs=4, groups=2),
        run_dir=folder,
        evaluate_every=200,
        evaluate_episodes=2,
    ) as trainer:
        trainer.fit(500)
        yield trainer


def test_result_and_files(trained: Trainer) -> None:
    result = trained.train()
    assert isinstance(result, Result)
    for name in (
        "iteration",
        "env_steps",
        "episodes",
        "episode_return_mean",
        "loss/policy",
        "policy/entropy",
    ):
        assert np.isfinite(result[name])
    for name in ("timing/env", "timing/act", "timing/learn", "timing/seconds", "timing/steps_per_second"):
        assert result[name] > 0
    assert trained.run_dir is not None
    rows = [json.loads(line) for line in (trained.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, int(result["iteration"]) + 1))
    assert sum("evaluation/return_mean" in row for row in rows) == result["env_steps"] // 200
    config = json.loads((trained.run_dir / "config.json").read_text())
    assert config["algorithm"]["name"] == "ppo" and config["on"] == {"name": "local", "envs": 4, "groups": 2}
    assert list((trained.run_dir / "tensorboard").iterdir())
    best = RunDir.read(trained.run_dir).best
    assert best is not None and best.score == max(r.get("evaluation/return_mean", -1) for r in rows)


def test_evaluation_is_repeatable_and_changes_nothing(trained: Trainer) -> None:
    before = trained.fingerprint()
    one, two = trained.evaluate(12), trained.evaluate(12)
    assert one == two and len(one.returns) == 12 and one.returns == tuple(map(float, one.lengths))
    assert one.mean == pytest.approx(np.mean(one.returns)) and "12 episodes" in str(one)
    assert trained.fingerprint() == before


def test_actions(trained: Trainer) -> None:
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    action = trained.compute_single_action(obs)
    assert env.action_space.contains(action) or env.action_space.contains(int(action))
    actions, _ = trained.compute_actions(np.stack([obs] * 5))
    assert actions.tolist() == [action] * 5
    sampled = {int(trained.compute_single_action(obs, explore=True)) for _ in range(60)}
    assert sampled == {0, 1}
    with pytest.raises(ShoalError, match=r"shape \(4,\), got \(3,\)"):
        trained.compute_single_action(obs[:3])


def test_policy_stands_alone(trained: Trainer, tmp_path: Path) -> None:
    obs = np.asarray([0.1, 0.2, -0.1, 0.0], np.float32)
    place = trained.policy().save(tmp_path / "policy")
    assert Policy.load(place).compute_single_action(obs) == trained.compute_single_action(obs)
    assert Policy.load(trained.save(tmp_path / "whole")).compute_single_action(
        obs
    ) == trained.compute_single_action(obs)
    names = json.loads((place / "manifest.json").read_text())["arrays"]
    assert not any("value" in name or "opt" in name for name in names)  # no more than acting needs
    with pytest.raises(ShoalError, match="holds a policy, not a training run"):
        Trainer.restore(place)


def test_several_trainers_live_in_one_process() -> None:
    with Trainer(SMALL, "CartPole-v1", seed=1) as a, Trainer(SMALL, "Acrobot-v1", seed=1) as b:
        a.train(), b.train()
        with Trainer(SMALL, "CartPole-v1", seed=1) as c:
            c.train()
            assert a.fingerprint() == c.fingerprint() != b.fingerprint()


def test_memory_follows_the_episode() -> None:
    recurrent = PPO(rollout_length=8, epochs=1, minibatches=1, hidden=(8,), memory=4)
    with Trainer(recurrent, "CartPole-v1") as trainer:
        policy = trainer.policy()
        obs = np.asarray([0.1, 0.2, -0.1, 0.0], np.float32)
        batch, memory = policy.compute_actions(obs[None])
        again, later = policy.compute_actions(obs[None], memory=memory)
        fresh, begun = policy.compute_actions(obs[None], memory=later, first=[True])
        leaf = lambda tree: np.asarray(next(iter(tree["policy"].values())))  # noqa: E731
        np.testing.assert_array_equal(leaf(memory), leaf(begun))
        assert (leaf(memory) != leaf(later)).any()
        assert batch == fresh and again.shape == (1,)


def test_without_a_sinks_package_no_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there an empty run directory; what was saved can still be looked at."""
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    with Trainer(SMALL, "CartPole-v1", sinks=["mlflow"]) as trainer:
        place = trainer.save(tmp_path / "save")
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[mlflow\]'"):
        Trainer(SMALL, "CartPole-v1", sinks=["mlflow"], run_dir=tmp_path / "run")
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[mlflow\]'"):
        Trainer.restore(place, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with Trainer.restore(place):
        pass


def test_warm_start_takes_what_was_learned(trained: Trainer, tmp_path: Path) -> None:
    place = trained.save(tmp_path / "save")
    with Trainer(SMALL, "CartPole-v1", seed=9, warm_start=place) as trainer:
        assert trainer.fingerprint() == trained.fingerprint()
        assert trainer.summary()["env_steps"] == 0
    with pytest.raises(ShoalError, match="normalize_observations=False: give that here too"):
        Trainer(SMALL, "CartPole-v1", warm_start=place, normalize_observations=True)
    with pytest.raises(ShoalError, match="holds a policy alone"):
        Trainer(SMALL, "CartPole-v1", warm_start=trained.policy().save(tmp_path / "policy"))
    with pytest.raises(ShoalError, match=r"is a checkpoint of ppo, and its parameters do not fit dqn$"):
        Trainer(DQN(hidden=(8,)), "CartPole-v1", warm_start=place)
    with Trainer(A2C(hidden=(8,)), "CartPole-v1", warm_start=place) as other:  # of the same networks
        assert other.fingerprint() == trained.fingerprint()


def test_warm_start_takes_targets_and_statistics(tmp_path: Path) -> None:
    """A fresh target network would teach the loaded parameters noise, and fresh statistics would show them
    other observations than they know."""
    dqn = DQN(hidden=(4,), learning_starts=8, batch_size=8, rollout_length=8, target_every=2)
    with Trainer(dqn, "CartPole-v1", normalize_observations=True, run_dir=tmp_path / "run") as trainer:
        trainer.fit(256)
        was = jax.device_get(trainer._run.learner.state)
    with Trainer(
        dqn, "CartPole-v1", seed=1, normalize_observations=True, warm_start=tmp_path / "run"
    ) as again:
        now = jax.device_get(again._run.learner.state)
    assert {"dqn_target", "observation_stats"} <= was.extra.keys()
    for a, b in zip(*map(jax.tree.leaves, (was.extra, now.extra)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert value(now.updates) == value(now.env_steps) == 0


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1") as trainer:
        place = trainer.save(tmp_path / "save")
    with pytest.raises(ShoalError, match=r"has discount=0.5, and this run discount=0.99"):
        Trainer.restore(place, algorithm=replace(SMALL, discount=0.5))
    with pytest.raises(ShoalError, match="is of ppo, and algorithm= is a2c"):
        Trainer.restore(place, algorithm=A2C(hidden=(8,)))
    with Trainer.restore(place, algorithm=SMALL):
        pass


def test_a_configuration_that_was_edited_is_another_run(tmp_path: Path) -> None:
    """It was followed without a word. What does not say which run it is may be edited."""
    with Trainer(SMALL, "CartPole-v1", on=Local(envs=2), run_dir=tmp_path / "run") as trainer:
        trainer.fit(32)
    place = tmp_path / "run" / "config.json"
    before = place.read_text()
    for old, new, key in (
        ('"learning_rate": 0.0003', '"learning_rate": 0.01', "algorithm.settings.learning_rate=0.01"),
        ('"seed": 0', '"seed": 1', "seed=1"),
        ('"env_kwargs": {}', '"env_kwargs": {"sutton_barto_reward": true}', "env.env_kwargs.sutton"),
        ('"envs": 2', '"envs": 4', "on.envs=4"),
        ('"scale_rewards": false', '"scale_rewards": true', "scale_rewards=true"),
    ):
        assert before.count(old) == 1, old
        place.write_text(before.replace(old, new))
        with pytest.raises(ShoalError, match=rf"config\.json has {key}.*, and the run's checkpoint"):
            Trainer.resume(tmp_path / "run")
    place.write_text(before.replace('"keep_checkpoints": 3', '"keep_checkpoints": 1'))
    with Trainer.resume(tmp_path / "run") as again:
        assert again.config["keep_checkpoints"] == 1


def test_a_run_directory_names_its_last_and_its_best_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Trainer(SMALL, "CartPole-v1", run_dir=folder, evaluate_every=128, evaluate_episodes=2) as trainer:
        trainer.fit(1000)
        last = trainer.policy()
    run = RunDir.read(folder)
    assert run.best is not None
    best = checkpoint.load(run.best.path).info["progress"]["env_steps"]
    with Trainer.restore(folder, best=True) as again:
        assert again.summary()["env_steps"] == best
        chosen = again.policy()
    for policy, how in ((last, {}), (chosen, {"best": True})):
        loaded = Policy.load(folder, **how)
        for a, b in zip(*map(jax.tree.leaves, (policy.params, loaded.params)), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ShoalError, match="chooses among a run directory's checkpoints"):
        Policy.load(run.best.path, best=True)
    with Trainer(SMALL, "CartPole-v1", run_dir=tmp_path / "none"):
        pass
    with pytest.raises(ShoalError, match="has made no checkpoint yet"):
        Policy.load(tmp_path / "none")
    with pytest.raises(ShoalError, match="noted no best checkpoint"):
        Trainer.restore(tmp_path / "none", best=True)


def test_a_finished_run_stays_finished_until_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Trainer(SMALL, "CartPole-v1", run_dir=folder) as trainer:
        trainer.fit(200)
    summary = RunDir.read(folder).summary
    with Trainer.resume(folder) as again:
        assert again.fit()["env_steps"] == trainer.summary()["env_steps"]  # the goal is noted with the run
    assert RunDir.read(folder).summary == summary
    with Trainer.resume(folder) as again:
        again.train()
        assert RunDir.read(folder).summary is None
        again.fit(np.int64(600))
    assert RunDir.read(folder).goal == {"steps": 600, "seconds": None, "target_return": None}


def test_fit_stops(trained: Trainer) -> None:
    with Trainer(SMALL, "CartPole-v1") as trainer:
        results: list[Result] = []

        def on_result(result: Result) -> None:
            results.append(result)
            if len(results) == 3:
                trainer.stop()

        trainer.fit(10**9, on_result=on_result)
        assert len(results) == 3
        trainer.fit(seconds=1e-9)
        assert trainer.fit(10**9, target_return=1.0)["episodes"] >= 100
        with pytest.raises(ShoalError, match="needs a goal"):
            trainer.fit()


@dataclass(frozen=True)
class Custom:
    """A user's own algorithm: PPO under another name."""

    scale: float = 1.0

    def bind(self, spec: Any) -> Any:
        return SMALL.bind(spec)


class Mine(gym.Wrapper):
    """A user's own wrapper."""


def test_code_must_be_given_again(tmp_path: Path) -> None:
    make = lambda: gym.make("CartPole-v1")  # noqa: E731
    with Trainer(Custom(), make, seed=2) as trainer:
        trainer.train()
        place = trainer.save(tmp_path / "mine")
        trainer.train()
    with pytest.raises(ShoalError, match="pass env="):
        Trainer.restore(place, algorithm=Custom())
    with pytest.raises(
        ShoalError, match=r"Custom: pass algorithm= again, or trust_imports=True \(--trust-imports\)"
    ):
        Trainer.restore(place, env=make)
    for how in ({"algorithm": Custom()}, {"trust_imports": True}):
        with Trainer.restore(place, env=make, **how) as again:
            again.train()
            assert again.fingerprint() == trainer.fingerprint()
    with pytest.raises(ShoalError, match="the environment is not the one of this run"):
        Trainer.restore(place, env="Acrobot-v1", algorithm=Custom())
    assert isinstance(Policy.load(place, algorithm=Custom()), Policy)
    with pytest.raises(ShoalError, match=r"algorithm= has scale=2.0, and this run scale=1.0"):
        Policy.load(place, algorithm=Custom(scale=2.0))


def test_an_algorithm_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = algorithm_to_json(Custom())
    in_a_script = {**recorded, "name": "__main__:Custom"}
    check_settings(recorded, in_a_script)
    with pytest.raises(ShoalError, match="this run is of __main__:Custom, and algorithm= is ppo"):
        check_settings(algorithm_to_json(PPO()), in_a_script)
    monkeypatch.delattr(sys.modules[Custom.__module__], "Custom")
    with pytest.raises(ShoalError, match=r"cannot import the algorithm '.*:Custom'"):
        algorithm_from_json(recorded, trust_imports=True)


class Slow(gym.Wrapper):
    """Takes an argument, so that a rebuilt environment without it would be another one."""

    def __init__(self, factor: float) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.unwrapped.tau *= factor  # type: ignore[attr-defined]


def test_settings_of_code_are_kept(tmp_path: Path) -> None:
    """env_kwargs and the time limit of an environment that cannot be imported are not lost."""

    class Local(Slow):
        pass

    how = {"env_kwargs": {"factor": 0.5}, "time_limit": 7}
    with Trainer(SMALL, Local, **how) as trainer:
        trainer.train()
        place = trainer.save(tmp_path / "local")
        trainer.train()
    with Trainer.restore(place, env=Local) as again:
        again.train()
        assert again.fingerprint() == trainer.fingerprint()
    with Trainer(SMALL, "CartPole-v1", wrappers=[lambda env: env]) as trainer:
        place = trainer.save(tmp_path / "wrapped")
    with pytest.raises(ShoalError, match="pass wrappers= again"):
        Trainer.restore(place, env="CartPole-v1")
    with Trainer.restore(place, env="CartPole-v1", wrappers=[lambda env: env]):
        pass


def test_names_are_not_imported_without_consent(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1", wrappers=[Mine]) as trainer:
        place = trainer.save(tmp_path / "wrapped")
    with pytest.raises(ShoalError, match="names code to import"):
        Trainer.restore(place)
    with Trainer.restore(place, trust_imports=True) as again:
        assert again.train()["iteration"] == 1


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: Trainer(PPO, "CartPole-v1"), "must be an instance of its dataclass"),
        (lambda: Trainer(SMALL, "CartPol-v1"), "did you mean 'CartPole-v1'"),
        (lambda: Trainer(SMALL, "CartPole-v1", on=Compiled()), "not written in JAX"),
        (lambda: Trainer(SMALL, "CartPole-v1", on="local"), "on= must be one of"),
        (lambda: Trainer(SMALL, "CartPole-v1", seed=-1), "seed must be at least 0"),
        (lambda: Trainer(SMALL, "CartPole-v1", sinks=["tensorbord"]), "did you mean 'tensorboard'"),
        (lambda: Trainer(SMALL, "CartPole-v1", sinks="wandb"), r"several names such as \('wandb',\)"),
        (lambda: Trainer(SMALL, "CartPole-v1", seed=1.5), "seed must be a whole number, got 1.5"),
        (lambda: Trainer(SMALL, "CartPole-v1", evaluate_every=0), "evaluate_every must be at least 1"),
        (lambda: Trainer(SMALL, "CartPole-v1", checkpoint_every=-1), "checkpoint_every must be at least 1"),
        (lambda: Trainer(SMALL, "CartPole-v1").fit(0), "steps must be at least 1, got 0"),
        (lambda: Trainer(SMALL, "CartPole-v1").fit(), "fit needs a goal"),
        (lambda: Trainer(SMALL, "CartPole-v1").fit(target_return="475"), "target_return must be a number"),
        (lambda: Local(envs=8, groups=3), "groups=3 must divide envs=8"),
        (lambda: Trainer(SMALL, "CartPole-v1").save(), "needs a path"),
        (lambda: Trainer(SMALL, "CartPole-v1").save(3), "a path must be a text or a pathlib.Path, got 3"),
        (lambda: Trainer(SMALL, "CartPole-v1", run_dir=5), "a path must be a text"),
        (lambda: Trainer.restore(5), "a path must be a text"),
        (lambda: Trainer(SMALL, "CartPole-v1").evaluate(2.5), "episodes must be a whole number, got 2.5"),
        (lambda: Trainer(SMALL, "CartPole-v1").fit(9, on_result=3), "on_result must be a function"),
        (
            lambda: Trainer(Bare(), "CartPole-v1", scale_rewards=True),  # pyright: ignore
            "scale_rewards .* Bare has no `discount`",
        ),
    ],
)
def test_bad_input_is_one_line(call: Any, line: str) -> None:
    with pytest.raises(ShoalError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_closed_trainer_says_so(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, "CartPole-v1")
    trainer.close()
    for call in (trainer.train, lambda: trainer.save(tmp_path), lambda: trainer.fit(1)):
        with pytest.raises(ShoalError, match="this Trainer is closed"):
            call()
    assert len(trainer.evaluate(2).returns) == 2  # on environments of its own


@dataclass(frozen=True)
class Bare:
    """An algorithm of somebody's, with all that the contract asks for."""

    def bind(self, spec: EnvSpec) -> Agent:
        return SMALL.bind(spec)


def test_a_loop_of_train_is_kept(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1", run_dir=tmp_path / "run") as trainer:
        steps = [trainer.train()["env_steps"] for _ in range(3)]
        saved = trainer.save()
        before = saved.stat().st_mtime_ns
        trainer.close()
    assert (
        saved.stat().st_mtime_ns == before and list(RunDir.read(tmp_path / "run").checkpoints()) == steps[-1:]
    )
    with Trainer.resume(tmp_path / "run") as trainer:
        assert trainer.train()["iteration"] == 4
    with pytest.raises(RuntimeError, match="mine"), Trainer.resume(tmp_path / "run") as trainer:
        assert trainer.train()["iteration"] == 5
        raise RuntimeError("mine")
    with Trainer.resume(tmp_path / "run") as trainer:
        assert trainer.train()["iteration"] == 5


@pytest.mark.parametrize(
    ("seconds", "when"),  # the last when the Trainer is closed
    [
        (4.0, [4.0, 8.25, 12.5, 16.75, 36.75, 44.75]),
        (0.0, [1.0, 4.25, 7.5, 10.75, 14.0, 17.25, 37.25, 45.25]),
    ],
)
def test_checkpoints_that_take_long_are_rarer(
    seconds: float, when: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, took, saved = 0.0, 0.25, list[float]()
    save = RunDir.save_checkpoint

    def slow(self: RunDir, *args: Any, **options: Any) -> Path:
        nonlocal now
        saved.append(now)
        now += took
        return save(self, *args, **options)

    monkeypatch.setattr(RunDir, "save_checkpoint", slow)
    monkeypatch.setattr("shoal.recorder.time", SimpleNamespace(monotonic=lambda: now, time=lambda: 0.0))
    with Trainer(SMALL, "CartPole-v1", run_dir=tmp_path / "run", checkpoint_seconds=seconds) as trainer:
        for _ in range(40):
            now += 1.0
            trainer.train()
            took = 0.25 if now < 15 else 2.0  # of which 9 are more than 4
    assert saved == when


def test_a_restored_run_can_be_resumed_where_it_was_restored_to(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1") as trainer:
        trainer.train()
        place = trainer.save(tmp_path / "place")
    with Trainer.restore(place, run_dir=tmp_path / "run"):
        pass
    with Trainer.resume(tmp_path / "run") as trainer:
        assert trainer.train()["iteration"] == 2


def test_a_run_that_began_warm_does_not_look_there_again(tmp_path: Path) -> None:
    with Trainer(SMALL, "CartPole-v1", run_dir=tmp_path / "source") as source:
        source.train()
        source.save()
        trainer = Trainer(
            SMALL, "CartPole-v1", warm_start=tmp_path / "source", run_dir=tmp_path / "run", seed=5
        )
        warm = trainer.fingerprint()
        trainer._release()  # as a kill would leave it
        source.train()
    with Trainer.resume(tmp_path / "run") as trainer:
        assert trainer.fingerprint() == warm


def test_closing_after_an_error_does_not_hide_it(tmp_path: Path) -> None:
    small = PPO(rollout_length=4, epochs=1, minibatches=1, hidden=(8,))
    trainer = Trainer(small, "CartPole-v1", wrappers=[Poison], run_dir=tmp_path / "run")
    with pytest.raises(ShoalError, match="nan"):
        trainer.fit(1000)
    trainer.close()
    assert not RunDir.read(tmp_path / "run").checkpoints()


def test_other_threads_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Trainer(SMALL, "CartPole-v1", run_dir=tmp_path / "run") as trainer:
        trainer.train()
    monkeypatch.setattr("shoal.assembly.configure", lambda threads, devices: 2)
    with (
        pytest.warns(UserWarning, match="learned with threads=1 and goes on with 2: .* to rounding"),
        Trainer.resume(tmp_path / "run") as trainer,
    ):
        assert trainer.config["threads"] == 2


class Poison(gym.Wrapper):
    """Gives a NaN reward after ten steps."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return obs, float("nan") if self.steps > 10 else reward, terminated, truncated, info


def test_a_broken_environment_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    small = PPO(rollout_length=4, epochs=1, minibatches=1, hidden=(8,))
    with (
        Trainer(
            small, "CartPole-v1", wrappers=[Poison], run_dir=tmp_path / "run", checkpoint_every=4
        ) as trainer,
        pytest.raises(ShoalError, match=r"CartPole-v1.*NaN|CartPole-v1.*nan"),
    ):
        trainer.fit(1000)
    loaded = RunDir.read(tmp_path / "run").latest_checkpoint()
    assert loaded is not None and loaded.info["progress"]["env_steps"] > 0
