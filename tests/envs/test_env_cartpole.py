"""The JAX cart-pole against Gymnasium's, step for step."""

import gymnasium
import jax
import numpy as np

from shoal.envs import CartPole, resolve
from shoal.keys import fold, key_for


def test_it_moves_as_gymnasiums_does():
    world = CartPole(max_steps=None)
    host = gymnasium.make("CartPole-v1").unwrapped
    reset, step, rng = jax.jit(world.reset), jax.jit(world.step), np.random.default_rng(0)
    ends = 0
    for episode in range(6):
        state, obs = reset(key_for(episode, "reset"))
        host.reset(seed=0)
        host.state = np.asarray(obs.policy, np.float64)
        for _ in range(200):
            # Mostly the action that balances, so that both ends of an episode are far apart.
            balance = float(obs.policy[2] + obs.policy[3]) > 0
            action = int(balance) if rng.random() < 0.5 + 0.08 * episode else int(rng.integers(2))
            state, obs, reward, terminated, truncated = step(state, action, key_for(0, "unused"))
            shown, host_reward, host_terminated, _, _ = host.step(action)
            np.testing.assert_allclose(obs.policy, shown, atol=1e-5)
            assert reward == host_reward and bool(terminated) == host_terminated and not truncated
            if host_terminated:
                ends += 1
                break
            # Compare single steps: rounding must not add up.
            host.state = np.asarray(obs.policy, np.float64)
    assert ends >= 2


def test_it_begins_as_gymnasiums_does():
    keys = fold(key_for(0, "many"), np.arange(2000))
    starts = np.asarray(jax.jit(jax.vmap(CartPole().reset))(keys)[1].policy)
    assert (np.abs(starts) <= 0.05).all()
    np.testing.assert_allclose(starts.mean(0), 0, atol=0.003)
    np.testing.assert_allclose(starts.std(0), 0.1 / np.sqrt(12), rtol=0.05)


def test_its_time_limit_and_spaces_are_gymnasiums():
    ours, theirs = resolve("jax:CartPole-v1").spec, resolve("CartPole-v1", journal="journal").spec
    assert ours.action == theirs.action and ours.max_episode_steps == theirs.max_episode_steps == 500
    np.testing.assert_allclose(ours.observation.bounds(), theirs.observation.bounds())
    world = CartPole(max_steps=2)
    state, _ = jax.jit(world.reset)(key_for(0, "reset"))
    cut = []
    for _ in range(2):
        state, _, _, terminated, truncated = world.step(state, 1, key_for(0, "unused"))
        cut.append((bool(terminated), bool(truncated)))
    assert cut == [(False, False), (False, True)]
    assert resolve("jax:CartPole-v1", time_limit=7).jax_env == CartPole(7)
