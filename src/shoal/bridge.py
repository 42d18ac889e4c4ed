"""RLlib's old PPO interface, for people and programs that come from it: a translation, and no more.

    trainer = shoal.PPOTrainer(config={"env": "CartPole-v1", "num_workers": 2, "framework": "torch"})
    print(shoal.pretty_print(trainer.train()))

What the keys of `config` become, and which are refused: `shoal.rllib_config`.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal.envs.source import is_jax_env
from shoal.metrics import Result
from shoal.rllib_config import translate
from shoal.trainer import Trainer


class PPOTrainer:
    """`ray.rllib.agents.ppo.PPOTrainer`'s methods over a `shoal.Trainer` (which is `trainer.shoal`).

    config: RLlib's keys, see `translate`. env: as `config["env"]`. Everything runs in this process.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, env: Any = None) -> None:
        merged = dict(config or {}) | ({} if env is None else {"env": env})
        self.config = merged
        self._translated = translate(merged)
        for note in self._translated.notes:
            _say_once(note)
        t = self._translated
        self.shoal = Trainer(t.algorithm, t.env, on=t.on, **t.options)

    def train(self) -> dict[str, Any]:
        """One iteration. The numbers under RLlib's names and under Shoal's, as one flat dict."""
        result = self.shoal.train()
        last = self.shoal._progress.episodes.save()["last"]  # 100 episodes, as the means are of
        returns = last["returns"]
        return {
            "training_iteration": result["iteration"],
            "timesteps_total": result["env_steps"],
            "episodes_total": result["episodes"],
            "episode_reward_max": float(np.max(returns)) if len(returns) else math.nan,
            "episode_reward_min": float(np.min(returns)) if len(returns) else math.nan,
            "episode_reward_mean": result["episode_return_mean"],
            "episode_len_mean": result["episode_length_mean"],
            "time_total_s": result["timing/seconds"],
            **result,
        }

    def save(self, checkpoint_dir: str | Path | None = None) -> str:
        """Save everything as `checkpoint_dir`/checkpoint_000010 (10 iterations) and return that path.

        None: a folder of this trainer's own in ./runs.
        """
        config, done = self.shoal.config, self.shoal.summary()["iteration"]
        own = Path("runs") / f"PPO_{_file_name(config['spec']['id'])}_{config['run_id']}"
        return str(self.shoal.save(Path(checkpoint_dir or own) / f"checkpoint_{done:06d}"))

    def restore(self, checkpoint_path: str | Path) -> None:
        """Go on from a checkpoint (or the last one in a folder of them), bit for bit, with its settings.

        Raises ShoalError where it belongs to another environment; says so where its settings are others.
        """
        restored = Trainer.restore(_latest(Path(checkpoint_path)), env=self._environment())
        ours, theirs = _settings(self.shoal.config), _settings(restored.config)
        if differing := [name for name in ours if ours[name] != theirs.get(name)]:
            _say_once(
                f"restored with the checkpoint's own settings; config has another {', '.join(differing)}"
            )
        self.shoal.close()
        self.shoal = restored

    def _environment(self) -> Any:
        """What makes the environment again, its env_config included (which no checkpoint holds for a class
        that cannot be imported)."""
        env, kwargs = self._translated.env, self._translated.options["env_kwargs"]
        if isinstance(env, str):
            return env

        def make(**_: Any) -> Any:
            return env if is_jax_env(env) else env(**kwargs)

        make.__name__ = getattr(env, "__name__", type(env).__name__)
        return make

    def compute_single_action(
        self, observation: Any, *, explore: bool | None = None, first: bool = False
    ) -> Any:
        """The action for one observation, as the environment takes it.

        explore: sample; None takes config["explore"], and False where that is not given: the likeliest
        action (RLlib's default was to sample). A policy with memory remembers from call to call;
        first=True begins a new episode.
        """
        sample = self._translated.explore if explore is None else explore
        return self.shoal.compute_single_action(observation, explore=sample, first=first)

    def evaluate(self, episodes: int = 10) -> dict[str, Any]:
        """Whole episodes of the likeliest actions: {"evaluation": {"episode_reward_mean": ...}}."""
        found = self.shoal.evaluate(episodes)
        numbers = {
            "episode_reward_max": max(found.returns),
            "episode_reward_min": min(found.returns),
            "episode_reward_mean": found.mean,
            "episode_len_mean": float(np.mean(found.lengths)),
            "episodes_this_iter": episodes,
        }
        return {"evaluation": numbers}

    def stop(self) -> None:
        """Close the environments."""
        self.shoal.close()


def pretty_print(result: Mapping[str, Any]) -> str:
    """A result as a table of text; nested mappings become groups."""

    def flat(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, value in part.items():
            name = f"{prefix}{name}"
            row |= flat(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
        return row

    return str(Result(flat(result)))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What may differ between two runs, by name, in the form in which a checkpoint gives it."""
    plain = json.loads(json.dumps(config))
    whole = {name: plain[name] for name in ("seed", "normalize_observations", "env")}
    return plain["algorithm"]["settings"] | plain["on"] | whole


def _latest(path: Path) -> Path:
    """The path itself, or the last checkpoint_NNNNNN in it."""
    inside = sorted(path.glob("checkpoint_[0-9]*")) if path.is_dir() else []
    return inside[-1] if inside else path


def _file_name(env: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in env)


@functools.cache
def _say_once(text: str) -> None:
    print(f"shoal: {text}", file=sys.stderr, flush=True)
