"""What an experiment is made of, so that another process can make the same: `Recipe`, `Experiment`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.envs import Source, resolve
from shoal.errors import ShoalError
from shoal.memo import remembered
from shoal.transforms import normalize_observations, scale_rewards
from shoal.types import Agent, EnvSpec


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to build an agent and its environments anywhere: data, and what the user gave as code.

    algorithm: the dataclass of hyper-parameters. env: the arguments of `envs.resolve`, importable names where
    there are such. normalize, scale: the transforms around the algorithm. threads: XLA's CPU threads.
    """

    algorithm: Any
    env: Mapping[str, Any]
    normalize: bool = False
    scale: bool = False
    threads: int = 1

    def source(self) -> Source:
        return resolve(**self.env)

    def agent(self, spec: EnvSpec) -> Agent:
        """The same object for equal recipes."""
        return _agent(self.algorithm, spec, self.normalize, self.scale)


@remembered
def _agent(algorithm: Any, spec: EnvSpec, normalize: bool, scale: bool) -> Agent:
    agent = algorithm.bind(spec)
    if normalize:
        agent = normalize_observations(agent, spec)
    if scale:
        discount = getattr(algorithm, "discount", None)
        if discount is None:
            name = type(algorithm).__name__
            raise ShoalError(
                f"scale_rewards divides by the discounted return's deviation: {name} has no `discount`"
            )
        agent = scale_rewards(agent, discount)
    return agent


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an executor is given: the recipe, and what came of it in this process. seed: of everything."""

    recipe: Recipe
    source: Source
    agent: Agent
    seed: int

    @staticmethod
    def of(recipe: Recipe, seed: int, source: Source | None = None) -> Experiment:
        made = recipe.source() if source is None else source
        return Experiment(recipe=recipe, source=made, agent=recipe.agent(made.spec), seed=seed)
