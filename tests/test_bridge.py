"""RLlib's old interface: what its keys become, what is refused, and a whole life of a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal import PPO, Local, ShoalError
from shoal.bridge import PPOTrainer, _say_once, pretty_print
from shoal.rllib_config import translate

TINY = {
    "env": "CartPole-v1",
    "num_workers": 2,
    "train_batch_size": 64,
    "sgd_minibatch_size": 32,
    "num_sgd_iter": 1,
    "model": {"fcnet_hiddens": [8]},
}


@pytest.fixture(autouse=True)
def say_again() -> None:
    _say_once.cache_clear()


class Countdown(gymnasium.Env):
    """Reward 1 for `length` steps; takes RLlib's env_config."""

    def __init__(self, config: dict[str, int]) -> None:
        self.length = config["length"]
        self.observation_space = gymnasium.spaces.Discrete(2)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.t % 2, 1.0, self.t == self.length, False, {}


class TestTranslation:
    def test_every_key_becomes_the_setting_of_the_same_meaning(self) -> None:
        found = translate(
            {
                "env": "CartPole-v1",
                "env_config": {"sutton_barto_reward": True},
                "num_workers": 4,
                "num_envs_per_worker": 2,
                "framework": "torch",
                "lr": 1e-3,
                "gamma": 0.9,
                "lambda": 0.8,
                "clip_param": 0.3,
                "vf_clip_param": 10.0,
                "vf_loss_coeff": 1.0,
                "entropy_coeff": 0.01,
                "kl_target": 0.02,
                "num_sgd_iter": 3,
                "sgd_minibatch_size": 128,
                "train_batch_size": 1024,
                "rollout_fragment_length": 64,
                "grad_clip": 40.0,
                "seed": 7,
                "horizon": 100,
                "observation_filter": "MeanStdFilter",
                "num_gpus": 0,
                "log_level": "WARN",
                "model": {"fcnet_hiddens": [32, 16], "fcnet_activation": "relu", "vf_share_layers": True},
            }
        )
        assert found.algorithm == PPO(
            learning_rate=1e-3,
            discount=0.9,
            gae_lambda=0.8,
            clip=0.3,
            value_clip=10.0,
            value_coefficient=1.0,
            entropy_coefficient=0.01,
            target_kl=0.02,
            epochs=3,
            minibatches=8,
            rollout_length=128,
            max_grad_norm=40.0,
            hidden=(32, 16),
            activation="relu",
            shared=True,
        )
        assert found.env == "CartPole-v1"
        assert found.on == Local(envs=8, groups=4)
        assert found.options == {
            "env_kwargs": {"sutton_barto_reward": True},
            "seed": 7,
            "time_limit": 100,
            "normalize_observations": True,
        }

    def test_left_out_keys_take_rllibs_iteration_and_shoals_defaults(self) -> None:
        found = translate({"env": "CartPole-v1"})
        assert found.algorithm == PPO(rollout_length=2000, minibatches=32)  # 4000 steps, minibatches of 125
        assert found.on == Local(envs=2, groups=2)
        assert not found.explore

    def test_no_workers_are_one_group(self) -> None:
        assert translate({"env": "x", "num_workers": 0}).on == Local(envs=1, groups=1)

    def test_later_names_mean_the_same(self) -> None:
        old = {"num_workers": 1, "num_envs_per_worker": 4, "sgd_minibatch_size": 50, "num_sgd_iter": 2}
        new = {"num_env_runners": 1, "num_envs_per_env_runner": 4, "minibatch_size": 50, "num_epochs": 2}
        assert translate({"env": "x", **old}) == translate({"env": "x", **new, "lambda_": 0.95})

    @given(
        workers=st.integers(0, 5),
        each=st.integers(1, 5),
        fragment=st.none() | st.integers(1, 300),
        minibatch=st.none() | st.integers(1, 300),
    )
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_the_sizes_hold_together(
        self, workers: int, each: int, fragment: int | None, minibatch: int | None
    ) -> None:
        found = translate(
            {
                "env": "x",
                "num_workers": workers,
                "num_envs_per_worker": each,
                "rollout_fragment_length": fragment,
                "sgd_minibatch_size": minibatch,
            }
        )
        envs, algorithm = max(workers, 1) * each, found.algorithm
        batch = envs * algorithm.rollout_length
        assert (found.on.envs, found.on.groups) == (envs, max(workers, 1))
        assert batch >= 4000
        assert batch % algorithm.minibatches == 0
        assert fragment is None or algorithm.rollout_length % fragment == 0
        assert minibatch is None or batch // algorithm.minibatches == minibatch

    def test_memory_learns_from_whole_fragments(self) -> None:
        model = {"use_lstm": True, "lstm_cell_size": 16}
        config = {"env": "x", "num_workers": 4, "train_batch_size": 400, "model": model}
        found = translate(config)
        assert (found.algorithm.memory, found.algorithm.minibatches) == (16, 4)
        assert any("GRU of 16" in note for note in found.notes)
        assert translate(config | {"sgd_minibatch_size": 200}).algorithm.minibatches == 2
        with pytest.raises(ShoalError, match="allow 400, 200, 100"):
            translate(config | {"sgd_minibatch_size": 40})

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"clip_parm": 0.2}, "unknown key 'clip_parm' in config: did you mean 'clip_param'"),
            ({"model": {"fcnet_hidens": [8]}}, "did you mean 'fcnet_hiddens'"),
            ({"model": {"fcnet_hiddens": [0]}}, "fcnet_hiddens must be a whole number of at least 1, got 0"),
            ({"model": {"max_seq_len": 20}}, "max_seq_len is not possible"),
            ({"framework": "torhc"}, "did you mean 'torch'"),
            ({"observation_filter": "MeanStd"}, "did you mean 'MeanStdFilter'"),
            (
                {"train_batch_size": 401},
                "train_batch_size=401 must be a multiple of 2 environments; 402 is one",
            ),
            (
                {"train_batch_size": 4000, "rollout_fragment_length": 128},
                "multiple of 2 environments times rollout_fragment_length=128; 4096 is one",
            ),
            (
                {"train_batch_size": 4000, "sgd_minibatch_size": 128},
                "multiple of 2 environments, and of sgd_minibatch_size=128; 4096 is one",
            ),
            ({"num_gpus": 1}, "num_gpus=1 is not possible: JAX uses the GPU"),
            ({"kl_coeff": 0.2}, "no KL penalty"),
            ({"batch_mode": "complete_episodes"}, "learns from fragments"),
            ({"lr_schedule": [[0, 1e-3], [100, 0.0]]}, "anneal_steps"),
            ({"num_workers": -1}, "num_workers must be a whole number of at least 0, got -1"),
            ({"num_sgd_iter": 1.5}, "num_sgd_iter must be a whole number of at least 1, got 1.5"),
            ({"lr": "1e-3"}, "lr must be a number, got '1e-3'"),
            ({"lambda": 2.0}, "gae_lambda must lie between 0 and 1"),
            ({"num_workers": 1, "num_env_runners": 1}, "'num_workers' twice"),
            ({"env": None}, "config needs an environment"),
            ({"env": 3}, "env must be an id, a class or a function, got 3"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ShoalError) as error:
            translate({"env": "CartPole-v1", **config})
        assert message in str(error.value)
        assert "\n" not in str(error.value)


class TestTrainer:
    def test_a_whole_life(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = shoal.PPOTrainer(config={**TINY, "framework": "torch"})
        said = capsys.readouterr().err.splitlines()
        assert [line for line in said if "torch" in line] == [
            "shoal: framework='torch' is accepted, but Shoal computes in JAX"
        ]
        assert sum("num_workers=2" in line for line in said) == 1
        for number in (1, 2):
            result = trainer.train()
            assert result["training_iteration"] == number
        assert result["timesteps_total"] == result["env_steps"] > 0
        assert result["episode_reward_min"] <= result["episode_reward_mean"] <= result["episode_reward_max"]
        assert result["episode_len_mean"] == result["episode_reward_mean"]  # CartPole's reward is 1 per step
        path = trainer.save(tmp_path)
        assert path == str(tmp_path / "checkpoint_000002")
        goes_on = trainer.train()

        again = PPOTrainer(TINY)
        again.restore(path)
        assert trainer.shoal.fingerprint() != again.shoal.fingerprint()
        resumed = again.train()
        assert {k: v for k, v in resumed.items() if "tim" not in k} == {
            k: v for k, v in goes_on.items() if "tim" not in k
        }
        assert trainer.shoal.fingerprint() == again.shoal.fingerprint()
        assert capsys.readouterr().err == ""  # said once in a process, and these settings are the same

        env = gymnasium.make("CartPole-v1")
        obs, _ = env.reset(seed=0)
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(again.compute_single_action(obs))
            done, total = terminated or truncated, total + reward
        assert total > 0
        assert {again.compute_single_action(obs, explore=True) for _ in range(30)} == {0, 1}
        evaluation = again.evaluate(2)["evaluation"]
        assert evaluation["episode_reward_min"] <= evaluation["episode_reward_mean"]
        again.stop()

    def test_env_config_reaches_a_class_as_its_first_argument(self, tmp_path: Path) -> None:
        config = {**TINY, "env": Countdown, "env_config": {"length": 5}, "num_workers": 0}
        trainer = PPOTrainer(config)
        assert trainer.train()["episode_len_mean"] == 5
        trainer.save(tmp_path)
        again = PPOTrainer(config)
        again.restore(tmp_path)  # the last checkpoint in the folder
        assert again.train()["training_iteration"] == 2

    def test_env_config_survives_where_a_class_cannot_be_imported(self, tmp_path: Path) -> None:
        class Local(Countdown):
            pass

        config = {**TINY, "env": Local, "env_config": {"length": 5}, "num_workers": 0}
        path = PPOTrainer(config).save(tmp_path)
        again = PPOTrainer(config)
        again.restore(path)
        assert again.train()["episode_len_mean"] == 5

    def test_environments_in_jax(self, tmp_path: Path) -> None:
        config = {**TINY, "env": shoal.GridWorld(size=3, max_steps=10)}
        path = PPOTrainer(config).save(tmp_path)
        trainer = PPOTrainer(config)
        trainer.restore(path)
        assert trainer.train()["timesteps_total"] > 0

    def test_restoring_says_what_differs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = PPOTrainer(TINY).save(tmp_path)
        other = PPOTrainer({**TINY, "lr": 1e-3, "seed": 3})
        capsys.readouterr()
        other.restore(path)
        said = capsys.readouterr().err
        assert said.endswith("config has another learning_rate, seed\n") and said.count("\n") == 1
        assert other.shoal.config["algorithm"]["settings"]["learning_rate"] == PPO().learning_rate
        grid = PPOTrainer({**TINY, "env": shoal.GridWorld(size=3, max_steps=10)})
        with pytest.raises(ShoalError, match="not the one of this run"):
            grid.restore(path)

    def test_a_folder_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        first, second = PPOTrainer(TINY).save(), PPOTrainer(TINY).save()
        assert first != second
        assert first.startswith("runs/PPO_CartPole-v1_") and first.endswith("/checkpoint_000000")


def test_pretty_print() -> None:
    text = pretty_print({"iteration": 3, "evaluation": {"episode_reward_mean": 12.5}, "note": "x"})
    assert [line.split() for line in text.splitlines()] == [
        ["iteration", "3"],
        ["note", "x"],
        ["evaluation"],
        ["episode_reward_mean", "12.5"],
    ]
