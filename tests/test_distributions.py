"""Action distributions against formulas written out, enumeration and sample frequencies."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.distributions import FORBIDDEN, ActionDistribution, distribution_for
from shoal.errors import ShoalError
from shoal.keys import fold, key_for
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, zeros

few = settings(deadline=None, derandomize=True, max_examples=25)
KEYS = fold(key_for(0, "test-distributions"), np.arange(20_000))
DISCRETE = [
    Discrete(4),
    Discrete(3, start=-2),
    MultiDiscrete((2, 3)),
    MultiDiscrete((3, 3), start=(1, -1)),
    MultiBinary((3,)),
    Tuple((Discrete(2), MultiDiscrete((2, 2)))),
    Dict.of({"b": Discrete(2), "a": MultiBinary((2,))}),
]
NESTED = Dict.of({"gear": Discrete(3, start=1), "wheel": Tuple((Box((2,), -1.0, 1.0), Box((), 0.0)))})


def kind(space: Any) -> str:
    return type(space).__name__


def compiled(space: Any) -> ActionDistribution:
    """The distribution with every function compiled, as it is used (and much faster to test)."""
    dist = distribution_for(space)
    names = ("sample", "mode", "log_prob", "entropy", "to_env")
    return dataclasses.replace(dist, **{name: jax.jit(getattr(dist, name)) for name in names})


def some_logits(width: int, *leading: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(width).normal(size=(*leading, width)) * 1.5, jnp.float32)


def choices(space: Any) -> list[Any]:
    """Every raw action of a discrete space."""
    match space:
        case Discrete():
            return list(np.arange(space.n, dtype=np.int32))
        case MultiDiscrete():
            return [np.array(c, np.int32) for c in itertools.product(*map(range, space.nvec))]
        case MultiBinary():
            return [np.array(c, np.int32) for c in itertools.product((0, 1), repeat=math.prod(space.shape))]
        case Tuple():
            return list(itertools.product(*map(choices, space.spaces)))
        case Dict():
            names = [name for name, _ in space.spaces]
            parts = itertools.product(*(choices(s) for _, s in space.spaces))
            return [dict(zip(names, part, strict=True)) for part in parts]
        case _:
            raise AssertionError(space)


def stacked(raws: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *raws)


def fits(statistic: float, freedom: int) -> bool:
    """Whether a chi-square statistic is below its 99.99 % quantile (Wilson and Hilferty 1931)."""
    c = 2.0 / (9.0 * freedom)
    return statistic < freedom * (1.0 - c + 3.72 * math.sqrt(c)) ** 3


@pytest.mark.parametrize("space", DISCRETE, ids=kind)
def test_probabilities_sum_to_one_and_entropy_is_their_sum(space: Any) -> None:
    dist = compiled(space)
    logits = some_logits(dist.outputs + dist.free)
    raws = stacked(choices(space))
    count = len(jax.tree.leaves(raws)[0])
    log_p = np.asarray(dist.log_prob(jnp.broadcast_to(logits, (count, dist.outputs)), None, raws), np.float64)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-6)
    assert float(dist.entropy(logits, None)) == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-5)
    best = jax.tree.map(lambda leaf: leaf[log_p.argmax()], raws)
    assert jax.tree.all(jax.tree.map(np.array_equal, dist.mode(logits, None), best))


@pytest.mark.parametrize("space", DISCRETE, ids=kind)
def test_samples_are_as_frequent_as_their_probabilities(space: Any) -> None:
    dist = compiled(space)
    rows = jnp.broadcast_to(some_logits(dist.outputs), (len(KEYS), dist.outputs))
    drawn = dist.sample(KEYS, rows, None)
    raws = choices(space)
    p = np.exp(np.asarray(dist.log_prob(rows[: len(raws)], None, stacked(raws)), np.float64))
    flat = np.concatenate([np.reshape(leaf, (len(KEYS), -1)) for leaf in jax.tree.leaves(drawn)], axis=1)
    seen = [
        (flat == np.concatenate([np.reshape(leaf, -1) for leaf in jax.tree.leaves(raw)])).all(axis=1).sum()
        for raw in raws
    ]
    assert sum(seen) == len(KEYS)
    expected = p * len(KEYS)
    assert fits(float((((np.array(seen) - expected) ** 2) / expected).sum()), len(raws) - 1)


def test_log_prob_of_multi_discrete_is_the_sum_of_its_parts() -> None:
    dist = compiled(MultiDiscrete((2, 4, 3)))
    logits = np.asarray(some_logits(9, 5), np.float64)
    raw = np.array([[0, 3, 2], [1, 0, 0], [1, 2, 1], [0, 1, 1], [1, 3, 2]], np.int32)
    expected = np.zeros(5)
    for i, part in enumerate(np.split(logits, [2, 6], axis=1)):
        expected += part[np.arange(5), raw[:, i]] - np.log(np.exp(part).sum(axis=1))
    np.testing.assert_allclose(
        dist.log_prob(jnp.asarray(logits, jnp.float32), None, raw), expected, atol=1e-5
    )


PAIR = MultiDiscrete((3, 5))
PAIR_DIST = compiled(PAIR)


@jax.jit
def pair_gradient(logits: jax.Array, allowed: jax.Array, raws: jax.Array) -> jax.Array:
    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(PAIR_DIST.log_prob(x, allowed, raws)) + jnp.sum(PAIR_DIST.entropy(x, allowed))

    return jax.grad(loss)(logits)


@few
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.floats(-30, 30), st.integers(0, 1000))
def test_forbidden_actions_have_probability_zero(mask: list[bool], scale: float, number: int) -> None:
    dist, raws = PAIR_DIST, stacked(choices(PAIR))
    logits = jnp.broadcast_to(some_logits(8) * scale, (15, 8))
    allowed = np.broadcast_to(np.array(mask), (15, 8))

    def check(sub: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """What is forbidden: nothing where everything would be."""
        return ~sub[choice] if sub.any() else np.zeros(len(choice), bool)

    forbidden = check(allowed[0, :3], raws[:, 0]) | check(allowed[0, 3:], raws[:, 1])
    log_p = np.asarray(dist.log_prob(logits, allowed, raws))
    assert np.isfinite(log_p).all()
    p = np.exp(log_p)
    assert (p[forbidden] == 0.0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    real = p > 0
    entropy = -(p[real].astype(np.float64) * log_p[real]).sum()
    assert float(dist.entropy(logits, allowed)[0]) == pytest.approx(entropy, abs=1e-4)

    keys = fold(key_for(number, "masks"), np.arange(15))
    for raw in (dist.sample(keys, logits, allowed), dist.mode(logits, allowed)):
        taken = np.asarray(raw)
        assert not (check(allowed[0, :3], taken[:, 0]) | check(allowed[0, 3:], taken[:, 1])).any()
    assert np.isfinite(np.asarray(pair_gradient(logits, allowed, raws))).all()


@pytest.mark.parametrize("space", [Discrete(4), MultiDiscrete((2, 2)), MultiBinary((2,))], ids=kind)
def test_a_row_that_forbids_everything_counts_as_unmasked(space: Any) -> None:
    dist = compiled(space)
    logits, nothing = some_logits(4, 50), np.zeros((50, 4), bool)
    raw = dist.sample(KEYS[:50], logits, nothing)
    assert np.array_equal(raw, dist.sample(KEYS[:50], logits, None))
    assert np.array_equal(dist.mode(logits, nothing), dist.mode(logits, None))
    np.testing.assert_allclose(
        dist.log_prob(logits, nothing, raw), dist.log_prob(logits, None, raw), rtol=1e-5
    )
    np.testing.assert_allclose(dist.entropy(logits, nothing), dist.entropy(logits, None), rtol=1e-5)


def test_a_forbidden_action_has_the_same_finite_log_probability_under_every_policy() -> None:
    dist = compiled(Discrete(3))
    mask = np.array([[True, True, False]] * 4)
    log_p = dist.log_prob(some_logits(3, 4) * 20, mask, np.full(4, 2, np.int32))
    assert (np.asarray(log_p) == np.float32(FORBIDDEN)).all()  # ratios of two policies are 1, not NaN


def test_multi_binary_masks_say_may_be_zero_may_be_one() -> None:
    dist = compiled(MultiBinary((3,)))
    mask = np.array([True, False, False, True, True, True])  # first is 0, second is 1, third is free
    drawn = np.asarray(dist.sample(KEYS[:200], jnp.zeros((200, 6)), np.broadcast_to(mask, (200, 6))))
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1] == 1).all()
    assert set(drawn[:, 2]) == {0, 1}


def test_a_mask_of_another_shape_is_refused() -> None:
    for space in (Discrete(3), MultiDiscrete((2, 2))):
        dist = compiled(space)
        with pytest.raises(ShoalError, match="mask of shape"):
            dist.mode(jnp.zeros((2, dist.outputs)), np.ones((2, 1), bool))
    with pytest.raises(ShoalError, match="no action mask"):
        distribution_for(Box((1,))).mode(jnp.zeros((2, 2)), np.ones((2, 1), bool))


def test_starts_are_added_for_the_environment_only() -> None:
    raw = distribution_for(Discrete(3, start=5)).mode(jnp.array([0.0, 0.0, 1.0]), None)
    assert (int(raw), int(distribution_for(Discrete(3, start=5)).to_env(raw))) == (2, 7)
    many = compiled(MultiDiscrete((2, 3), start=(-1, 10)))
    assert np.asarray(many.to_env(np.array([[1, 2], [0, 0]], np.int32))).tolist() == [[0, 12], [-1, 10]]
    binary = compiled(MultiBinary((2, 2)))
    action = binary.to_env(jnp.array([[0, 1, 1, 0]]))
    assert (action.shape, action.dtype) == ((1, 2, 2), np.int8)


def test_box_log_prob_and_entropy_are_those_of_the_normal_density() -> None:
    dist = compiled(Box((2,), -2.0, 2.0))
    mean, log_std, raw = np.array([0.3, -1.0]), np.array([-0.5, 0.7]), np.array([1.1, -0.2])
    density = 1.0
    for m, s, x in zip(mean, np.exp(log_std), raw, strict=True):
        density *= math.exp(-((x - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))
    logits = jnp.asarray(np.concatenate([mean, log_std]), jnp.float32)
    assert float(dist.log_prob(logits, None, raw)) == pytest.approx(math.log(density), abs=1e-5)
    rows = jnp.broadcast_to(logits, (len(KEYS), 4))
    drawn = dist.sample(KEYS, rows, None)
    # The mean of -log p over samples is the entropy, to within four standard errors (each dimension has 1/2).
    surprise = -np.asarray(dist.log_prob(rows, None, drawn))
    assert float(dist.entropy(logits, None)) == pytest.approx(surprise.mean(), abs=4 / math.sqrt(len(KEYS)))
    np.testing.assert_allclose(np.asarray(drawn).mean(axis=0), mean, atol=0.06)
    np.testing.assert_allclose(np.asarray(drawn).std(axis=0), np.exp(log_std), rtol=0.03)
    assert np.array_equal(dist.mode(logits, None), logits[:2])


bound = st.one_of(
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    st.sampled_from([-math.inf, math.inf, -3e38, 3e38]),
)


@few
@given(st.lists(st.tuples(bound, bound), min_size=3, max_size=3), st.floats(-1e5, 1e5, width=32))
def test_box_actions_are_always_inside(bounds: list[tuple[float, float]], scale: float) -> None:
    # Gymnasium allows no lower bound of +inf and no upper bound of -inf.
    low = tuple(min(pair) if min(pair) < math.inf else 0.0 for pair in bounds)
    high = tuple(max(pair) if max(pair) > -math.inf else 0.0 for pair in bounds)
    space = Box((len(bounds),), low, high)
    dist = distribution_for(space)
    raw = some_logits(len(bounds), 32) * np.float32(scale)
    action = np.asarray(dist.to_env(raw))
    assert np.isfinite(action).all()
    assert (action >= np.array(low, np.float32)).all()
    assert (action <= np.array(high, np.float32)).all()
    free = np.isinf(low) & np.isinf(high)
    assert np.array_equal(action[:, free], np.asarray(raw)[:, free])


def test_box_scaling() -> None:
    dist = compiled(Box((3,), (-2.0, 0.0, -math.inf), (6.0, math.inf, 1.0)))
    raw = jnp.array([[-1.0, -1.0, -5.0], [0.0, 3.0, 0.5], [1.0, 0.0, 5.0], [9.0, 0.0, 0.0]])
    expected = [[-2, 0, -5], [2, 3, 0.5], [6, 0, 1], [6, 0, 0]]
    assert np.asarray(dist.to_env(raw)).tolist() == expected


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bounds_in_float64_are_rounded_inwards(dtype: str) -> None:
    space = Box((2,), 0.1, (0.7, 1.0 / 3.0), dtype)
    action = np.asarray(distribution_for(space).to_env(jnp.array([[-5.0, -5.0], [5.0, 5.0]])), np.float64)
    assert (action >= 0.1).all()
    assert (action <= np.array([0.7, 1.0 / 3.0])).all()


@pytest.mark.parametrize("space", [*DISCRETE, Box((2, 3), 0.0, 1.0), Box(()), NESTED], ids=kind)
def test_shapes_under_leading_axes(space: Any) -> None:
    dist = distribution_for(space)
    logits = some_logits(dist.outputs + dist.free, 5, 4)
    keys = fold(key_for(1, "shapes"), np.arange(20).reshape(5, 4))

    def everything(keys: jax.Array, logits: jax.Array) -> tuple[Any, ...]:
        raw = dist.sample(keys, logits, None)
        terms = (dist.log_prob(logits, None, raw), dist.entropy(logits, None))
        return raw, dist.mode(logits, None), terms, dist.to_env(raw)

    raw, mode, terms, action = jax.eval_shape(everything, keys, logits)
    assert raw == mode
    assert [(term.shape, term.dtype) for term in terms] == [((5, 4), np.float32)] * 2
    assert all(leaf.shape[:2] == (5, 4) for leaf in jax.tree.leaves(action))
    assert jax.tree.map(lambda a: (5, 4, *a.shape), zeros(space)) == jax.tree.map(lambda a: a.shape, action)


def test_a_row_depends_on_its_own_key_alone() -> None:
    dist = compiled(NESTED)
    logits = some_logits(dist.outputs + dist.free, 8)
    changed = KEYS[:8].copy()
    changed[3] = KEYS[100]
    before, after = dist.sample(KEYS[:8], logits, None), dist.sample(changed, logits, None)
    apart = dist.sample(KEYS[:8].reshape(2, 4, 2), logits.reshape(2, 4, -1), None)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a[0, 3], b[3]), apart, before))
    others = np.arange(8) != 3
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a[others], b[others]), before, after))
    assert not np.array_equal(before["wheel"][0][3], after["wheel"][0][3])


def test_nested_spaces_join_their_parts() -> None:
    dist = compiled(NESTED)
    assert (dist.outputs, dist.free) == (3 + 2 + 1, 3)
    logits = some_logits(9, 4)
    raw = dist.sample(KEYS[:4], logits, {"gear": np.array([[True, False, True]] * 4), "wheel": None})
    gear, wheel = distribution_for(Discrete(3)), distribution_for(Box((3,)))
    boxes = jnp.concatenate([raw["wheel"][0], raw["wheel"][1]], axis=-1)
    expected = gear.log_prob(logits[:, :3], None, raw["gear"]) + wheel.log_prob(logits[:, 3:], None, boxes)
    np.testing.assert_allclose(dist.log_prob(logits, None, raw), expected, rtol=1e-5)
    assert not (np.asarray(raw["gear"]) == 1).any()
    action = dist.to_env(raw)
    assert set(np.asarray(action["gear"])) <= {1, 3}
    assert (np.asarray(action["wheel"][1]) >= 0).all()
    assert action["wheel"][1].shape == (4,)


@pytest.mark.parametrize("space", [Discrete(4), MultiDiscrete((2, 3)), NESTED], ids=kind)
def test_gradients_are_finite(space: Any) -> None:
    dist = compiled(space)
    logits = 100.0 * some_logits(dist.outputs, 6)
    logits = jnp.concatenate([logits, jnp.zeros((6, dist.free))], axis=-1)
    raw = dist.sample(KEYS[:6], logits, None)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(dist.log_prob(x, None, raw) + dist.entropy(x, None))))(logits)
    assert np.isfinite(np.asarray(grad)).all()
    assert np.abs(np.asarray(grad)).max() > 0


def test_spaces_without_a_distribution_are_refused() -> None:
    with pytest.raises(ShoalError, match="use MultiDiscrete"):
        distribution_for(Box((2,), 0, 255, "uint8"))
    with pytest.raises(ShoalError, match="at least one"):
        distribution_for(Tuple(()))
