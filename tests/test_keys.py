"""Keys: the generator against published vectors, and what is drawn from it against its distribution."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import keys

FEW = settings(max_examples=25, deadline=None, derandomize=True)
words = st.integers(0, 2**32 - 1)

# "threefry2x32 20" of kat_vectors, Random123 (Salmon et al. 2011): counter, key, result.
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
@pytest.mark.parametrize("xp", [np, jnp])
def test_known_answers(counter: Any, key: Any, expected: Any, xp: Any) -> None:
    with np.errstate(over="ignore"):
        result = keys._threefry(xp, xp.asarray(key, xp.uint32), *(xp.uint32(c) for c in counter))
    assert tuple(int(x) for x in result) == expected


def test_the_same_block_as_jax_random() -> None:
    key = keys.key_for(0, "anything")
    ours = keys._threefry(np, key, np.zeros(8, np.uint32), np.arange(8, dtype=np.uint32))
    counter = jnp.concatenate([jnp.zeros(8, jnp.uint32), jnp.arange(8, dtype=jnp.uint32)])
    theirs = jax.extend.random.threefry_2x32(jnp.asarray(key), counter)
    np.testing.assert_array_equal(np.concatenate(ours), theirs)


def test_a_name_is_a_key_in_every_process() -> None:
    assert keys.key_for(0, "act", 3).tolist() == keys.key_for(0, "act", 3).tolist()
    assert keys.key_for(0, "act", 3).dtype == np.uint32
    expected = keys.key_for(7, "env", 2, "reset")
    code = "from shoal import keys; print(*keys.key_for(7, 'env', 2, 'reset'), keys.seed_for(7, 'env', 2))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [int(x) for x in out.split()] == [*expected.tolist(), keys.seed_for(7, "env", 2)]


def test_names_that_differ_give_keys_that_differ() -> None:
    names = [
        (s, role, *path) for s in range(3) for role in ("act", "env") for path in ((), (0,), (1,), (0, 1))
    ]
    assert len({tuple(keys.key_for(*n).tolist()) for n in names}) == len(names)
    seeds = [keys.seed_for(*n) for n in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= s < 2**31 for s in seeds)


@pytest.mark.as_in_use
@FEW
@given(words, words, st.integers(-(2**31), 2**40), st.integers(1, 3))
def test_numpy_and_jax_draw_the_same_bits(a: int, b: int, number: int, n: int) -> None:
    host, device = np.asarray([a, b], np.uint32), jnp.asarray([a, b], jnp.uint32)
    pairs = [
        (keys.fold(host, number, 3), keys.fold(device, number, 3)),
        (keys.bits(host, n), keys.bits(device, n)),
        (keys.uniform(host, n), keys.uniform(device, n)),
    ]
    for ours, theirs in pairs:
        assert isinstance(ours, np.ndarray)
        assert isinstance(theirs, jax.Array)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.as_in_use
def test_numpy_and_compiled_jax_draw_the_same_bits() -> None:
    host = keys.fold(keys.key_for(1, "x"), np.arange(5))
    np.testing.assert_array_equal(keys.bits(host, 7), jax.jit(lambda k: keys.bits(k, 7))(host))
    np.testing.assert_array_equal(keys.uniform(host, 7), jax.jit(lambda k: keys.uniform(k, 7))(host))


def test_fold_broadcasts_and_each_number_is_a_key_of_its_own() -> None:
    key = keys.key_for(0, "act")
    many = keys.fold(key, np.arange(6)[:, None], np.arange(4))
    assert many.shape == (6, 4, 2)
    for t in range(6):
        for b in range(4):
            np.testing.assert_array_equal(many[t, b], keys.fold(key, t, b))
    assert len({tuple(k) for k in many.reshape(-1, 2).tolist()}) == 24
    per_key = keys.fold(many, np.arange(4))  # a batch of keys, one number for each
    np.testing.assert_array_equal(per_key[2, 3], keys.fold(key, 2, 3, 3))
    assert not np.array_equal(keys.fold(key, 1, 2), keys.fold(key, 2, 1))  # an ordered path
    np.testing.assert_array_equal(keys.fold(key), key)
    np.testing.assert_array_equal(keys.fold(key, 2**32 + 5), keys.fold(key, 5))  # modulo 2^32, as it says
    np.testing.assert_array_equal(keys.fold(key, -1), keys.fold(key, np.int32(-1)))


def test_folding_and_drawing_do_not_meet() -> None:
    # A child key that equals words drawn from its parent would make two purposes share their numbers.
    key = keys.key_for(0, "act")
    x0, x1 = np.split(keys.bits(key, 2000), 2)
    drawn = set(zip(x0.tolist(), x1.tolist(), strict=True))
    folded = {tuple(k) for k in keys.fold(key, np.arange(1000)).tolist()}
    assert not drawn & folded


def kolmogorov_smirnov(sample: np.ndarray, cdf: Any) -> float:
    """The largest distance of the sample's distribution function from `cdf`, times sqrt(n)."""
    x = np.sort(sample.astype(np.float64).ravel())
    p, n = cdf(x), x.size
    above, below = np.arange(1, n + 1) / n - p, p - np.arange(n) / n
    return float(max(above.max(), below.max()) * math.sqrt(n))


DISTRIBUTIONS = {
    "uniform": (keys.uniform, lambda x: x),
    "normal": (keys.normal, np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))),
    "gumbel": (keys.gumbel, lambda x: np.exp(-np.exp(-x))),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_draws_have_their_distribution(name: str, n: int) -> None:
    # Across keys (as an unroll draws) and along one key. 1.95: the 0.1 % point of Kolmogorov's distribution.
    draw, cdf = DISTRIBUTIONS[name]
    many = keys.fold(keys.key_for(0, "test", name), np.arange(20_000 // n))
    sample = np.asarray(draw(many, n))
    assert sample.shape == (20_000 // n, n)
    assert sample.dtype == np.float32
    assert np.isfinite(sample).all()
    assert kolmogorov_smirnov(sample, cdf) < 1.95
    assert kolmogorov_smirnov(np.asarray(draw(keys.key_for(1, "test", name), 20_001)), cdf) < 1.95
    if n > 1:
        across = np.corrcoef(sample.T) - np.eye(n)
        assert np.abs(across).max() < 4.5 / math.sqrt(sample.shape[0])
    along = np.corrcoef(sample[:-1, 0], sample[1:, 0])[0, 1]
    assert abs(along) < 4 / math.sqrt(sample.shape[0])


def test_uniform_is_never_0_or_1_whatever_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, expected in ((0, 2.0**-24), (2**32 - 1, 1 - 2.0**-24)):
        monkeypatch.setattr(keys, "bits", lambda key, n, word=word: np.full(n, word, np.uint32))
        assert keys.uniform(np.zeros(2, np.uint32), 3).tolist() == [expected] * 3
        assert np.isfinite(keys.normal(np.zeros(2, np.uint32), 3)).all()
        assert np.isfinite(keys.gumbel(np.zeros(2, np.uint32), 3)).all()


def test_bits_are_balanced() -> None:
    drawn = keys.bits(keys.key_for(3, "bits"), 40_000)
    ones = np.unpackbits(drawn.view(np.uint8).reshape(-1, 4), axis=1).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(40_000)
    assert len(np.unique(drawn)) > 39_990  # a birthday or two are to be expected


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 2**16 + 1])
def test_permutations_hold_every_number_once(n: int) -> None:
    orders = jax.jit(lambda key: keys.permutations(key, 3, n))(keys.key_for(0, "shuffle", n))
    assert orders.dtype == jnp.int32
    assert np.array_equal(np.sort(orders), np.tile(np.arange(n), (3, 1)))


def test_permutations_are_evenly_spread() -> None:
    orders = np.asarray(keys.permutations(keys.key_for(0, "shuffles"), 6000, 3))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-squared, 5 degrees of freedom, 0.1 %
    following = np.unique(np.hstack([orders[:-1], orders[1:]]), axis=0)
    assert len(following) == 36  # any may come after any


def test_a_key_serves_jax_random_too() -> None:
    wrapped = jax.random.wrap_key_data(jnp.asarray(keys.key_for(0, "own")))
    assert jax.random.normal(wrapped, (3,)).shape == (3,)
