"""What of a model lies where: rules by path, for every network that Shoal has; one line for mistakes."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import APPO, DQN, IMPALA, PPO, SAC, TD3, Cluster, Compiled, Local, Mesh, Rainbow, ShoalError
from shoal.config import executor_from_json, executor_to_json
from shoal.mesh import from_json, parsed, to_json
from shoal.recipe import Recipe
from shoal.sharding import bytes_per_device, check_rules, holdings, on_devices, placed, specs_of
from shoal.spaces import Box, Dict, Discrete
from shoal.types import EnvSpec, State

CARTPOLE = EnvSpec(id="flat", observation=Box((4,)), action=Discrete(2))
PENDULUM = EnvSpec(id="continuous", observation=Box((3,)), action=Box((2,), -1.0, 1.0))
PIXELS = Box((84, 84, 4), 0, 255, "uint8")
ATARI = EnvSpec(id="images", observation=PIXELS, action=Discrete(6))
MINATAR = EnvSpec(id="small", observation=Box((10, 10, 4), 0, 255, "uint8"), action=Discrete(6))
BOTH = EnvSpec(id="both", observation=Dict.of({"image": PIXELS, "speed": Box((3,))}), action=Discrete(6))

WIDE = {"hidden": (512, 512)}
MODELS: dict[str, tuple[Any, EnvSpec]] = {
    "ppo": (PPO(**WIDE), CARTPOLE),
    "ppo-one-layer": (PPO(hidden=(512,)), CARTPOLE),
    "ppo-three-layers": (PPO(hidden=(512, 256, 512)), CARTPOLE),
    "ppo-shared-memory": (PPO(**WIDE, memory=512, shared=True), CARTPOLE),
    "ppo-memory": (PPO(**WIDE, memory=512), CARTPOLE),
    "ppo-images": (PPO(), ATARI),
    "ppo-small-images": (PPO(), MINATAR),
    "ppo-images-and-more": (PPO(**WIDE), BOTH),
    "ppo-continuous": (PPO(**WIDE), PENDULUM),
    "impala": (IMPALA(**WIDE), CARTPOLE),
    "appo": (APPO(**WIDE), CARTPOLE),
    "dqn": (DQN(**WIDE), CARTPOLE),
    "dqn-memory": (DQN(**WIDE, memory=512), CARTPOLE),
    "dqn-dueling": (DQN(**WIDE, dueling=True), CARTPOLE),
    "rainbow-images": (Rainbow(v_max=10.0), ATARI),
    "sac": (SAC(**WIDE), PENDULUM),
    "td3": (TD3(**WIDE), PENDULUM),
}


def form_of(name: str) -> State:
    algorithm, spec = MODELS[name]
    recipe = Recipe(algorithm=algorithm, env={}, normalize=True, scale=True)
    return jax.eval_shape(recipe.agent(spec).init, np.zeros(2, np.uint32))


@pytest.mark.parametrize("name", MODELS)
def test_every_large_leaf_is_split(name: str) -> None:
    """So each device holds about its share: of the parameters, and of what follows them alike."""
    form = form_of(name)
    for mesh in (Mesh(model=2), Mesh(data=2, model=4)):
        check_rules(mesh, form)
        leaves = placed(mesh, form)
        assert [leaf.path for leaf in leaves if leaf.bytes > 16_000 and not leaf.axes] == []
        for part, (whole, each) in holdings(leaves).items():
            if whole > 100_000:
                assert each < 1.1 * whole / mesh.model, part
        assert all(leaf.bytes == leaf.per_device * mesh.parts(leaf.axes) for leaf in leaves)
        assert bytes_per_device(mesh, form) == sum(leaf.per_device for leaf in leaves)
    parameters = {
        leaf.path.removeprefix("params/"): leaf for leaf in leaves if leaf.path.startswith("params/")
    }
    follows = re.compile(r"(?:opt|extra)/(?:\w+/)*?(?:mu|nu|\w+_target)/")
    others = [(follows.sub("", leaf.path), leaf) for leaf in leaves if follows.match(leaf.path)]
    assert len(others) >= 2 * len(parameters) * (name not in ("td3",))
    for path, leaf in others:
        same = [p for own, p in parameters.items() if own == path or own.endswith(f"/{path}")]
        assert same and all(p.axes == leaf.axes for p in same), leaf.path


def test_layers_alternate() -> None:
    """Columns, then rows: what a layer of columns gives in parts, a layer of rows takes in parts."""
    specs = specs_of(Mesh(model=2), form_of("ppo"))
    torso = specs.params["policy"]["torso"]
    assert tuple(torso["layers_0"]["kernel"]) == (None, "model")
    assert tuple(torso["layers_0"]["bias"]) == ("model",)
    assert tuple(torso["layers_1"]["kernel"]) == ("model", None)
    assert tuple(torso["layers_1"]["bias"]) == ()
    assert tuple(specs.updates.low) == ()


def test_a_split_over_data_alone_keeps_the_model_whole() -> None:
    assert not any(leaf.axes for leaf in placed(Mesh(data=4), form_of("sac")))


def test_rules_of_the_user_come_first() -> None:
    kept = Mesh(model=2, rules=((r"policy/", ()), (r"value/torso/layers_0/kernel", ("data", "model"))))
    form = form_of("ppo")
    check_rules(kept, form)
    leaves = {leaf.path: leaf for leaf in placed(kept, form)}
    assert not any(leaf.axes for path, leaf in leaves.items() if "policy/" in path)
    assert leaves["params/value/torso/layers_0/kernel"].axes == (None, "model")  # data=1 splits nothing
    assert leaves["opt/mu/value/torso/layers_1/kernel"].axes == ("model", None)  # Shoal's own rule


@given(data=st.integers(1, 4), model=st.integers(1, 6), shape=st.lists(st.integers(1, 24), max_size=4))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_only_what_divides_is_split(data: int, model: int, shape: list[int]) -> None:
    axes = (None, "model", "data", None)[: len(shape)]
    mesh = Mesh(data=data, model=model, rules=((r"leaf$", axes),))
    found = mesh.axes("params/leaf", tuple(shape))
    sizes = {None: 1, "data": data, "model": model}
    for wanted, n, axis in zip(axes, shape, found or (None,) * len(shape), strict=True):
        assert axis in (None, wanted)
        assert n % sizes[axis] == 0
        assert axis == wanted or n % sizes[wanted] or sizes[wanted] == 1
    assert from_json(to_json(mesh)) == mesh


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (((r"layer_0/", ("model", None)),), "finds nothing in this model, whose largest leaf is "),
        (((r"layers_0/", (None, "model")),), "names 2 axes, and 'params/policy/torso/layers_0/bias' has 1"),
        (((r"head/kernel", (None, "model")), (r"policy/head/kernel", ("model", None))), "comes too late"),
        (((r"value/head/kernel", (None, "model")),), "divides nothing: 'params/value/head/kernel' has"),
        (((r".", ()),), "model=2 splits no parameter of this model"),
    ],
)
def test_a_rule_that_does_not_fit_is_told(rules: Any, said: str) -> None:
    with pytest.raises(ShoalError, match=re.escape(said)) as caught:
        check_rules(Mesh(model=2, rules=rules), form_of("ppo"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": 0}, "data must be a whole number of at least 1, got 0"),
        ({"model": 1.5}, "model must be a whole number"),
        ({"rules": ((r"(", ()),)}, "is no regular expression"),
        ({"rules": ((r"a", ("modle",)),)}, "names the axis 'modle': did you mean 'model'?"),
        ({"rules": ((r"a", ("model", "model")),)}, "names 'model' twice"),
        ({"rules": ((r"a", "model"),)}, "needs its axes as a tuple"),
        ({"rules": ("a",)}, "is a pair such as"),
    ],
)
def test_a_mesh_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ShoalError, match=re.escape(said)):
        Mesh(**settings)


def test_a_mesh_from_text() -> None:
    assert parsed("data=2,model=3", "--mesh") == Mesh(data=2, model=3)
    assert parsed("model=2", "--mesh") == Mesh(model=2)
    assert parsed(str(Mesh(data=4)), "--mesh") == Mesh(data=4)
    for text, said in {
        "modle=2": "expected data=N,model=M, got 'modle=2': unknown axis 'modle'; did you mean 'model'?",
        "data": "data needs a whole number of at least 1, got ''",
        "data=two": "data needs a whole number of at least 1, got 'two'",
        "data=0": "data needs a whole number of at least 1, got '0'",
        "data=2,data=2": "data is given twice",
        "": "expected data=N,model=M, got ''",
    }.items():
        with pytest.raises(ShoalError, match=re.escape(f"--learners: {said}")):
            parsed(text, "--learners")


def test_too_few_devices() -> None:
    with pytest.raises(
        ShoalError, match=r"data=2,model=4 needs 8 devices and there are 1 \(cpu\): .*8\) first"
    ):
        on_devices(Mesh(data=2, model=4), jax.devices())


@pytest.mark.parametrize(
    "on",
    [
        Local(envs=4),
        Local(envs=4, mesh=Mesh(data=2)),
        Compiled(mesh=Mesh(model=2, rules=((r"policy/", ()), (r"value/.*/kernel", (None, "model"))))),
        Cluster(learners=Mesh(data=2, model=2)),
    ],
)
def test_an_executor_with_a_mesh_as_data(on: Any) -> None:
    data = executor_to_json(on)
    assert executor_from_json(data) == executor_from_json(executor_to_json(executor_from_json(data)))
    assert getattr(executor_from_json(data), "mesh", None) == getattr(on, "mesh", None)
    assert "mesh" not in data or data["mesh"]["data"] == on.mesh.data
    assert "kernel" not in str(data) or on.mesh.rules  # Shoal's own rules are not written out
