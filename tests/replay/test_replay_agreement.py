"""Host and device have one replay: NumPy and jitted JAX give the same bits, and copy nothing big."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_histories import history, layout

from shoal.checkpoint import flatten
from shoal.keys import key_for
from shoal.replay import Layout, draw, empty, insert, load, reprioritize, save, stored

few = settings(max_examples=25, deadline=None, derandomize=True)
K, N = 3, 8
LAYOUTS = {
    "n-step": layout(3, rows=2, capacity=40, n_step=3),
    "prioritised": layout(2, rows=3, capacity=50, n_step=2, prioritized=True),
    "prioritised frames": layout(2, 3, rows=1, capacity=30, prioritized=True),
    "sequences": layout(2, rows=2, capacity=24, sequence=5),
    "prioritised sequences of frames": layout(2, 4, rows=2, capacity=24, sequence=3, prioritized=True),
}


@cache
def compiled(shape: Layout) -> tuple[Callable[..., Any], ...]:
    """insert, draw, reprioritize."""
    return (
        jax.jit(lambda memory, fragment: insert(shape, memory, fragment), donate_argnums=0),
        jax.jit(lambda memory, key: (draw(shape, memory, key, K, N), stored(shape, memory))),
        jax.jit(lambda memory, *given: reprioritize(shape, memory, *given), donate_argnums=0),
    )


def same(x: Any, y: Any) -> None:
    """Equal bits, shapes and dtypes in every leaf."""

    def check(a: Any, b: Any) -> None:
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()

    jax.tree.map(check, x, y)


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", LAYOUTS)
def test_host_and_device_give_the_same_bits(name: str) -> None:
    shape = LAYOUTS[name]
    on_device = compiled(shape)

    @few
    @given(seed=st.integers(0, 10**6), fragments=st.integers(1, 30))
    def check(seed: int, fragments: int) -> None:
        past = history(seed, fragments * shape.fragment, shape.envs, shape.frames)
        rng = np.random.default_rng(seed)
        like = past.fragment(0, shape.fragment)
        host, device = empty(shape, like, np), empty(shape, like, jnp)
        for i in range(fragments):
            fragment = past.fragment(i * shape.fragment, shape.fragment)
            host, device = insert(shape, host, fragment), on_device[0](device, fragment)
            if rng.random() < 0.5:
                continue
            key = key_for(seed, "draw", i)
            drawn, n = draw(shape, host, key, K, N), stored(shape, host)
            same((drawn, n), on_device[1](device, key))
            if shape.prioritized:
                scale = np.float32(10.0) ** rng.integers(-20, 20)
                priorities = (rng.exponential(size=(K, N)) * scale).astype(np.float32)
                priorities[rng.random((K, N)) < 0.1] = rng.choice([np.nan, np.inf, 0, -1])
                given = drawn.index, priorities, np.int32(rng.integers(0, K + 1))
                host, device = reprioritize(shape, host, *given), on_device[2](device, *given)
            same(host, device)

    check()


LARGE = {
    "n-step": layout(8, rows=4, capacity=2**16, n_step=3),
    "prioritised frames": layout(8, 2, rows=4, capacity=2**16, prioritized=True),
    "prioritised sequences": layout(8, rows=1, capacity=2**16, sequence=3, prioritized=True),
}


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", LARGE)
def test_compiled_programs_copy_nothing_big(name: str) -> None:
    """No array of the replay's size is copied: not where minibatches are drawn and priorities given back, and
    not where fragments are inserted before that, in the same loop."""
    shape = LARGE[name]
    fragment = history(0, 4, 8, shape.frames).fragment(0, shape.fragment)
    memory = jax.eval_shape(lambda: empty(shape, fragment, jnp))

    def learn(memory: Any, key: Any) -> Any:
        drawn = draw(shape, memory, key, 2, 32)
        if shape.prioritized:
            memory = reprioritize(shape, memory, drawn.index, drawn.weight**2, 2)
        return memory, drawn

    def loop(memory: Any, keys: Any) -> Any:
        return jax.lax.scan(lambda m, key: learn(insert(shape, m, fragment), key), memory, keys)

    sizes = {x.size for x in jax.tree.leaves(memory) if x.size >= 2**16}
    assert len(sizes) >= 2
    for program, key in ((learn, (2,)), (loop, (5, 2))):
        lowered = jax.jit(program, donate_argnums=0).lower(memory, jax.ShapeDtypeStruct(key, np.uint32))
        copies = re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", lowered.compile().as_text())
        assert not [c for c in copies if int(np.prod([int(n) for n in c.split(",")])) in sizes]


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("fragments", [3, 31])
def test_a_saved_replay_continues_bit_for_bit(name: str, fragments: int) -> None:
    """Saved on the host, loaded on host and device; both go on as the one that was never saved."""
    shape = LAYOUTS[name]
    rows = shape.fragment
    past = history(7, 40 * rows, shape.envs, shape.frames)
    on_host = (partial(insert, shape), lambda memory, key: (draw(shape, memory, key, K, N), ()))
    on_host = (*on_host, partial(reprioritize, shape))
    on = empty(shape, past.fragment(0, rows), np)

    def go_on(memory: Any, start: int, end: int, where: Any = on_host) -> tuple[Any, Any]:
        """The memory after these fragments, and all that was drawn between."""
        seen = []
        for i in range(start, end):
            memory = where[0](memory, past.fragment(i * rows, rows))
            seen.append(where[1](memory, key_for(0, "draw", i))[0])
            if shape.prioritized:
                priorities = np.random.default_rng(i).random((K, N)).astype(np.float32)
                memory = where[2](memory, seen[-1].index, priorities, np.int32(2))
        return memory, seen

    on, _ = go_on(on, 0, fragments)
    saved = {f"replay/{path}": x.copy() for path, x in flatten(save(shape, on)).items()}
    dirty, _ = go_on(empty(shape, past.fragment(0, rows), np), 0, 9)
    host = load(shape, dirty, saved, "replay")
    device = load(shape, empty(shape, past.fragment(0, rows), jnp), saved, "replay")
    same(flatten(save(shape, device)), flatten(save(shape, host)))
    same(save(shape, host), save(shape, on))
    on, seen = go_on(on, fragments, fragments + 2)
    host, seen_host = go_on(host, fragments, fragments + 2)
    device, seen_device = go_on(device, fragments, fragments + 2, compiled(shape))
    same(seen_host, seen)
    same(seen_device, seen)
    same(save(shape, host), save(shape, on))
    same(save(shape, device), save(shape, on))
