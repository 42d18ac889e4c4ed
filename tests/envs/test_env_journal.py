"""Environments rebuilt from what was done to them, bit for bit."""

import pickle
import subprocess
import sys

import gymnasium
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_envs import MaskInObservation, NoReward, Remembers, Restless, Toy

from shoal import spaces
from shoal.envs import resolve
from shoal.envs.journal import Journal, probe
from shoal.errors import ShoalError

TAXI = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))
NAMES = (
    "CartPole-v1",
    "Acrobot-v1",
    "LunarLander-v3",
    "HalfCheetah-v5",
    "BipedalWalker-v3",
    "FrozenLake-v1",
    "Pendulum-v1",
    TAXI,
)
MODES = {"BipedalWalker-v3": "fresh"}


def act(source, rng, size):
    space = source.spec.action
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, size).astype(np.int32)
    low, high = space.bounds()
    return rng.uniform(low, high, (size, *space.shape)).astype(np.float32)


def run(group, source, steps, seed=0):
    """The leaves of every row, copied."""
    rng = np.random.default_rng(seed)
    return [jax.tree.map(np.copy, group.step(act(source, rng, group.size))) for _ in range(steps)]


def same(one, other):
    a, b = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(a) == len(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_group_saved_in_mid_episode_continues_bit_for_bit(name):
    source = resolve(name, journal=MODES.get(name, "journal"), time_limit=40)
    group = source.make_group(3, 2, 3)
    run(group, source, 57)  # beyond the first time limit
    saved = group.save()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(saved))
    dirty = source.make_group(3, 2, 3)
    run(dirty, source, 21, seed=9)
    dirty.load(saved)
    assert dirty.lost == 0 and same(dirty.current(), group.current())
    assert same(run(group, source, 50, seed=1), run(dirty, source, 50, seed=1))
    assert same(group.save(), dirty.save())


def test_groups_continue_in_a_new_process(tmp_path):
    names = ("LunarLander-v3", "HalfCheetah-v5", "BipedalWalker-v3", TAXI)
    saved, expected = {}, {}
    for name in names:
        source = resolve(name, journal=MODES.get(name, "journal"))
        group = source.make_group(0, 0, 2)
        run(group, source, 70)
        saved[name] = group.save()
        expected[name] = [jax.tree.leaves(row) for row in run(group, source, 20, seed=1)]
    (tmp_path / "saved").write_bytes(pickle.dumps((names, saved, expected)))
    script = (
        "import pickle, pathlib, sys, jax; from shoal.envs import resolve; from test_env_journal import *\n"
        "names, saved, expected = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "for name in names:\n"
        "    source = resolve(name, journal=MODES.get(name, 'journal'))\n"
        "    group = source.make_group(0, 0, 2); group.load(saved[name]); assert group.lost == 0, name\n"
        "    rows = [jax.tree.leaves(row) for row in run(group, source, 20, seed=1)]\n"
        "    assert same(rows, expected[name]), name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "saved")],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_first_and_the_last_row_of_an_episode_can_be_saved():
    source = resolve(Toy, journal="journal")
    for steps in range(9):  # episodes of 3 steps and a reset
        group = source.make_group(0, 0, 2)
        group.current()
        for _ in range(steps):
            group.step(np.zeros(2, int))
        other = source.make_group(0, 0, 2)
        other.load(group.save())
        for _ in range(5):
            assert same(other.current(), group.current())
            group.step(np.zeros(2, int)), other.step(np.zeros(2, int))


def test_masks_are_rebuilt():
    source = resolve(MaskInObservation, journal="journal")
    group, other = (source.make_group(0, 0, 2) for _ in range(2))
    group.step(np.array([1, 2]))
    other.load(group.save())
    assert same(other.current(), group.current())


def test_an_environment_that_comes_out_different_is_named_restarted_and_counted():
    source = resolve("CartPole-v1", journal="journal")
    group = source.make_group(0, 5, 3)
    run(group, source, 30)
    saved = group.save()
    saved["hash"][1] += 1
    other = source.make_group(0, 5, 3)
    with pytest.warns(RuntimeWarning, match=r"CartPole-v1 \(group 5, environment 1, .*differs.*new episode"):
        other.load(saved)
    assert other.lost == 1
    row, whole = other.current(), group.current()
    assert row.first.tolist() == [whole.first[0], True, whole.first[2]] and row.reward[1] == 0
    assert (row.obs.policy[[0, 2]] == whole.obs.policy[[0, 2]]).all()
    again = other.save()
    assert again["episode"][1] == saved["episode"][1] + 1 and again["lost"] == 1 and again["age"][1] == 0
    third = source.make_group(0, 5, 3)
    third.load(again)
    assert third.lost == 1 and same(run(other, source, 30), run(third, source, 30))


@pytest.mark.filterwarnings("ignore:.*does not repeat itself")
def test_an_environment_that_does_not_repeat_itself_restarts():
    source = resolve(Restless)
    assert source.journal == "none"
    group, other = (source.make_group(0, 0, 2) for _ in range(2))
    group.step([0, 0])
    with pytest.warns(RuntimeWarning, match="does not repeat itself"):
        other.load(group.save())
    assert other.lost == 2 and other.current().first.all()


def test_resolve_warns_of_an_environment_that_does_not_repeat_itself():
    with pytest.warns(RuntimeWarning, match="Restless does not repeat itself"):
        resolve(Restless)


def test_a_fresh_journal_makes_a_new_instance_for_each_episode():
    source = resolve(Remembers)
    assert source.journal == "fresh" and source.reference["journal"] == "fresh"
    group = source.make_group(0, 0, 1)
    lives = {group.step([0]).obs.policy[0, 1] for _ in range(100)}
    assert lives == {1.0}


def test_what_belongs_to_another_group_is_refused():
    cartpole, lander = (resolve(name, journal="journal") for name in ("CartPole-v1", "HalfCheetah-v5"))
    saved = cartpole.make_group(0, 0, 2).save()
    with pytest.raises(ShoalError, match="2 environments, this one has 3"):
        cartpole.make_group(0, 0, 3).load(saved)
    with pytest.raises(ShoalError, match="another environment"):
        lander.make_group(0, 0, 2).load(saved)


@pytest.mark.parametrize(
    ("name", "mode"), [("CartPole-v1", "journal"), ("BipedalWalker-v3", "fresh"), (TAXI, "journal")]
)
def test_the_probe_finds_what_an_environment_needs(name, mode):
    assert probe(lambda: gymnasium.make(name)) == mode


def test_a_nan_is_no_sign_of_randomness():
    assert probe(NoReward) == "journal"


def test_the_probe_is_bounded_in_steps():
    made = []

    def make():
        made.append(Toy(length=10**9))
        return made[-1]

    assert probe(make) == "journal"
    assert sum(len(env.sent) for env in made) < 1100
    made.clear()
    assert probe(make, heavy=True) == "journal"
    assert sum(len(env.sent) for env in made) < 80


@given(data=st.data(), size=st.integers(1, 3))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_log_keeps_what_each_episode_needs(data, size):
    journal = Journal(size, [((), np.dtype(np.uint8)), ((2,), np.dtype(np.float32))], capacity=4)
    model = [[] for _ in range(size)]
    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size))
        journal.record([np.array(action), np.array([[a, -a] for a in action], np.float32)])
        for i, a in enumerate(action):
            model[i].append(a)
        for i in data.draw(st.sets(st.integers(0, size - 1))):
            journal.restart(i)
            model[i].clear()
        if data.draw(st.booleans()):
            fresh = Journal(size, [((), np.dtype(np.uint8)), ((2,), np.dtype(np.float32))])
            fresh.load(journal.save())
            journal = fresh
        for i in range(size):
            numbers, pairs = journal.actions(i)
            assert numbers.tolist() == model[i] and pairs.tolist() == [[a, -a] for a in model[i]]
