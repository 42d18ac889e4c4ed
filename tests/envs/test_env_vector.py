"""Environments with a vector version of their own."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from toy_envs import Doubled, Toy

from shoal.envs import EnvError, resolve
from shoal.errors import ShoalError
from shoal.keys import seed_for


def test_its_rows_are_the_environments_own():
    source = resolve("CartPole-v1", vector=True, time_limit=20)
    assert source.spec.max_episode_steps == 20 and source.journal == "vector" and source.reference["vector"]
    group = source.make_group(3, 1, 4)
    env = gymnasium.make_vec("CartPole-v1", 4, "vector_entry_point", max_episode_steps=20)
    obs, _ = env.reset(seed=seed_for(3, "env", 1, "vector", 0))
    assert (group.current().obs.policy == obs).all() and group.current().first.all()
    done, rng, ends = np.zeros(4, bool), np.random.default_rng(0), 0
    for action in rng.integers(0, 2, (150, 4)).astype(np.int32):
        row = group.step(action)
        obs, reward, terminated, truncated, _ = env.step(action.astype(np.int64))
        assert (row.obs.policy == obs).all() and (row.reward == reward).all()
        assert (row.terminated == terminated).all() and (row.first == done).all()
        assert (row.reward[row.first] == 0).all()
        done = terminated | truncated
        ends += done.sum()
    assert ends > 10


def test_it_continues_bit_for_bit_and_keeps_small_actions():
    source = resolve("CartPole-v1", vector=True)
    group, other = source.make_group(0, 0, 3), source.make_group(0, 0, 3)
    actions = np.random.default_rng(0).integers(0, 2, (400, 3)).astype(np.int32)
    for action in actions[:300]:
        group.step(action)
    for action in actions[:7]:
        other.step(action)  # a history of its own, which must not matter
    saved = group.save()
    assert saved["journal"]["actions"]["0"].dtype == np.uint8
    other.load(saved)
    assert other.lost == 0
    for action in actions[300:]:
        jax.tree.map(np.testing.assert_array_equal, group.current(), other.current())
        group.step(action), other.step(action)
    jax.tree.map(np.testing.assert_array_equal, group.save(), other.save())


def test_where_it_comes_out_different_all_rows_begin_anew():
    source = resolve("CartPole-v1", vector=True)
    group, other = source.make_group(0, 0, 3), source.make_group(0, 0, 3)
    group.step(np.zeros(3, int))
    saved = group.save()
    saved["hash"] = saved["hash"] + 1
    with pytest.warns(RuntimeWarning, match=r"CartPole-v1 \(group 0, all 3 rows"):
        other.load(saved)
    assert other.lost == 3 and other.current().first.all()
    third = source.make_group(0, 0, 3)
    third.load(other.save())
    jax.tree.map(np.testing.assert_array_equal, third.current(), other.current())


class Shaky(VectorEnv):
    """A vector environment that shows NaN, raises, or resets in another way; `info` holds numbers."""

    def __init__(self, num_envs, how="", mode=AutoresetMode.NEXT_STEP, max_episode_steps=None):
        self.num_envs, self.how, self.t = num_envs, how, 0
        self.metadata = {"autoreset_mode": mode}
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.single_observation_space = gymnasium.spaces.Box(
            -9, 9, (1,), np.int32 if how == "half" else np.float32
        )
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 1), self.single_observation_space.dtype), {}

    def step(self, action):
        self.t += 1
        if self.how == "raise":
            raise OSError("gone")
        value = {"nan": np.nan, "half": 0.5}.get(self.how, self.t)
        shown = np.full((self.num_envs, 1), value, np.float32)
        no = np.zeros(self.num_envs, bool)
        some = np.arange(self.num_envs) == 0
        info = {
            "speed": np.where(some, 4.0, 0.0),
            "_speed": some,
            "name": "x",
            "all": np.arange(self.num_envs),
        }
        if self.how == "row":
            shown = shown[0]
        reward = np.ones((self.num_envs, 1) if self.how == "column" else self.num_envs)
        return shown, reward, False if self.how == "flag" else no, no, info


@pytest.fixture
def shaky():
    gymnasium.register("toys/Shaky-v0", entry_point=Toy, vector_entry_point=Shaky)
    yield "toys/Shaky-v0"
    del gymnasium.registry["toys/Shaky-v0"]


def test_numbers_in_info_are_means_over_the_rows_that_have_them(shaky):
    group = resolve(shaky, vector=True).make_group(0, 0, 3)
    group.step([0, 0, 0]), group.step([0, 0, 0])
    assert group.info() == {"speed": 4.0, "all": 1.0} and group.info() == {}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "raised OSError: gone in step"),
        ("nan", "not finite"),
        ("half", "showed what its observation space cannot hold"),
        ("row", r"showed an observation of shape \(1,\), not \(3, 1\)"),
        ("column", r"showed a reward of shape \(3, 1\), not \(3,\)"),
        ("flag", r"showed terminated of shape \(\), not \(3,\)"),
    ],
)
def test_trouble_is_named(shaky, how, said):
    with pytest.raises(EnvError, match=rf"toys/Shaky-v0 \(group 2, all 3 rows, step 1\).*{said}"):
        resolve(shaky, vector=True, env_kwargs={"how": how}).make_group(0, 2, 3).step([0, 0, 0])


def test_what_does_not_fit_is_told(shaky):
    with pytest.raises(ShoalError, match="Acrobot-v1 has no vector version"):
        resolve("Acrobot-v1", vector=True)
    with pytest.raises(ShoalError, match="Toy has no vector version"):
        resolve(Toy, vector=True)
    with pytest.raises(ShoalError, match="wrappers are for single environments"):
        resolve("CartPole-v1", vector=True, wrappers=[Doubled])
    with pytest.raises(ShoalError, match=r"resets with AutoresetMode.SAME_STEP"):
        resolve(shaky, vector=True, env_kwargs={"mode": AutoresetMode.SAME_STEP})
