"""The public face: an algorithm, an environment, a seed, and where to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from shoal import checkpoint
from shoal.assembly import assemble, check, checked_goal
from shoal.counters import value
from shoal.envs.recording import recorded
from shoal.errors import ShoalError
from shoal.evaluation import Evaluation, evaluate
from shoal.execution import Executor, Iteration
from shoal.execution.local import Local
from shoal.execution.unroll import act_row
from shoal.fingerprint import fingerprint
from shoal.judging import Judge
from shoal.metrics import Result
from shoal.policy import Policy
from shoal.progress import Progress
from shoal.recorder import Recorder
from shoal.restoring import Given, restored, resumed, snapshot, take_parameters
from shoal.rundir import RunDir
from shoal.signals import held
from shoal.sinks import check_packages
from shoal.unbroken import Unbroken


class Trainer:
    """Trains one policy.

    algorithm: PPO() or another of `shoal.algorithms`, or a dataclass of yours with `bind`. env: a Gymnasium
    id, a class or function (called with env_kwargs), "jax:NAME", "gymnax:NAME" or a JaxEnv. on: Local(),
    Compiled(), Cluster(), ParameterServer().
    env_kwargs, wrappers, time_limit, vector, journal: see `shoal.envs.resolve`.
    run_dir: a new folder for config, metrics and checkpoints; None keeps everything in memory.
    normalize_observations, scale_rewards: running statistics around the algorithm (`shoal.transforms`).
    checkpoint_every: environment steps, checkpoint_seconds: seconds between checkpoints (both may hold), more
    where one takes more than a ninth of them; keep_checkpoints: how many of the last are kept, beside the
    best. evaluate_every: environment steps between evaluations of evaluate_episodes episodes; the best
    checkpoint is the one that evaluates best.
    threads: XLA's CPU threads, part of the experiment. warm_start: a checkpoint (or a run directory) whose
    parameters to begin with, and the target networks and running statistics that belong to them.
    sinks: "tensorboard", "wandb", "mlflow".
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
        self._given = {
            "env": env,
            "env_kwargs": env_kwargs,
            "wrappers": wrappers,
            "time_limit": time_limit,
            "vector": vector,
            "journal": journal,
        }
        options = {
            "seed": seed,
            "normalize_observations": normalize_observations,
            "scale_rewards": scale_rewards,
            "checkpoint_every": checkpoint_every,
            "checkpoint_seconds": checkpoint_seconds,
            "keep_checkpoints": keep_checkpoints,
            "evaluate_every": evaluate_every,
            "evaluate_episodes": evaluate_episodes,
            "threads": threads,
            "warm_start": warm_start,
            "sinks": sinks,
        }
        check(algorithm, on, options)
        if run_dir is not None:
            check_packages(sinks)
        self._closed = False
        self._unbroken = Unbroken()
        self._iterating = False
        self._progress = Progress()
        self._stopping = False
        self._last: Result | None = None
        self._recorder: Recorder | None = None
        self.events: tuple[str, ...] = ()  # of the last iteration, in words: a runner was lost, ...
        with on.prepared():
            experiment, self.config = assemble(algorithm, self._given, on, options)
            self._agent, self._source = experiment.agent, experiment.source
            self._act = jax.jit(act_row(self._agent))
            self._judge = Judge(evaluate_every, evaluate_episodes, self._play, on.evaluator(experiment))
            self._run = on.start(experiment)
            try:
                if warm_start is not None:
                    take_parameters(self, warm_start)
                if run_dir is not None:
                    self._recorder = Recorder(RunDir.create(run_dir, self.config), 0, 0)
                    if warm_start is not None:
                        self.save()  # a resume must not look there again, where it may have gone on
            except BaseException:
                self._release()
                raise

    # -- learning ----------------------------------------------------------------------------------------

    def train(self) -> Result:
        """One iteration: a fragment of every environment, and the update (or the gradient steps) it earns.

        Ctrl-C raises KeyboardInterrupt after it, where the run can be saved or go on; a second one, in its
        middle.
        """
        self._check_open()
        self._unbroken.check()
        begun = time.perf_counter()
        with held():
            self._iterating = True
            iteration = self._run.iterate()
            self._iterating = False
            with self._unbroken.step():
                return self._take(iteration, self._run.learner.env_steps, begun)

    def _take(self, iteration: Iteration, env_steps: int, begun: float) -> Result:
        """What follows an iteration that began at `begun`: its result, its row, evaluations, checkpoints."""
        row = self._progress.take(iteration, env_steps, time.perf_counter() - begun)
        verdicts = self._judge.take(env_steps, self._params)
        for verdict in verdicts:  # there are two only where a run has come from elsewhere: the last is told
            row |= verdict.row()
        self._progress.seconds += time.perf_counter() - begun
        row["timing/seconds"] = self._progress.seconds
        self._last, self.events = Result(row), tuple(iteration.events)
        if self._recorder is not None:
            self._recorder.take(
                self._last, self.events, verdicts, self._judge.waiting, lambda: snapshot(self)
            )
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
        `target_return` over the last 100 episodes, whichever comes first; then save. Without any of them: the
        goal that the run directory knows from before.

        on_result is called after each iteration. Returns the last Result, with the verdict of an evaluation
        that was still under way; where a restored run stands at the goal already, its standing.
        """
        self._check_open()
        if on_result is not None and not callable(on_result):
            raise ShoalError(f"on_result must be a function of a Result, got {on_result!r}")
        goal = self._aim({"steps": steps, "seconds": seconds, "target_return": target_return})
        steps, seconds, target_return = goal["steps"], goal["seconds"], goal["target_return"]
        self._stopping = False
        done = lambda: (  # noqa: E731
            self._stopping
            or (steps is not None and self._progress.env_steps >= steps)
            or (seconds is not None and self._progress.seconds >= seconds)
            or (target_return is not None and self.reached(target_return))
        )
        while not done():
            with held():
                result = self.train()
                if on_result is not None:
                    on_result(result)
        if self._last is None:
            self._last = Result(self._progress.summary())
        self._finish(done=not self._stopping)
        return self._last

    def _aim(self, goal: dict[str, Any]) -> dict[str, Any]:
        """The goal, or where there is none, the one from before; noted in the run directory."""
        run = None if self._recorder is None else self._recorder.run
        if run is not None and all(limit is None for limit in goal.values()):
            goal |= run.goal or {}
        goal = checked_goal(goal)
        if run is not None:
            run.write_goal(goal)
        return goal

    def _finish(self, *, done: bool) -> None:
        """Save; and where the run has reached its goal, say so."""
        self._unbroken.check()
        verdict = self._judge.ahead() if done else None
        if verdict is not None and self._last is not None:
            self._last = Result({**self._last, **verdict.row()})
        if self._recorder is not None:
            self._recorder.checkpoint(self._progress.env_steps, lambda: snapshot(self))
            if verdict is not None:
                self._recorder.judge(verdict)
            if done:
                self._recorder.run.write_summary(self.summary())

    def stop(self) -> None:
        """Let `fit` return after the iteration in hand. Safe to call from a signal handler or a thread."""
        self._stopping = True

    def reached(self, target_return: float) -> bool:
        """Whether the mean return over the last 100 episodes (100 must have ended) is at least this."""
        return self._progress.reached(target_return)

    # -- using what was learned --------------------------------------------------------------------------

    def evaluate(
        self, episodes: int = 20, *, explore: bool = False, video: str | Path | None = None
    ) -> Evaluation:
        """Whole episodes with the present policy, on environments and seeds of their own (always the same).

        explore: sample actions instead of taking the most likely. video: a folder for a recording of
        the first episode. Nothing of the training changes.
        """
        if video is not None:
            self._play(self._params(), 1, explore, recorded(self._given, Path(video)))
        return self._play(self._params(), episodes, explore)

    def policy(self) -> Policy:
        """The present policy alone: acts, saves and loads by itself."""
        return Policy(self._agent, self._params(), self._source.spec, self.config, self.config["seed"])

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
        return fingerprint(self._run.learner.state.params)

    @property
    def updates(self) -> int:
        """Optimizer steps taken so far."""
        return value(self._run.learner.state.updates)

    def summary(self) -> dict[str, Any]:
        """Where the run stands."""
        return {**self._progress.summary(), "fingerprint": self.fingerprint()}

    def _params(self) -> Any:
        """Those that act."""
        return self._run.learner.acting()

    def _play(self, params: Any, episodes: int, explore: bool = False, source: Any = None) -> Evaluation:
        how = partial(evaluate, self._act, self._agent.begin, params, source or self._source, episodes)
        return how(seed=self.config["seed"], explore=explore)

    def _acting(self) -> Policy:
        if not hasattr(self, "_policy"):
            self._policy = self.policy()
        self._policy.params = self._params()
        return self._policy

    # -- saving and resuming -----------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path | None:
        return None if self._recorder is None else self._recorder.run.path

    def save(self, path: str | Path | None = None) -> Path:
        """Save everything that training needs to go on exactly: to `path`, or into the run directory. Raises
        ShoalError after an iteration that broke off in its middle, and where the Trainer is closed."""
        self._check_open()
        self._unbroken.check()
        if path is None:
            if self._recorder is None:
                raise ShoalError("save needs a path, since this Trainer has no run_dir")
            return self._recorder.checkpoint(self._progress.env_steps, lambda: snapshot(self))
        checkpoint.save(path, *snapshot(self))
        return Path(path)

    @staticmethod
    def restore(
        path: str | Path,
        *,
        on: Executor | None = None,
        algorithm: Any = None,
        env: Any = None,
        wrappers: Sequence[Any] | None = None,
        run_dir: str | Path | None = None,
        trust_imports: bool = False,
        best: bool = False,
    ) -> Trainer:
        """A Trainer that continues from a checkpoint (or a run directory's last one, or its best one), bit
        for bit.

        on: where it goes on, if not where it was: with as many environments and groups, on other runners of
        a Cluster, on a Cluster in the place of Local, or over another mesh (then the same to rounding).
        algorithm, env, wrappers: must be given again where they were, or held, functions of yours; the
        settings must be as they were.
        trust_imports: let names that the checkpoint gives be imported.
        """
        given = Given(on, algorithm, env, wrappers, trust_imports)
        return restored(Trainer, path, given, run_dir, best=best)

    @staticmethod
    def resume(
        run_dir: str | Path,
        *,
        on: Executor | None = None,
        algorithm: Any = None,
        env: Any = None,
        wrappers: Sequence[Any] | None = None,
        trust_imports: bool = False,
    ) -> Trainer:
        """A Trainer that goes on in a run directory from its last good checkpoint (or from the start, where
        there is none yet); what was written after that checkpoint is cut first. Arguments: see `restore`."""
        return resumed(Trainer, run_dir, Given(on, algorithm, env, wrappers, trust_imports))

    def _check_open(self) -> None:
        if self._closed:
            raise ShoalError("this Trainer is closed: it trains and saves no more")

    def close(self) -> None:
        """Save what the run directory's last checkpoint lacks, then close the environments, what runs
        elsewhere, and the run directory; a closed Trainer trains no more. Closing twice is harmless.

        A `with` block that raises does not save: the last checkpoint stands, as it does after an iteration
        that broke off.
        """
        try:
            whole = self._unbroken.whole and not self._iterating
            if not self._closed and self._recorder is not None and whole:
                self._recorder.catch_up(self._progress.env_steps, lambda: snapshot(self))
        finally:
            self._release()

    def _release(self) -> None:
        """`close`, and no more."""
        if self._closed:
            return
        self._closed = True
        try:
            self._judge.close()
            self._run.close()
        finally:
            if self._recorder is not None:
                self._recorder.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        (self._release if error else self.close)()
