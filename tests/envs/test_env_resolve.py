"""What a user may name, and what is said where it does not fit."""

import json
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gs
from toy_envs import Doubled, Gives, Outer, Spaceless, Toy, Unseeded, long_toy

from shoal.envs import CartPole, GridWorld, resolve
from shoal.envs.gymnasium import GymnasiumGroup
from shoal.envs.jax import JaxGroup
from shoal.errors import ShoalError


def test_the_package_imports_neither_gymnasium_nor_jax():
    code = "import sys, shoal.envs; assert not {'jax', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("env", "how", "id", "kind"),
    [
        ("CartPole-v1", {}, "CartPole-v1", GymnasiumGroup),
        ("toy_envs:Toy", {}, "Toy", GymnasiumGroup),
        ("gymnasium.envs.classic_control:CartPole-v1", {}, "CartPole-v1", GymnasiumGroup),
        (Toy, {"env_kwargs": {"length": 4}}, "Toy", GymnasiumGroup),
        (Outer.Inner, {}, "Inner", GymnasiumGroup),
        (long_toy, {"wrappers": [Doubled, "toy_envs:Doubled"]}, "long_toy", GymnasiumGroup),
        ("jax:CartPole-v1", {"time_limit": 9}, "jax:CartPole-v1", JaxGroup),
        ("jax:GridWorld", {"env_kwargs": {"size": 3}}, "jax:GridWorld", JaxGroup),
        (GridWorld(3, walls=(1,)), {}, "jax:GridWorld", JaxGroup),
        (CartPole, {"env_kwargs": {"max_steps": 3}}, "jax:CartPole-v1", JaxGroup),
        ("shoal.envs.gridworld:GridWorld", {"time_limit": 5}, "jax:GridWorld", JaxGroup),
    ],
)
def test_what_is_named_is_found_and_can_be_written_down(env, how, id, kind):
    source = resolve(env, **how)
    assert source.spec.id == id
    assert (source.jax_env is not None) == (kind is JaxGroup)
    again = resolve(**json.loads(json.dumps(source.reference)))
    assert (again.spec, again.journal, again.reference) == (source.spec, source.journal, source.reference)
    for made in (source, again, pickle.loads(pickle.dumps(source))):
        group = made.make_group(0, 0, 2)
        assert isinstance(group, kind) and group.size == 2
        shown = group.current().obs.policy
        np.testing.assert_array_equal(shown, source.make_group(0, 0, 2).current().obs.policy)
        group.close()


def test_shoals_own_are_written_down_by_their_ids():
    assert resolve(GridWorld(5, slip=0.1)).reference["env"] == "jax:GridWorld"
    assert resolve(GridWorld(5, slip=0.1)).reference["env_kwargs"]["slip"] == 0.1


def test_tuples_stay_tuples_where_a_dataclass_is_written_down():
    grid = GridWorld(3, walls=(1, 5))
    reference = json.loads(json.dumps(resolve(grid).reference))
    assert resolve(**reference).jax_env == grid and hash(resolve(**reference).jax_env) == hash(grid)
    reference["env"] = "shoal.envs.gridworld:GridWorld"  # as one of the user's would be named
    assert resolve(**reference).jax_env == grid


def test_what_has_no_importable_name_has_no_reference():
    assert resolve(lambda: Toy(), journal="journal").reference is None
    assert resolve(Toy, wrappers=[lambda env: env], journal="journal").reference is None
    assert (
        resolve(Toy, env_kwargs={"observation": Toy().observation_space}, journal="journal").reference is None
    )


def test_a_registered_specification_needs_no_registry_elsewhere():
    gymnasium.register("toys/Short-v0", entry_point=Toy, kwargs={"length": 2})
    try:
        source = resolve("toys/Short-v0", journal="journal")
        assert source.reference["env"] == "toys/Short-v0"
    finally:
        del gymnasium.registry["toys/Short-v0"]
    assert pickle.loads(pickle.dumps(source)).make_group(0, 0, 1).step([0]).reward == 1.0


@pytest.mark.parametrize(
    ("env", "how", "said"),
    [
        ("CartPol-v1", {}, "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'"),
        ("cartpole-v1", {}, "did you mean 'CartPole-v1'"),
        ("LunarLander-v2", {}, "did you mean 'LunarLander-v3'"),
        ("jax:CartPole", {}, "did you mean 'jax:CartPole-v1'"),
        ("quite unlike", {}, "unknown environment 'quite unlike'; known are"),
        ("no_such_module:Env-v0", {}, "cannot import 'no_such_module'"),
        ("toy_envs:Missing-v0", {}, "unknown environment"),
        ("CartPole-v1", {"env_kwargs": {"gravty": 1}}, "CartPole-v1 does not take these env_kwargs .gravty."),
        ("jax:GridWorld", {"env_kwargs": {"sise": 1}}, "GridWorld does not take these env_kwargs .sise."),
        ("CartPole-v1", {"time_limit": 0}, "time_limit"),
        ("CartPole-v1", {"journal": "yes"}, "unknown journal mode 'yes'"),
        ("CartPole-v1", {"wrappers": ["toy_envs"]}, "should be written as 'module:name'"),
        ("CartPole-v1", {"wrappers": ["toy_envs:Missing"]}, "cannot import the wrapper"),
        ("CartPole-v1", {"wrappers": [3]}, "a wrapper must be"),
        ("jax:GridWorld", {"wrappers": [Doubled]}, "wrappers is for Gymnasium environments"),
        ("jax:GridWorld", {"vector": True}, "vector=True is for Gymnasium environments"),
        (GridWorld(3), {"env_kwargs": {"size": 4}}, "made already"),
        (Toy(), {}, "each environment of a group needs its own"),
        (dict, {}, "makes a dict: neither"),
        (7, {}, "env must be an id"),
        ("toy_envs:np", {}, "env must be an id, a class, a function or a JaxEnv, not module"),
        ("toy_envs:an_instance", {}, "each environment of a group needs its own"),
        (
            "toy_envs:closed_device",
            {},
            "closed_device raised OSError: cannot open the device, see above, when it was made",
        ),
        (Toy, {"env_kwargs": {"length": None, "action": 1 << 7}}, "the space int is not supported"),
        (Gives, {"env_kwargs": {"result": 3, "within": "reset"}}, "Gives: reset must give .*, not 3"),
        (Unseeded, {}, "Unseeded raised TypeError: .*'seed'.* in its first reset"),
        (Spaceless, {}, "Spaceless has no observation_space"),
        (Toy, {"env_kwargs": {"observation": gs.Dict({"a": gs.Dict({})})}}, "holds no number"),
        (Toy, {"env_kwargs": {"action": gs.Box(0, 1, (0,))}}, "holds no number"),
        ("FrozenLake-v1", {"env_kwargs": {"map_name": "9x9"}}, "FrozenLake-v1 raised KeyError: '9x9' when"),
        ("CartPole-v1", {"wrappers": [lambda env: None]}, "must give an environment, and gave None"),
        (
            "CartPole-v1",
            {"wrappers": [lambda env: env / 0]},
            "CartPole-v1 raised TypeError.* when it was made",
        ),
        ("CartPole-v1", {"wrappers": Doubled}, "wrappers must be a list"),
        ("CartPole-v1", {"wrappers": "toy_envs:Doubled"}, "wrappers must be a list"),
        ("CartPole-v1", {"env_kwargs": ["a"]}, "env_kwargs must be a mapping"),
    ],
)
def test_mistakes_are_told_in_one_line(env, how, said):
    with pytest.raises(ShoalError, match=said) as caught:
        resolve(env, **how)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_by_its_extra():
    needs = {"LunarLander-v3": "Box2D", "HalfCheetah-v5": "mujoco", "ALE/Pong-v5": "ale_py"}
    needs["gymnax:Catch-bsuite"] = "gymnax"
    code = (
        "import importlib.util, json, sys; from shoal.envs import resolve\n"
        "from shoal.errors import ShoalError\n"
        "find, needs = importlib.util.find_spec, json.loads(sys.argv[1])\n"
        "importlib.util.find_spec = lambda name, *a: None if name in needs.values() else find(name, *a)\n"
        "sys.modules.update(dict.fromkeys(needs.values()))\n"
        "for name in needs:\n"
        "    try: resolve(name)\n"
        "    except ShoalError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(needs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for line, extra in zip(lines, ("box2d", "mujoco", "atari", "jax-envs"), strict=True):
        assert f"pip install 'shoal[{extra}]'" in line
