"""The public face: an algorithm, an environment, a seed, and where to run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shoal import checkpoint
from shoal.config import (
    algorithm_from_json,
    algorithm_to_json,
    environment_of,
    environment_to_json,
    executor_from_json,
    executor_to_json,
    spec_from_json,
    spec_to_json,
    versions,
)
from shoal.counters import value
from shoal.envs import resolve
from shoal.envs.recording import recorded
from shoal.errors import ShoalError
from shoal.evaluation import Evaluation, evaluate
from shoal.execution import Executor, Iteration
from shoal.execution.local import Local
from shoal.execution.unroll import act_row
from shoal.fingerprint import fingerprint
from shoal.metrics import Episodes, Result
from shoal.policy import Policy
from shoal.recipe import Experiment, Recipe
from shoal.recorder import Recorder
from shoal.rundir import RunDir
from shoal.runtime import configure
from shoal.sinks import check_sinks


class Trainer:
    """Trains one policy.

    algorithm: PPO(), A2C(), REINFORCE() or a dataclass of yours with `bind`. env: a Gymnasium id, a class,
    a callable without arguments, "jax:NAME", "gymnax:NAME" or a JaxEnv. on: Local(), Compiled().
    env_kwargs, wrappers, time_limit, vector, journal: see `shoal.envs.resolve`.
    run_dir: a new folder for config, metrics and checkpoints; None keeps everything in memory.
    normalize_observations, scale_rewards: running statistics around the algorithm (`shoal.transforms`).
    checkpoint_every: environment steps, checkpoint_seconds: seconds between checkpoints (both may hold);
    keep_checkpoints: how many of the last are kept, beside the best. evaluate_every: environment steps
    between evaluations of evaluate_episodes episodes; the best checkpoint is the one that evaluates best.
    threads: XLA's CPU threads, part of the experiment. warm_start: a checkpoint whose parameters to begin
    with. sinks: "tensorboard", "wandb", "mlflow".
    """

    def __init__(
        self,
        algorithm: Any,
        env: Any,
        *,
        seed: int = 0,
        on: Executor | None = None,
        run_dir: str | Path | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[Any] = (),
        time_limit: int | None = None,
        vector: bool = False,
        journal: str = "auto",
        normalize_observations: bool = False,
        scale_rewards: bool = False,
        checkpoint_every: int | None = None,
        checkpoint_seconds: float | None = 60.0,
        keep_checkpoints: int = 3,
        evaluate_every: int | None = None,
        evaluate_episodes: int = 20,
        threads: int = 1,
        warm_start: str | Path | None = None,
        sinks: Sequence[str] = ("tensorboard",),
    ) -> None:
        on = on or Local()
        described = {"algorithm": algorithm_to_json(algorithm), "on": executor_to_json(on)}
        for name, number, least in (
            ("seed", seed, 0),
            ("keep_checkpoints", keep_checkpoints, 1),
            ("evaluate_episodes", evaluate_episodes, 1),
            ("threads", threads, 1),
        ):
            if number < least:
                raise ShoalError(f"{name} must be at least {least}, got {number}")
        check_sinks(sinks)
        on.prepare()
        self._threads = configure(threads)
        self._given = {
            "env_kwargs": env_kwargs,
            "wrappers": wrappers,
            "time_limit": time_limit,
            "vector": vector,
        }
        self._given |= {"env": env, "journal": journal}
        self._source = resolve(**self._given)
        spec = self._source.spec
        self.config: dict[str, Any] = {
            **described,
            "env": environment_to_json(self._source, self._given),
            "spec": spec_to_json(spec),
            "seed": seed,
            "journal": self._source.journal,
            "normalize_observations": normalize_observations,
            "scale_rewards": scale_rewards,
            "checkpoint_every": checkpoint_every,
            "checkpoint_seconds": checkpoint_seconds,
            "keep_checkpoints": keep_checkpoints,
            "evaluate_every": evaluate_every,
            "evaluate_episodes": evaluate_episodes,
            "threads": self._threads,
            "warm_start": None if warm_start is None else str(warm_start),
            "sinks": list(sinks),
            "run_id": secrets.token_hex(4),
            "versions": versions(),
        }
        recipe = Recipe(
            algorithm=algorithm,
            env=self._source.reference or {**self._given, "journal": self._source.journal},
            normalize=normalize_observations,
            scale=scale_rewards,
            threads=self._threads,
        )
        experiment = Experiment.of(recipe, seed, self._source)
        self._agent = experiment.agent
        self._act = jax.jit(act_row(self._agent))
        self._run = on.start(experiment)
        self._episodes = Episodes()
        self._iteration = 0
        self._env_steps = 0
        self._elapsed = 0.0
        self._evaluated_at = 0
        self._stopping = False
        self._last: Result | None = None
        if warm_start is not None:
            self._take_parameters(warm_start)
        self._recorder: Recorder | None = None
        if run_dir is not None:
            self._recorder = Recorder(RunDir.create(run_dir, self.config), 0, 0)

    # -- learning ----------------------------------------------------------------------------------------

    def train(self) -> Result:
        """One iteration: a fragment of every environment and one update."""
        begun = time.perf_counter()
        iteration = self._run.iterate()
        return self._take(iteration, value(self._run.state.env_steps), begun)

    def _take(self, iteration: Iteration, env_steps: int, begun: float) -> Result:
        """What follows an iteration that began at `begun`: its result, its row, evaluations, checkpoints."""
        for fragment in iteration.fragments:
            self._episodes.add(*fragment)
        before, self._env_steps = self._env_steps, env_steps
        self._iteration += 1
        row: dict[str, Any] = {
            "iteration": self._iteration,
            "env_steps": self._env_steps,
            "episodes": self._episodes.count,
            "episode_return_mean": self._episodes.mean_return(),
            "episode_length_mean": self._episodes.mean_length(),
            **{name: iteration.metrics[name] for name in sorted(iteration.metrics)},
            **{f"env/{name}": number for name, number in iteration.info.items()},
        }
        _refuse_divergence(row, self._iteration)
        seconds = time.perf_counter() - begun
        row |= {f"timing/{name}": spent for name, spent in iteration.spent.items()}
        row["timing/steps_per_second"] = (self._env_steps - before) / seconds
        evaluation = self._evaluate_if_due()
        if evaluation is not None:
            row |= {"evaluation/return_mean": evaluation.mean, "evaluation/return_std": evaluation.std}
        self._elapsed += time.perf_counter() - begun
        row["timing/seconds"] = self._elapsed
        self._last = Result(row)
        if self._recorder is not None:
            self._recorder.take(self._last, evaluation, self._snapshot)
        return self._last

    def fit(
        self,
        steps: int | None = None,
        *,
        seconds: float | None = None,
        target_return: float | None = None,
        on_result: Callable[[Result], None] | None = None,
    ) -> Result:
        """Train until `steps` environment steps in all, `seconds` in all, or a mean return of
        `target_return` over the last 100 episodes, whichever comes first; then save.

        on_result is called after each iteration. Returns the last Result.
        """
        if steps is None and seconds is None and target_return is None:
            raise ShoalError("fit needs a goal: steps=, seconds= or target_return=")
        self._stopping = False
        done = lambda: (  # noqa: E731
            self._stopping
            or (steps is not None and self._env_steps >= steps)
            or (seconds is not None and self._elapsed >= seconds)
            or (target_return is not None and self.reached(target_return))
        )
        while not done():
            result = self.train()
            if on_result is not None:
                on_result(result)
        if self._last is None:
            raise ShoalError(f"nothing to do: the run already stands at {self._env_steps} environment steps")
        self._finish(done=not self._stopping)
        return self._last

    def _finish(self, *, done: bool) -> None:
        """Save; and where the run has reached its goal, say so."""
        if self._recorder is not None:
            self._recorder.checkpoint(self._env_steps, self._snapshot)
            if done:
                self._recorder.run.write_summary(self.summary())

    def stop(self) -> None:
        """Let `fit` return after the iteration in hand. Safe to call from a signal handler or a thread."""
        self._stopping = True

    def reached(self, target_return: float) -> bool:
        """Whether the mean return over the last 100 episodes (100 must have ended) is at least this."""
        return self._episodes.count >= self._episodes.window and self._episodes.mean_return() >= target_return

    # -- using what was learned --------------------------------------------------------------------------

    def evaluate(
        self, episodes: int = 20, *, explore: bool = False, video: str | Path | None = None
    ) -> Evaluation:
        """Whole episodes with the present policy, on environments and seeds of their own (always the same).

        explore: sample actions instead of taking the most likely. video: a folder for a recording of
        the first episode. Nothing of the training changes.
        """
        params = self._agent.policy(self._run.state)
        run = partial(
            evaluate, self._act, self._agent.begin, params, seed=self.config["seed"], explore=explore
        )
        if video is not None:
            run(recorded(self._given, Path(video)), 1)
        return run(self._source, episodes)

    def policy(self) -> Policy:
        """The present policy alone: acts, saves and loads by itself."""
        params = self._agent.policy(self._run.state)
        return Policy(self._agent, params, self._source.spec, self.config, self.config["seed"])

    def compute_single_action(
        self, obs: Any, *, explore: bool = False, first: bool = False, mask: Any = None
    ) -> Any:
        """See `Policy.compute_single_action`; follows the parameters as training goes on."""
        return self._acting().compute_single_action(obs, explore=explore, first=first, mask=mask)

    def compute_actions(self, obs: Any, **how: Any) -> tuple[Any, Any]:
        """See `Policy.compute_actions`."""
        return self._acting().compute_actions(obs, **how)

    def fingerprint(self) -> str:
        """SHA-256 of the parameters: equal runs, equal prints."""
        return fingerprint(self._run.state.params)

    def summary(self) -> dict[str, Any]:
        """Where the run stands."""
        return {
            "iteration": self._iteration,
            "env_steps": self._env_steps,
            "episodes": self._episodes.count,
            "seconds": self._elapsed,
            "episode_return_mean": self._episodes.mean_return(),
            "episode_length_mean": self._episodes.mean_length(),
            "fingerprint": self.fingerprint(),
        }

    # -- saving and resuming -----------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path | None:
        return None if self._recorder is None else self._recorder.run.path

    def save(self, path: str | Path | None = None) -> Path:
        """Save everything that training needs to go on exactly: to `path`, or into the run directory."""
        if path is None:
            if self._recorder is None:
                raise ShoalError("save needs a path, since this Trainer has no run_dir")
            return self._recorder.checkpoint(self._env_steps, self._snapshot)
        checkpoint.save(path, *self._snapshot())
        return Path(path)

    @staticmethod
    def restore(
        path: str | Path,
        *,
        algorithm: Any = None,
        env: Any = None,
        wrappers: Sequence[Any] | None = None,
        run_dir: str | Path | None = None,
        trust_imports: bool = False,
    ) -> Trainer:
        """A Trainer that continues from a checkpoint (or a run directory's last one), bit for bit.

        algorithm, env, wrappers: must be given again where they were, or held, functions of yours.
        trust_imports: let names that the checkpoint gives be imported.
        """
        place = Path(path)
        is_run = (place / "config.json").exists()
        loaded = (RunDir.read(place).latest_checkpoint() if is_run else None) or checkpoint.load(place)
        if loaded.info.get("kind") != "trainer":
            raise ShoalError(f"{place} holds a policy, not a training run: load it with Policy.load")
        trainer = _rebuild(loaded.info["config"], algorithm, env, wrappers, trust_imports)
        trainer._load(loaded)
        if run_dir is not None:
            run = RunDir.create(run_dir, trainer.config)
            trainer._recorder = Recorder(run, trainer._iteration, trainer._env_steps)
        return trainer

    @staticmethod
    def resume(
        run_dir: str | Path,
        *,
        algorithm: Any = None,
        env: Any = None,
        wrappers: Sequence[Any] | None = None,
        trust_imports: bool = False,
    ) -> Trainer:
        """A Trainer that goes on in a run directory from its last good checkpoint (or from the start, where
        there is none yet); what was written after that checkpoint is cut first."""
        directory = RunDir.open(run_dir)
        try:
            loaded = directory.latest_checkpoint()
            trainer = _rebuild(directory.config, algorithm, env, wrappers, trust_imports)
            if loaded is not None:
                trainer._load(loaded)
            elif directory.config["warm_start"] is not None:
                trainer._take_parameters(directory.config["warm_start"])
            directory.cut(trainer._env_steps)
            trainer._recorder = Recorder(directory, trainer._iteration, trainer._env_steps)
        except BaseException:
            directory.close()
            raise
        return trainer

    def close(self) -> None:
        """Close the environments and the run directory. A closed Trainer trains no more."""
        self._run.close()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- within ------------------------------------------------------------------------------------------

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that training needs to go on exactly: (arrays, what is said of them)."""
        tree = {
            "policies": {"main": jax.device_get(self._run.state)},
            "run": self._run.save(),
            "episodes": self._episodes.save(),
        }
        progress = {
            "iteration": self._iteration,
            "env_steps": self._env_steps,
            "seconds": self._elapsed,
            "evaluated_at": self._evaluated_at,
        }
        return tree, {"kind": "trainer", "config": self.config, "progress": progress}

    def _load(self, loaded: checkpoint.Loaded) -> None:
        progress = loaded.info["progress"]
        self._run.state = checkpoint.restore(self._run.state, loaded.arrays, "policies/main")
        self._run.load(loaded.arrays, "run")
        self._episodes.load(checkpoint.nested(loaded.arrays, "episodes"))
        self._iteration, self._env_steps = progress["iteration"], progress["env_steps"]
        self._elapsed, self._evaluated_at = progress["seconds"], progress["evaluated_at"]

    def _take_parameters(self, path: str | Path) -> None:
        loaded = checkpoint.load(path)
        params = checkpoint.restore(self._run.state.params, loaded.arrays, "policies/main/params")
        self._run.state = self._run.state._replace(params=params)

    def _evaluate_if_due(self) -> Evaluation | None:
        every = self.config["evaluate_every"]
        if not every or self._env_steps // every <= self._evaluated_at // every:
            return None
        self._evaluated_at = self._env_steps
        return self.evaluate(self.config["evaluate_episodes"])

    def _acting(self) -> Policy:
        params = self._agent.policy(self._run.state)
        if not hasattr(self, "_policy"):
            self._policy = self.policy()
        self._policy.params = params
        return self._policy


def _rebuild(
    config: Mapping[str, Any], algorithm: Any, env: Any, wrappers: Sequence[Any] | None, trust_imports: bool
) -> Trainer:
    """A Trainer as the configuration says, without a run directory, standing at the beginning."""
    how = environment_of(config, env, wrappers, trust_imports=trust_imports)
    kept = ("seed", "normalize_observations", "scale_rewards", "checkpoint_every", "checkpoint_seconds")
    kept += ("keep_checkpoints", "evaluate_every", "evaluate_episodes", "threads", "sinks")
    trainer = Trainer(
        algorithm_from_json(config["algorithm"], algorithm, trust_imports=trust_imports),
        on=executor_from_json(config["on"]),
        **how,
        **{name: config[name] for name in kept},
    )
    now, then = trainer.config["spec"], spec_to_json(spec_from_json(config["spec"]))
    if now != then:
        differing = [name for name, value in then.items() if now[name] != value]
        raise ShoalError(
            f"the environment is not the one of this run, {config['spec']['id']}: its {', '.join(differing)} "
            "differ"
        )
    trainer.config = dict(config) | {"threads": trainer.config["threads"]}
    return trainer


def _refuse_divergence(row: Mapping[str, Any], iteration: int) -> None:
    for name, number in row.items():
        if name.startswith("loss/") and not np.isfinite(number):
            raise ShoalError(
                f"training diverged: {name} is {float(number)} in iteration {iteration}; the last checkpoint "
                "is kept. A smaller learning_rate or max_grad_norm may help"
            )
