"""GridWorld: its three faces agree with one another."""

import gymnasium
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal.envs.gymnasium  # noqa: F401  (registers shoal/GridWorld-v0)
from shoal.envs import GridWorld, resolve
from shoal.errors import ShoalError
from shoal.keys import fold, key_for


@st.composite
def worlds(draw, slip=None):
    size = draw(st.integers(2, 5))
    cells = size * size
    start = draw(st.integers(0, cells - 2))
    walls = draw(st.sets(st.integers(0, cells - 2).filter(lambda c: c != start), max_size=cells // 2))
    limit = draw(st.none() | st.integers(1, 12))
    cost = draw(st.sampled_from([0.0, 0.25]))
    return GridWorld(size, start, cost, tuple(sorted(walls)), 0.0 if slip is None else draw(slip), limit)


def made(world, **more):
    fields = {"size": world.size, "start": world.start, "step_cost": world.step_cost, "walls": world.walls}
    return gymnasium.make("shoal/GridWorld-v0", slip=world.slip, max_steps=world.max_steps, **fields, **more)


def expected(world, cell, action):
    """The rules once more, in plain Python."""
    row, column = divmod(cell, world.size)
    row += (-1, 1, 0, 0)[action]
    column += (0, 0, -1, 1)[action]
    inside = 0 <= row < world.size and 0 <= column < world.size
    target = row * world.size + column
    return target if inside and target not in world.walls else cell


@given(world=worlds())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_move_is_what_the_rules_say(world):
    mdp = world.mdp()
    for cell in set(range(world.size**2 - 1)) - set(world.walls):
        for action in range(4):
            target = expected(world, cell, action)
            assert world.next_cell[cell, action] == target
            assert mdp.transition[cell, action, target] == 1.0
            assert mdp.reward[cell, action] == (target == world.goal) - world.step_cost


@given(world=worlds(), actions=st.lists(st.integers(0, 3), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_without_slipping_the_faces_agree_step_for_step(world, actions):
    env, mdp = made(world), world.mdp()
    key = key_for(0, "any")
    state, obs = world.reset(key)
    cell, _ = env.reset(seed=0)
    assert cell == obs.policy == world.start and mdp.start[cell] == 1
    for action in actions:
        before = cell
        state, obs, reward, terminated, truncated = world.step(state, action, key)
        cell, host_reward, host_terminated, host_truncated, _ = env.step(action)
        assert (cell, host_terminated, host_truncated) == (int(obs.policy), bool(terminated), bool(truncated))
        assert np.float32(host_reward) == reward == np.float32(mdp.outcome[before, action, cell])
        assert mdp.terminal[cell] == host_terminated and mdp.transition[before, action, cell] == 1
        if host_terminated or host_truncated:
            cell, _ = env.reset()
            state, _ = world.reset(key)


@given(world=worlds(slip=st.floats(0, 1)))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_mdp_is_one(world):
    mdp = world.mdp()
    np.testing.assert_allclose(mdp.transition.sum(-1), 1, atol=1e-12)
    assert (mdp.transition >= -1e-15).all() and mdp.start.sum() == 1
    assert set(np.flatnonzero(mdp.terminal)) == {world.goal, *world.walls}
    np.testing.assert_allclose(mdp.reward, (mdp.transition * mdp.outcome).sum(-1))
    assert (mdp.transition[mdp.terminal][..., mdp.terminal].sum(-1) == 1).all() and not mdp.reward[
        mdp.terminal
    ].any()


def test_slipping_has_the_distribution_of_the_mdp():
    world, n = GridWorld(3, start=4, slip=0.3, walls=(5,)), 20_000
    chance = world.mdp().transition[4]
    state, _ = world.reset(key_for(0, "x"))
    keys = fold(key_for(0, "slip"), np.arange(n))
    step = jax.jit(jax.vmap(world.step, in_axes=(None, None, 0)))
    env = made(world)
    env.reset(seed=0)
    for action in range(4):
        cells = np.asarray(step(state, action, keys)[1].policy)
        # Three standard deviations of a share of n are 0.0106 at most.
        np.testing.assert_allclose(np.bincount(cells, minlength=9) / n, chance[action], atol=0.011)
        cells = np.empty(n // 4, int)
        for k in range(len(cells)):
            env.unwrapped._cell = 4
            cells[k] = env.step(action)[0]
        np.testing.assert_allclose(np.bincount(cells, minlength=9) / len(cells), chance[action], atol=0.022)


def test_it_renders():
    env = made(GridWorld(2, walls=(1,)), render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "A#\n.G\n"
    picture = made(GridWorld(2), render_mode="rgb_array")
    picture.reset(seed=0)
    assert picture.render().shape == (32, 32, 3) and picture.render().dtype == np.uint8


def test_the_registered_one_carries_its_jax_face():
    source = resolve("shoal/GridWorld-v0", env_kwargs={"size": 3, "walls": [1]}, time_limit=9)
    assert source.jax_env == GridWorld(3, walls=(1,), max_steps=9) and source.spec.max_episode_steps == 9
    assert source.jax_env.spec.observation == source.spec.observation
    group, other = source.make_group(0, 0, 2), resolve(source.jax_env).make_group(0, 0, 2)
    rng = np.random.default_rng(0)
    for action in rng.integers(0, 4, (60, 2)).astype(np.int32):
        jax.tree.map(np.testing.assert_array_equal, group.current(), other.current())
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), group.current(), other.current())
        group.step(action), other.step(action)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 1}, "size"),
        ({"start": 15}, "start"),
        ({"walls": (0,)}, "walls"),
        ({"walls": (15,)}, "walls"),
        ({"slip": 1.5}, "slip"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_impossible_worlds_are_refused(fields, said):
    with pytest.raises(ShoalError, match=f"GridWorld: {said}"):
        GridWorld(**fields)
