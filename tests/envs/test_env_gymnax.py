"""gymnax's environments, with terminations and truncations told apart."""

import numpy as np
import pytest

from shoal import spaces
from shoal.envs import resolve
from shoal.errors import ShoalError
from shoal.keys import fold, key_for

pytest.importorskip("gymnax")


def rows(name, steps, size=4, **how):
    source = resolve(f"gymnax:{name}", **how)
    group = source.make_group(0, 0, size)
    first, terminated, rng = [], [], np.random.default_rng(0)
    for _ in range(steps):
        step = group.step(rng.integers(0, source.spec.action.n, size).astype(np.int32))
        first.append(step.first), terminated.append(step.terminated)
    return source, np.array(first), np.array(terminated)


def test_a_fall_terminates_and_the_limit_truncates():
    _, first, terminated = rows("CartPole-v1", 40, time_limit=15)
    ends = first[1:]
    assert ends.any()
    lengths = [np.diff(np.flatnonzero(np.r_[True, column])) for column in ends.T]
    assert max(length.max() for length in lengths if len(length)) <= 16  # 15 steps and the reset
    # Some episodes fell, others were cut: a reset row follows both.
    assert terminated.any() and (ends & ~terminated[:-1]).any()
    assert (first[1:][terminated[:-1]]).all()


def test_minatar_marks_terminal_states_itself():
    """There `state.terminal` is set from the `done` that includes the limit: the flag must not leak."""
    _, first, terminated = rows("Breakout-MinAtar", 40, time_limit=7)
    lost, cut = terminated[:-1], first[1:] & ~terminated[:-1]
    assert lost.any() and cut.any() and (first[1:][lost]).all()
    for column, ends in zip(first.T, cut.T, strict=True):
        starts = np.flatnonzero(np.r_[True, column])  # every cut is 7 steps after a reset, and its own row
        assert set(np.diff(starts)[np.isin(starts[1:] - 2, np.flatnonzero(ends))]) <= {8}


def test_it_is_gymnaxs_own_step():
    import gymnax
    import jax

    source = resolve("gymnax:Acrobot-v1")
    env, params = gymnax.make("Acrobot-v1")
    key = key_for(0, "k")
    typed = jax.random.wrap_key_data(key)
    state, obs = source.jax_env.reset(key)
    theirs, their_state = env.reset_env(typed, params)
    np.testing.assert_array_equal(obs.policy, theirs)
    other = fold(key, 1)
    _, obs, reward, terminated, truncated = source.jax_env.step(state, 1, other)
    theirs, _, their_reward, done, _ = env.step_env(jax.random.wrap_key_data(other), their_state, 1, params)
    np.testing.assert_array_equal(obs.policy, theirs)
    assert reward == their_reward and bool(terminated | truncated) == bool(done)


def test_spaces_settings_and_mistakes():
    source = resolve("gymnax:CartPole-v1", env_kwargs={"gravity": 5.0})
    assert source.jax_env.params.gravity == 5.0 and source.spec.max_episode_steps == 500
    assert (
        source.spec.observation.bounds()[1][1] == np.inf and source.reference["env"] == "gymnax:CartPole-v1"
    )
    assert resolve("gymnax:Pendulum-v1").spec.action == spaces.Box((1,), -2.0, 2.0)
    assert resolve("gymnax:FourRooms-misc").spec.observation.dtype == "int32"
    with pytest.raises(ShoalError, match="did you mean 'gymnax:CartPole-v1'"):
        resolve("gymnax:Cartpole-v1")
    with pytest.raises(ShoalError, match=r"does not take these env_kwargs \(gravty\)"):
        resolve("gymnax:CartPole-v1", env_kwargs={"gravty": 1})
