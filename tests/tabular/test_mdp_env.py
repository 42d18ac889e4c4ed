"""Any finite MDP as an environment: it steps as the arrays say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.keys import fold, key_for
from shoal.tabular import MDP, MDPEnv, random_mdp
from shoal.testing import check_env

FEW = settings(max_examples=10, deadline=None, derandomize=True)


def steps_from(env: MDPEnv, state: int, action: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(next state, reward, terminated) of n independent steps."""
    begin, _ = env.reset(key_for(0, "begin"))
    here = begin._replace(number=jnp.int32(state))
    step = jax.jit(jax.vmap(env.step, in_axes=(None, None, 0)))
    _, obs, reward, terminated, _ = step(here, action, fold(key_for(0, "steps"), np.arange(n)))
    return np.asarray(obs.policy), np.asarray(reward), np.asarray(terminated)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_environment_from_an_mdp_is_fit_to_train_on(sparse: bool) -> None:
    report = check_env(
        MDPEnv(random_mdp(6, 3, 3, gamma=0.9, seed=1, terminals=1, sparse=sparse), max_steps=20)
    )
    assert report.journal == "state"


@given(seed=st.integers(0, 1000), sparse=st.booleans())
@FEW
def test_steps_have_the_probabilities_and_rewards_of_the_mdp(seed: int, sparse: bool) -> None:
    mdp, n = random_mdp(5, 2, 3, gamma=0.9, seed=seed, terminals=1, sparse=sparse), 4000
    chance = (mdp.rows.toarray() if sparse else mdp.rows).reshape(5, 2, 5)
    state, action = seed % 4, seed % 2
    number, reward, terminated = steps_from(MDPEnv(mdp), state, action, n)
    share = np.bincount(number, minlength=5) / n
    assert not share[chance[state, action] == 0].any()
    np.testing.assert_allclose(share, chance[state, action], atol=4 * 0.5 / np.sqrt(n))
    np.testing.assert_array_equal(reward, np.float32(mdp.reward[state, action]))
    np.testing.assert_array_equal(terminated, mdp.terminal[number])


def test_each_transition_has_its_own_reward() -> None:
    transition = np.zeros((3, 1, 3))
    transition[0, 0] = [0.25, 0.25, 0.5]
    transition[1, 0] = [1, 0, 0]
    reward = np.zeros((3, 1, 3))
    reward[0, 0] = [1.0, 2.0, -3.0]
    mdp = MDP.of(transition, reward, gamma=0.9, terminal=[2])
    assert mdp.reward[0, 0] == 0.25 + 0.5 - 1.5
    number, got, terminated = steps_from(MDPEnv(mdp), 0, 0, 200)
    np.testing.assert_array_equal(got, reward[0, 0][number])
    np.testing.assert_array_equal(terminated, number == 2)
    assert set(number) == {0, 1, 2}


def test_episodes_begin_where_the_mdp_says_and_masks_are_shown() -> None:
    allowed = np.array([[True, False], [False, True], [True, True]])
    transition = np.full((3, 2, 3), [0.5, 0.3, 0.2])
    mdp = MDP.of(transition, np.zeros(3), gamma=0.5, terminal=[2], start=[0.25, 0.75, 0], allowed=allowed)
    env = MDPEnv(mdp)
    assert env.spec.masked
    _, obs = jax.vmap(env.reset)(fold(key_for(0, "resets"), np.arange(4000)))
    share = np.bincount(np.asarray(obs.policy), minlength=3) / 4000
    np.testing.assert_allclose(share, mdp.start, atol=0.03)
    np.testing.assert_array_equal(obs.mask, allowed[np.asarray(obs.policy)])


def test_the_time_limit_truncates() -> None:
    env = MDPEnv(random_mdp(4, 2, 2, gamma=0.9, seed=0), max_steps=2)
    state, _ = env.reset(key_for(0, "a"))
    flags = []
    for k in range(2):
        state, _, _, terminated, truncated = env.step(state, 0, key_for(0, "b", k))
        flags.append((bool(terminated), bool(truncated)))
    assert flags == [(False, False), (False, True)]
    with pytest.raises(ShoalError, match="max_steps"):
        MDPEnv(env.mdp, max_steps=0)
