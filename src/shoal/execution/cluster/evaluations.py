"""Evaluations as Ray tasks, beside the runners: training goes on while their episodes are played.

    acting parameters -> store -> a task for each share of the waves -> (return, length) of every episode

A wave of episodes depends on the parameters, the seed and its number alone, so that it does not matter how
the waves are shared among tasks, nor how often Ray starts one again because its worker died.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from shoal import evaluation
from shoal.errors import ShoalError
from shoal.evaluation import Deferred, Evaluation
from shoal.execution.cluster.luggage import Luggage, pack, unpack
from shoal.execution.unroll import act_row
from shoal.recipe import Experiment, Recipe
from shoal.runtime import configure
from shoal.types import Params

RETRIES = 3  # of one task, each time its worker or its node dies

_players: dict[str, Any] = {}  # in a worker: the agent and environments of the last evaluation's recipe


def play(
    name: str, luggage: Luggage, seed: int, params: Params, episodes: int, numbers: Sequence[int]
) -> Any:
    """The task: the waves of these numbers. luggage, name: the Recipe, and what it is called in the run."""
    recipe: Recipe = unpack(luggage)
    jax.config.update("jax_platforms", "cpu")  # this module has imported JAX, but JAX has not started
    configure(recipe.threads)
    if name not in _players:
        source = recipe.source()
        agent = recipe.agent(source.spec)
        _players.clear()
        _players[name] = jax.jit(act_row(agent)), agent.begin, source
    act, begin, source = _players[name]
    params = jax.device_put(params)
    return [evaluation.wave(act, begin, params, source, episodes, n, seed, False) for n in numbers]


class RayEvaluator:
    """recipe, seed: of the run. tasks: how many at most play one evaluation. They ask Ray for no CPU, since
    the runners may hold all of them; it is the machine's cores that are shared."""

    def __init__(self, recipe: Recipe, seed: int, tasks: int) -> None:
        self._recipe, self._seed, self._tasks = recipe, seed, tasks
        self._put: Any = None

    def begin(self, params: Params, episodes: int) -> RayTicket:
        import ray

        if self._put is None:
            self._put = ray.put(pack(self._recipe))
        task: Any = ray.remote(num_cpus=0, num_gpus=0, max_retries=RETRIES)(play)
        waves = evaluation.waves(episodes)
        shares = [range(waves)[i :: self._tasks] for i in range(min(waves, self._tasks))]
        name, sent = self._put.hex(), ray.put(params)
        refs = [task.remote(name, self._put, self._seed, sent, episodes, share) for share in shares]
        return RayTicket(refs, shares, episodes)


class RayTicket:
    """An `execution.EvaluationTicket`. refs: the tasks' results. shares: the waves of each."""

    def __init__(self, refs: list[Any], shares: list[range], episodes: int) -> None:
        self._refs, self._shares, self._episodes = refs, shares, episodes
        self._result: Evaluation | None = None

    def result(self) -> Evaluation:
        if self._result is None:
            waves: dict[int, Any] = {}
            for share, played in zip(self._shares, self._get(), strict=True):
                waves |= dict(zip(share, played, strict=True))
            self._result = evaluation.together((waves[n] for n in sorted(waves)), self._episodes)
            self._refs = []
        return self._result

    def cancel(self) -> None:
        import ray

        if ray.is_initialized():
            for ref in self._refs:
                ray.cancel(ref, force=True)
        self._refs = []

    def _get(self) -> list[Any]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(self._refs)
        except RayTaskError as error:
            if isinstance(error.cause, ShoalError):
                raise error.cause from None
            raise ShoalError(
                f"an evaluation failed: {type(error.cause).__name__}: {error.cause}"
            ) from error.cause
        except RayError as error:
            why = str(error).strip().partition("\n")[0]
            raise ShoalError(f"an evaluation failed {RETRIES + 1} times: {why}") from None


class InlineEvaluator:
    """The same in this process, with verdicts at the same places."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._act = experiment, jax.jit(act_row(experiment.agent))

    def begin(self, params: Params, episodes: int) -> Deferred:
        e = self._experiment
        return Deferred(
            lambda: evaluation.evaluate(self._act, e.agent.begin, params, e.source, episodes, seed=e.seed)
        )
