"""What a policy takes for an observation, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest

from shoal import PPO, Policy, ShoalError, spaces
from shoal.keys import key_for
from shoal.policy import to_observation
from shoal.types import EnvSpec

TWO = spaces.Discrete(2)
BOX = EnvSpec(id="box", observation=spaces.Box((2,)), action=TWO)
IMAGE = EnvSpec(id="image", observation=spaces.Box((2, 2), 0, 255, "uint8"), action=TWO)
COUNT = EnvSpec(id="count", observation=spaces.Discrete(4, start=1), action=TWO)
PAIR = EnvSpec(id="pair", observation=spaces.Tuple((TWO, TWO)), action=TWO)
NAMED_SPACE = spaces.Dict.of({"a": spaces.Box((2,)), "b": spaces.Discrete(3)})
NAMED = EnvSpec(id="named", observation=NAMED_SPACE, action=TWO)
FLAGS = EnvSpec(id="flags", observation=spaces.MultiBinary((3,)), action=TWO)
COUNTS = EnvSpec(id="counts", observation=spaces.MultiDiscrete((2, 3), (1, 0)), action=TWO)
SWITCHES = EnvSpec(id="switches", observation=spaces.Box((2,)), action=spaces.MultiBinary((3,)), masked=True)
LEVERS = EnvSpec(id="levers", observation=spaces.Box((2,)), action=spaces.MultiDiscrete((2, 3)), masked=True)
MASKED = EnvSpec(id="masked", observation=spaces.Box((2,)), action=TWO, masked=True)


@pytest.mark.parametrize(
    ("spec", "obs", "mask", "seen"),
    [
        (BOX, [1, 2], None, np.float32([1, 2])),
        (IMAGE, np.full((2, 2), 255, np.int64), None, np.full((2, 2), 255, np.uint8)),
        (COUNT, np.int64(4), None, np.int32(4)),
        (FLAGS, [0, 1, 1], None, np.int8([0, 1, 1])),
        (COUNTS, [2, 2], None, np.int32([2, 2])),
        (MASKED, [0.0, 0.0], [1, 0], np.float32([0, 0])),
    ],
)
def test_what_is_right(spec: EnvSpec, obs: Any, mask: Any, seen: Any) -> None:
    shown = to_observation(spec, obs, mask, ())
    np.testing.assert_array_equal(shown.policy, seen)
    assert shown.policy.dtype == seen.dtype
    assert (shown.mask is None) == (mask is None)


@pytest.mark.parametrize(
    ("spec", "obs", "mask", "line"),
    [
        (BOX, [1, 2, 3], None, "an observation of box has shape (2,), got (3,)"),
        (BOX, [0.0, np.nan], None, "an observation of box holds nan"),
        (BOX, [0.0, -np.inf], None, "an observation of box holds -inf"),
        (BOX, [0.0, 1e300], None, "an observation of box holds inf"),
        (BOX, [[0.0], [0.0, 1.0]], None, "an observation of box is an array, or lists of one shape"),
        (BOX, ["a", "b"], None, "an observation of box is of numbers, got <U1"),
        (
            BOX,
            (np.zeros(2), {}),
            None,
            "an observation of box is no tuple: take the first of what reset gives",
        ),
        (BOX, [0.0, 0.0], [1, 1], "box has no action masks"),
        (IMAGE, np.full((2, 2), 0.7), None, "of whole numbers (uint8) here, got float64"),
        (IMAGE, np.full((2, 2), 256), None, "an observation of image is 256, which is not in"),
        (COUNT, 5, None, "an observation of count is 5, which is not in Discrete(n=4, start=1)"),
        (COUNT, 0, None, "an observation of count is 0"),
        (COUNT, 2.9, None, "of whole numbers"),
        (PAIR, (0,), None, "an observation of pair has a tuple of 2 parts here"),
        (FLAGS, [0, 1, 2], None, "an observation of flags is 2, which is not in MultiBinary(shape=(3,))"),
        (COUNTS, [1, 3], None, "an observation of counts is 3, which is not in MultiDiscrete(nvec=(2, 3)"),
        (COUNTS, [0, 0], None, "an observation of counts is 0"),
        (MASKED, [0.0, 0.0], None, "masked says which actions are allowed"),
        (MASKED, {"obs": [0.0, 0.0]}, None, "or as the observation's key 'action_mask'"),
        (MASKED, [0.0, 0.0], [1, 0, 1], "an action mask here has shape (2,), got (3,)"),
        (MASKED, [0.0, 0.0], [1, 2], "an action mask here is of (0, 1), got 2"),
        (SWITCHES, [0.0, 0.0], [0, 2, 3], "an action mask here is of (0, 1, 2), got 3"),
        (LEVERS, [0.0, 0.0], ([1, 1, 1], [1, 1]), "an action mask is an array, or lists of one shape"),
    ],
)
def test_what_is_wrong_is_one_line(spec: EnvSpec, obs: Any, mask: Any, line: str) -> None:
    with pytest.raises(ShoalError, match=re.escape(line)) as caught:
        to_observation(spec, obs, mask, ())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "obs", "size"),
    [
        (BOX, [[1, 2], [3, 4], [5, 6]], 3),
        (BOX, np.zeros((1, 2)), 1),
        (PAIR, (np.zeros(4, int), np.ones(4, int)), 4),
        (NAMED, {"b": [0, 1, 2], "a": [[0.0, 0.0]] * 3}, 3),
    ],
)
def test_a_batch_says_how_many(spec: EnvSpec, obs: Any, size: int) -> None:
    shown = to_observation(spec, obs, None, None).policy
    assert {len(leaf) for leaf in jax.tree.leaves(shown)} == {size}


@pytest.mark.parametrize(
    ("spec", "obs", "line"),
    [
        (BOX, np.zeros((0, 2)), "a batch of observations of box has one or more of Box"),
        (BOX, 1.0, "a batch of observations of box has one or more of Box"),
        (BOX, [1.0, 2.0], "an observation of box has shape (2, 2), got (2,)"),
        (NAMED, {"b": [0]}, "a batch of observations of named needs 'a'"),
    ],
)
def test_what_is_no_batch_is_one_line(spec: EnvSpec, obs: Any, line: str) -> None:
    with pytest.raises(ShoalError, match=re.escape(line)):
        to_observation(spec, obs, None, None)


@pytest.mark.parametrize(
    ("spec", "mask", "flat"),
    [
        (MASKED, [[1, 0], [1, 1]], [[1, 0], [1, 1]]),
        (SWITCHES, [[0, 1, 2], [2, 2, 2]], [[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
        (LEVERS, ([[1, 0], [0, 1]], [[1, 1, 0], [0, 0, 1]]), [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]),
        (LEVERS, [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]),
    ],
)
def test_masks_of_a_batch(spec: EnvSpec, mask: Any, flat: Any) -> None:
    seen = to_observation(spec, np.zeros((2, 2)), mask, None).mask
    np.testing.assert_array_equal(seen, np.asarray(flat, bool))


@pytest.mark.parametrize("mask", [[1, 0, 1, 1, 0], [[1, 0]], [[1, 0, 1], [1, 0, 1]], [[1, 0]] * 4])
def test_masks_for_another_batch_are_one_line(mask: Any) -> None:
    with pytest.raises(ShoalError, match=re.escape("an action mask here has shape (3, 2), got")):
        to_observation(MASKED, np.zeros((3, 2)), mask, None)


def remembering() -> Policy:
    agent = PPO(hidden=(4,), memory=3).bind(BOX)
    return Policy(agent, agent.policy(agent.init(key_for(0, "init"))), BOX, {})


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"memory": 3}, "memory is what compute_actions gave before, here for 2 observations"),
        ({"memory": ()}, "memory is what compute_actions gave before"),
        ({"first": [True]}, "first has a flag for each of 2 observations, got shape (1,)"),
    ],
)
def test_what_a_batch_goes_on_from_must_fit(how: dict[str, Any], line: str) -> None:
    with pytest.raises(ShoalError, match=re.escape(line)):
        remembering().compute_actions(np.zeros((2, 2)), **how)


def test_memory_goes_on_with_as_many_rows() -> None:
    policy = remembering()
    _, memory = policy.compute_actions(np.zeros((2, 2)))
    policy.compute_actions(np.zeros((2, 2)), memory=memory)
    with pytest.raises(ShoalError, match="here for 3 observations"):
        policy.compute_actions(np.zeros((3, 2)), memory=memory)
