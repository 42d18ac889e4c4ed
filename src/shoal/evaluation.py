"""How good a policy is: whole episodes, on environments and seeds of their own, with nothing learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import numpy as np

from shoal.checks import number
from shoal.envs import Source
from shoal.keys import key_for, seed_for
from shoal.types import Carry, EnvSpec, Group, Key, Params

ENVS = 10  # environments that step together
UNLIMITED = 10_000  # steps after which an episode without a time limit is cut


@dataclass(frozen=True)
class Evaluation:
    """returns, lengths: one entry per episode, undiscounted returns and real steps, in order of the
    episode's number. mean, std: of the returns."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    def __str__(self) -> str:
        return (
            f"return {self.mean:.2f} ± {self.std:.2f} over {len(self.returns)} episodes "
            f"(length {np.mean(self.lengths):.1f})"
        )


class Deferred:
    """An `execution.EvaluationTicket`: played in this process, when its result is asked for."""

    def __init__(self, play: Callable[[], Evaluation]) -> None:
        self._play = play
        self._result: Evaluation | None = None

    def result(self) -> Evaluation:
        if self._result is None:
            self._result = self._play()
        return self._result

    def cancel(self) -> None:
        pass


def evaluate(
    act: Callable[..., tuple[Any, Carry, Any]],
    begin: Callable[[int], Carry],
    params: Params,
    source: Source,
    episodes: int,
    *,
    seed: int,
    explore: bool = False,
) -> Evaluation:
    """Run `episodes` whole episodes and report each. The same seed gives the same episodes.

    act: a compiled `unroll.act_row`. Episodes run in waves, one in each environment: taking whichever
    end first would favour the short ones.
    """
    each = (wave(act, begin, params, source, episodes, w, seed, explore) for w in range(waves(episodes)))
    return together(each, episodes)


def waves(episodes: int) -> int:
    """How many waves so many episodes are played in."""
    number("episodes", episodes, 1, Integral)
    return -(-episodes // min(episodes, ENVS))


def together(each: Iterable[list[tuple[float, int]]], episodes: int) -> Evaluation:
    """What all waves gave, in their order."""
    results = [episode for one in each for episode in one]
    returns, lengths = zip(*results[:episodes], strict=True)
    return Evaluation(returns, lengths)


def wave(
    act: Callable[..., tuple[Any, Carry, Any]],
    begin: Callable[[int], Carry],
    params: Params,
    source: Source,
    episodes: int,
    number: int,
    seed: int,
    explore: bool,
) -> list[tuple[float, int]]:
    """(return, length) of the episodes of one wave, which does not depend on the others."""
    size = min(episodes, ENVS)
    group = source.make_group(seed_for(seed, "evaluate", number), 0, size)
    try:
        return _wave(act, begin(size), params, group, key_for(seed, "evaluate", number), explore, source.spec)
    finally:
        group.close()


def _wave(
    act: Callable[..., tuple[Any, Carry, Any]],
    carry: Carry,
    params: Params,
    group: Group,
    key: Key,
    explore: bool,
    spec: EnvSpec,
) -> list[tuple[float, int]]:
    """(return, length) of the first episode of every environment of a fresh group."""
    limit = spec.max_episode_steps or UNLIMITED
    index = np.arange(group.size, dtype=np.int32)
    returns, lengths = np.zeros(group.size), np.zeros(group.size, np.int64)
    running = np.ones(group.size, bool)
    step = group.current()
    for t in range(limit + 1):  # one row more, for the reset that shows that an episode has ended
        # Copied, for the group may write its arrays again while JAX reads them.
        obs, first, reward = jax.tree.map(np.array, (step.obs, step.first, step.reward))
        action, carry, _ = act(params, carry, obs, first, reward, key, np.uint32(t), index, np.bool_(explore))
        step = group.step(jax.tree.map(np.asarray, action))
        running &= ~step.first
        if not running.any():
            break
        if t == limit:  # only where the environment has no time limit of its own
            warnings.warn(
                f"episodes of {spec.id} were cut after {limit} steps: it has no time limit", stacklevel=3
            )
            break
        returns += np.where(running, step.reward, 0.0)
        lengths += running
    return list(zip(returns.tolist(), lengths.tolist(), strict=True))
