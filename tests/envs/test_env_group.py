"""The host group: what it shows and sends, against Gymnasium stepped by hand."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gs
from toy_envs import (
    FLOAT,
    Breaks,
    Doubled,
    Gives,
    MaskInInfo,
    MaskInObservation,
    Numbers,
    Roles,
    Shows,
    Toy,
    Writes,
    long_toy,
)

from shoal import spaces
from shoal.envs import EnvError, resolve
from shoal.errors import ShoalError
from shoal.keys import seed_for


def group_of(env, size=2, **how):
    return resolve(env, journal="journal", **how).make_group(7, 1, size)


def test_rows_are_gymnasiums_own_with_next_step_resets_and_seeds_by_name():
    size, limit = 5, 25
    group = group_of("CartPole-v1", size, time_limit=limit)
    envs = [gymnasium.make("CartPole-v1", max_episode_steps=limit) for _ in range(size)]
    row = group.current()
    episode, ended, cut = [0] * size, [False] * size, 0
    for i, env in enumerate(envs):
        assert (row.obs.policy[i] == env.reset(seed=seed_for(7, "env", 1, i, 0))[0]).all()
    assert row.first.all() and not row.reward.any() and not row.terminated.any()
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = rng.integers(0, 2, size).astype(np.int32)
        row = group.step(action)
        for i, env in enumerate(envs):
            if ended[i]:
                episode[i] += 1
                obs, _ = env.reset(seed=seed_for(7, "env", 1, i, episode[i]))
                expected = (0.0, False, True)
                ended[i] = False
            else:
                obs, reward, terminated, truncated, _ = env.step(int(action[i]))
                expected = (reward, terminated, False)
                ended[i] = terminated or truncated
                cut += truncated and not terminated
            assert (row.obs.policy[i] == obs).all()
            assert (row.reward[i], row.terminated[i], row.first[i]) == expected
    assert min(episode) > 3 and cut > 3  # both kinds of ends were met


def test_shapes_and_dtypes_are_fixed():
    step = group_of(Toy, 3).step(np.zeros(3, np.int32))
    assert step.obs.policy.dtype == np.float32 and step.obs.policy.shape == (3, 2)
    assert (step.reward.dtype, step.terminated.dtype, step.first.dtype) == (np.float32, bool, bool)
    assert step.obs.critic is None and step.obs.mask is None


@pytest.mark.parametrize(
    ("env", "how", "length"),
    [
        ("CartPole-v1", {"time_limit": 5}, 5),
        (Toy, {"env_kwargs": {"length": 100}, "time_limit": 7}, 7),
        (long_toy, {}, 50),
        (long_toy, {"time_limit": 9}, 9),
        (long_toy, {"time_limit": 80}, 80),
        (long_toy, {"time_limit": 9, "wrappers": [Doubled]}, 9),
        (Toy, {"env_kwargs": {"length": 100}, "time_limit": 6, "wrappers": ["toy_envs:Doubled"]}, 6),
    ],
)
def test_a_time_limit_truncates(env, how, length):
    group = group_of(env, 1, **how)
    group.current()
    for t in range(1, length + 1):
        step = group.step(np.array([t % 2]))
        assert not step.first[0] and not step.terminated[0]
    assert group.step(np.array([0])).first[0]


def test_wrappers_apply_in_order_around_the_environment():
    assert group_of(Toy, 1, wrappers=[Doubled, "toy_envs:Doubled"]).step([0]).reward[0] == 4.0


def sent_to(space, action, size=2):
    group = group_of(Toy, size, env_kwargs={"action": space})
    group.step(action)
    return [env.sent[-1] for env in group.envs]


def test_actions_arrive_as_their_space_says():
    discrete = sent_to(gs.Discrete(3, start=-1), np.array([-1, 1], np.int32))
    assert discrete == [-1, 1] and all(isinstance(a, np.int64) for a in discrete)
    box = sent_to(gs.Box(-1, 1, (2,), np.float32), np.full((2, 2), 0.5, np.float32))
    assert box[0].dtype == np.float32 and box[0].shape == (2,)
    space = gs.Box(-0.1, 0.1, (1,), np.float64)
    (edge, _) = sent_to(space, np.full((2, 1), 0.1, np.float32))  # float32(0.1) > 0.1
    assert edge in space
    scalar = gs.Box(-1, 1, (), np.float32)
    assert sent_to(scalar, np.array([0.25, 0.5], np.float32))[1] in scalar
    many = gs.MultiDiscrete([3, 300], start=[1, 0])
    assert all(a in many for a in sent_to(many, np.array([[1, 299], [3, 0]], np.int32)))
    binary = gs.MultiBinary(3)
    assert all(a in binary for a in sent_to(binary, np.array([[1, 0, 1], [0, 0, 0]], np.int32)))


def test_nested_actions_arrive_nested():
    space = gs.Dict({"b": gs.Tuple((gs.Discrete(2), gs.Box(-1, 1, (2,), np.float32))), "a": gs.Discrete(4)})
    action = {"a": np.array([3, 0]), "b": (np.array([0, 1]), np.full((2, 2), 0.5, np.float32))}
    sent = sent_to(space, action)
    assert all(a in space for a in sent)
    assert [a["a"] for a in sent] == [3, 0] and [a["b"][0] for a in sent] == [0, 1]


def test_an_environment_may_write_into_its_action():
    group, action = group_of(Writes, 1), np.full((1, 2), 0.5, np.float32)
    group.step(action)
    again = group_of(Writes, 1)
    again.load(group.save())
    assert (action == 0.5).all() and (again.envs[0].sent[0] == 0.5).all()


@pytest.mark.parametrize(
    ("space", "value", "dtype"),
    [
        (gs.Discrete(4, start=2), np.int64(3), np.int32),
        (gs.Box(0, 255, (2, 3), np.uint8), np.full((2, 3), 7, np.uint8), np.uint8),
        (gs.Box(-9, 9, (2,), np.int64), np.array([1, -2]), np.int32),
        (gs.Box(0, 1, (), np.float32), np.float32(0.5), np.float32),
        (gs.MultiDiscrete([2, 5]), np.array([1, 4]), np.int32),
        (gs.MultiBinary((2, 2)), np.eye(2, dtype=np.int8), np.int8),
    ],
)
def test_observations_keep_value_and_narrow_dtype(space, value, dtype):
    class Shows(Toy):
        def show(self):
            return {"deep": (value, np.zeros(2))}

    nested = gs.Dict({"deep": gs.Tuple((space, FLOAT))})
    source = resolve(Shows, env_kwargs={"observation": nested}, journal="journal")
    shown, _ = source.make_group(0, 0, 2).current().obs.policy["deep"]
    assert shown.dtype == dtype and (shown == value).all() and shown.shape == (2, *np.shape(value))
    like = spaces.zeros(source.spec.observation, (2,))["deep"][0]
    assert (like.dtype, like.shape) == (shown.dtype, shown.shape)


def test_a_mask_in_the_observation_becomes_a_role():
    source = resolve(MaskInObservation, journal="journal")
    assert source.spec.masked and source.spec.observation == spaces.Box((2,))
    group = source.make_group(0, 0, 2)
    assert (group.current().obs.mask == [False, True, True]).all()
    step = group.step(np.array([1, 1]))
    assert step.obs.mask.dtype == bool and (step.obs.mask == [True, False, True]).all()
    assert step.obs.policy.shape == (2, 2)
    several = resolve(MaskInObservation, env_kwargs={"single": False}, journal="journal")
    assert {name for name, _ in several.spec.observation.spaces} == {"observation", "extra"}
    assert set(several.make_group(0, 0, 1).current().obs.policy) == {"observation", "extra"}


@pytest.mark.parametrize(
    ("action", "mask", "flat"),
    [
        (gs.Discrete(3), np.array([0, 1, 1], np.int8), [0, 1, 1]),
        (
            gs.MultiDiscrete([2, 3]),
            (np.array([1, 0], np.int8), np.array([0, 0, 1], np.int8)),
            [1, 0, 0, 0, 1],
        ),
        (gs.MultiBinary(3), np.array([0, 1, 2], np.int8), [1, 0, 0, 1, 1, 1]),
    ],
)
def test_a_mask_in_info_is_on_every_row(action, mask, flat):
    source = resolve(MaskInInfo, env_kwargs={"action": action, "mask": mask}, journal="journal")
    assert source.spec.masked
    group = source.make_group(0, 0, 2)
    group.current()
    still = np.zeros((2, *action.shape), np.int32)
    for t in (1, 2, 3, 0, 1):  # nothing is sent after the third row, and the fourth is a reset
        shown = group.step(still).obs.mask
        assert (shown == (np.array(flat, bool) if t < 3 else True)).all()


@pytest.mark.parametrize(("until", "where"), [(0, "step 1"), (-1, "episode 0, step 0")])
def test_a_row_without_its_mask_is_refused(until, where):
    kwargs = {"action": gs.Discrete(2), "mask": np.array([0, 1], np.int8), "until": 2}
    group = group_of(MaskInInfo, 1, env_kwargs=kwargs)
    group.envs[0].until = until
    with pytest.raises(ShoalError, match=rf"{where}\).*info holds no 'action_mask', which must be on"):
        group.step(np.ones(1, int))


def test_a_mask_that_only_steps_show_is_refused():
    class Late(MaskInInfo):
        def __init__(self):
            super().__init__(gs.Discrete(2), np.ones(2, np.int8))

        def reset(self, **how):
            return super().reset(**how)[0], {}

    group = group_of(Late, 1)
    with pytest.raises(ShoalError, match="showed none in that of its first reset: it must be on every row"):
        for _ in range(2):
            group.step(np.zeros(1, int))


@pytest.mark.parametrize(
    ("action", "mask", "said"),
    [
        (gs.Discrete(3), np.array([0.0, -np.inf, 0.0]), "a mask is of 0 and 1, not -inf"),
        (gs.Discrete(3), [1, 1, 2], "a mask is of 0 and 1, not 2"),
        (gs.Discrete(3), np.ones(2), "cannot reshape"),
        (gs.MultiDiscrete([2, 1]), (np.array([1, 7]), np.ones(1)), "a mask is of 0 and 1, not 7"),
        (gs.MultiBinary(2), np.array([0, 3]), "a mask of MultiBinary actions is of 0, 1 and 2, not 3"),
    ],
)
def test_what_is_no_mask_is_refused(action, mask, said):
    with pytest.raises(ShoalError, match=f"MaskInInfo.*what reset gave cannot be taken.*{said}"):
        group_of(MaskInInfo, env_kwargs={"action": action, "mask": mask}).current()


def test_a_mask_may_be_of_floats():
    group = group_of(MaskInInfo, 1, env_kwargs={"action": gs.Discrete(3), "mask": [0.0, 1.0, 1.0]})
    assert group.current().obs.mask.tolist() == [[False, True, True]]


def test_masks_are_not_for_boxes():
    with pytest.raises(ShoalError, match="masks are for Discrete"):
        resolve(MaskInInfo, env_kwargs={"action": FLOAT, "mask": np.ones(2)})


def test_the_critic_sees_more():
    source = resolve(Roles, journal="journal")
    assert source.spec.observation == spaces.Box((2,)) and source.spec.critic == spaces.Box((1,), 0.0, 9.0)
    obs = source.make_group(0, 0, 2).step(np.array([0, 0])).obs
    assert obs.policy.shape == (2, 2) and (obs.critic == 1.0).all()


def test_means_of_the_numbers_in_info():
    group = group_of(Numbers, 2)
    assert group.info() == {}
    for _ in range(3):
        group.step(np.zeros(2, int))
    assert group.info() == {"step": 2.0, "flag": 2 / 3, "late": 1.0}
    assert group.info() == {}


def test_a_number_that_becomes_none_is_left_out():
    class Fades(Numbers):
        def info(self):
            return {"good": 1.0, "fading": None if self.t == 2 else 1.0}

    group = group_of(Fades, 1)
    for _ in range(3):
        group.step(np.zeros(1, int))
    assert group.info()["good"] == 1.0


@pytest.mark.parametrize(
    ("how", "cause", "said"),
    [
        ("step", ZeroDivisionError, "raised ZeroDivisionError: division by zero in step"),
        ("reset", OSError, "raised OSError: no simulator in reset"),
        ("reward", None, "gave the reward nan"),
        ("huge", None, "gave the reward inf"),
        ("nan", None, "showed nan in its observation"),
        ("inf", None, "showed inf in its observation"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own, about the nonsense
def test_trouble_is_named_and_keeps_its_traceback(how, cause, said):
    source = resolve(Breaks, env_kwargs={"how": how}, journal="journal")
    group = source.make_group(0, 4, 2)
    with pytest.raises(EnvError, match=said) as caught:
        for _ in range(7):
            group.step(np.zeros(2, int))
    step = 0 if how == "reset" else 1 if how == "step" else 2
    assert "Breaks (group 4, environment 0, episode 1, step" in str(caught.value)
    assert f"step {step + (how == 'step')})" in str(caught.value)
    assert caught.value.__cause__ is None if cause is None else isinstance(caught.value.__cause__, cause)


IMAGE = gs.Box(0, 255, (2, 2, 1), np.uint8)


@pytest.mark.parametrize("within", ["step", "reset"])
@pytest.mark.parametrize(
    ("space", "shown", "said"),
    [
        (gs.Discrete(5), 7, r"leaves its space: 7 is not in Discrete\(5\)"),
        (gs.Discrete(5, start=10), 4, "leaves its space: 4 is not in"),
        (gs.Discrete(5), 2.5, "leaves its space: 2.5 is not in"),
        (gs.MultiDiscrete([2, 3]), np.array([1, 3]), "leaves its space"),
        (gs.MultiBinary(2), np.array([0, 2]), "leaves its space"),
        (IMAGE, np.full((2, 2, 1), 0.5, np.float32), "has dtype float32, its space says uint8"),
        (IMAGE, np.full((2, 2, 1), 300), "leaves its space: 300 at index"),
        (gs.Box(0, 9, (), np.int32), 1.5, "has dtype float64, its space says int32"),
        (FLOAT, np.zeros(3), r"has shape \(3,\), its space says \(2,\)"),
        (IMAGE, np.full((1,), 3), r"has shape \(1,\), its space says \(2, 2, 1\)"),
        (FLOAT, np.array(["a", "b"]), "has dtype <U1, its space says float64"),
    ],
)
def test_what_a_space_cannot_hold_is_named(space, shown, said, within):
    with pytest.raises(ShoalError, match=f"Shows.*the observation.*{said}") as caught:
        group = group_of(Shows, 2, env_kwargs={"observation": space, "shown": shown, "within": within})
        for _ in range(3):
            group.step(np.zeros(2, int))
    assert "\n" not in str(caught.value) and "raised" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        (gs.Discrete(5), np.int64(4)),
        (gs.Discrete(5), np.array(3)),
        (gs.MultiBinary(2), np.array([True, False])),
        (IMAGE, np.full((2, 2, 1), 255)),
        (FLOAT, np.array([1, 2])),
        (gs.Box(-1, 1, (2,), np.float32), np.array([-7.0, 3.0])),
    ],
)
def test_what_a_space_can_hold_is_taken_as_it_is(space, shown):
    group = group_of(Shows, 2, env_kwargs={"observation": space, "shown": shown})
    group.step(np.zeros(2, int))
    np.testing.assert_array_equal(group.step(np.zeros(2, int)).obs.policy[0], shown)


@pytest.mark.parametrize(
    ("result", "within", "said"),
    [
        ((0, 1.0, False, {}), "step", r"step must give \(observation, reward, terminated, truncated"),
        (None, "step", "step must give .* not None"),
        (
            (np.zeros(2), None, False, False, {}),
            "step",
            "the reward of this step must be one number, not None",
        ),
        ((np.zeros(2), [1.0, 2.0], False, False, {}), "step", "the reward of this step must be one number"),
        (np.zeros(2), "reset", r"reset must give \(observation, info dict\), not an array of shape"),
    ],
)
def test_results_of_another_form_are_not_called_raising(result, within, said):
    with pytest.raises(ShoalError, match=f"Gives.*{said}") as caught:
        group = group_of(Gives, 1, env_kwargs={"result": result, "within": within})
        for _ in range(3):
            group.step(np.zeros(1, int))
    assert "\n" not in str(caught.value) and "raised" not in str(caught.value)


def test_observations_of_another_shape_than_the_space_are_refused():
    with pytest.raises(ShoalError, match="shape"):
        resolve(Toy, env_kwargs={"observation": gs.Box(0, 1, (5, 2), np.float32)})


def test_unsupported_spaces_are_refused():
    with pytest.raises(ShoalError, match="Text is not supported"):
        resolve(Toy, env_kwargs={"observation": gs.Text(3)})


def test_the_arrays_of_a_step_are_reused():
    group = group_of("CartPole-v1")
    first = group.current()
    assert all(
        a is b for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(group.step([0, 1])), strict=True)
    )
