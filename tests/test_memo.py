"""What is remembered is the same object, what cannot be compared a new one; another run compiles nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax.monitoring
import pytest

from shoal import PPO, Local, Trainer
from shoal.envs.cartpole import CartPole
from shoal.envs.jax import TimeLimited, vectorize
from shoal.memo import remembered
from shoal.recipe import Recipe

SMALL = PPO(rollout_length=8, epochs=1, minibatches=1, hidden=(8,))


def test_equal_arguments_give_the_same_object_and_others_another() -> None:
    calls: list[Any] = []

    @remembered
    def box(value: Any) -> list[Any]:
        calls.append(value)
        return [value]

    assert box((1, 2)) is box((1, 2)) and box((1, 3)) == [(1, 3)]
    assert calls == [(1, 2), (1, 3)]
    assert box([1]) == box([1]) == [[1]] and len(calls) == 4  # a list cannot be hashed
    for number in range(20):
        box(number)
    assert box((1, 2)) == [(1, 2)] and len(calls) == 25  # the oldest is forgotten


def test_an_error_of_the_function_is_not_taken_for_an_argument_that_cannot_be_hashed() -> None:
    calls: list[int] = []

    @remembered
    def broken(value: int) -> None:
        calls.append(value)
        raise TypeError("not this")

    with pytest.raises(TypeError, match="not this"):
        broken(1)
    assert calls == [1]


def test_an_agent_is_another_where_anything_about_it_is() -> None:
    recipe = Recipe(algorithm=SMALL, env={"env": "CartPole-v1"})
    spec = recipe.source().spec
    agents = [
        made.agent(where)
        for made, where in (
            (recipe, spec),
            (replace(recipe, algorithm=replace(SMALL, discount=0.9)), spec),
            (replace(recipe, normalize=True), spec),
            (replace(recipe, scale=True), spec),
            (recipe, replace(spec, max_episode_steps=7)),
        )
    ]
    assert len({id(agent) for agent in agents}) == 5
    again = Recipe(algorithm=replace(SMALL), env={"env": "CartPole-v1"})
    assert again.agent(again.source().spec) is agents[0]


def test_another_run_compiles_nothing_and_has_the_bits_of_its_own_seed() -> None:
    compiled: list[str] = []

    def listen(event: str, seconds: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(str(kwargs.get("fun_name")))

    def run(seed: int) -> str:
        with Trainer(SMALL, "CartPole-v1", seed=seed, on=Local(envs=2), sinks=()) as trainer:
            trainer.train()
            return trainer.fingerprint()

    first = run(0)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert run(0) == first != run(1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_groups_of_equal_environments_step_by_the_same_program() -> None:
    assert vectorize(CartPole(), 2) is vectorize(CartPole(), 2) is not vectorize(CartPole(), 3)
    limited = TimeLimited(CartPole(), 5)
    assert vectorize(limited, 2) is vectorize(TimeLimited(CartPole(), 5), 2) is not vectorize(CartPole(), 2)
    changing: Any = SimpleNamespace(reset=CartPole().reset, step=CartPole().step, spec=CartPole().spec)
    for env in (changing, TimeLimited(changing, 5)):  # whose settings another run may find changed
        assert vectorize(env, 2) is not vectorize(env, 2)
