"""The command line's options as dataclasses: a flag is a field, and its help is the string below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from shoal.errors import ShoalError


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop: whichever comes first. What a resumed run had before counts too."""

    steps: int | None = None
    """Environment steps of the whole run; 500,000 where none of these three is given, nor was before."""
    target_return: float | None = None
    """Mean return of the last 100 training episodes."""
    seconds: float | None = None
    """Wall-clock seconds of the whole run."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ShoalError(f"--steps must be at least 1, got {self.steps}")
        if self.seconds is not None and not self.seconds >= 0:
            raise ShoalError(f"--seconds must be at least 0, got {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to run, where, and what to keep."""

    env: Annotated[str, Positional, arg(metavar="ENV")]
    """A Gymnasium id ("CartPole-v1"), a JAX environment ("jax:CartPole-v1") or your own ("module:Name")."""
    seed: int = 0
    """The run's seed: equal seeds and settings give equal runs."""
    run_dir: str | None = None
    """Where everything about the run is written; None is a new runs/<env>-<algorithm>-<seed>."""
    on: Literal["local", "compiled", "cluster", "parameter-server"] = "local"
    """Where it runs: in this process, as one compiled program (environments written in JAX only), on Ray with
    the learner here, or on Ray with workers that learn."""
    envs: int | None = None
    """Environments in all; None is 8, for compiled 64."""
    groups: int | None = None
    """Groups that the environments are divided into. Part of the experiment: another number, another run.
    None is 1, on Ray one for each runner or worker."""
    mesh: str | None = None
    """Learn on several devices of this process, as data=N,model=M: minibatches are split over data,
    parameters over model. Without a GPU, the CPU shows itself as so many devices."""
    seeds: tuple[int, ...] = ()
    """Train one run for each of these seeds, all in one program (compiled only), in place of --seed."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments for the environment, as key=value ..."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around each environment, innermost first, as module:Name ..."""
    time_limit: int | None = None
    """Cut episodes after this many steps; None keeps the environment's own limit."""
    vector: bool = False
    """Use the environment's own vector version, if it has one, seeded as a whole. It pays with many
    environments: PPO on CartPole was twice as fast with 64, and a little slower with 8."""
    normalize_observations: bool = False
    """Shift and scale observations by running statistics. Helps continuous control."""
    scale_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return. Helps continuous control."""
    checkpoint_every: int | None = None
    """Environment steps between checkpoints, beside --checkpoint-seconds."""
    checkpoint_seconds: float | None = 60.0
    """Seconds between checkpoints, more where one takes long; None leaves it to --checkpoint-every. The end
    always has one."""
    keep_checkpoints: int = 3
    """Checkpoints kept beside the best one."""
    evaluate_every: int | None = None
    """Environment steps between evaluations; None never evaluates while training."""
    evaluate_episodes: int = 20
    """Episodes of each evaluation. The best checkpoint is the one that evaluates best."""
    threads: int = 1
    """XLA's CPU threads. Part of the experiment: another number gives other bits."""
    sink: tuple[str, ...] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow."""
    plot: str | None = None
    """Draw the learning curve to this file at the end; a bare --plot draws RUN/curve.png."""


@dataclass(frozen=True, kw_only=True)
class OnCluster:
    """With --on cluster: env runners on Ray, and the learner in this process or learners there. What is said
    of a runner below holds for a worker of a parameter server too."""

    runners: int | Literal["auto"] | None = None
    """Env runners (2 unless told); auto follows who waits for whom. Not part of a synchronous experiment."""
    min_runners: int | None = None
    """With --runners auto: how many there are at first and at least (1)."""
    max_runners: int | None = None
    """With --runners auto: how many there are at most; None is one for each group."""
    address: str | None = None
    """A running Ray cluster to join: host:port, or auto for one on this machine. None starts Ray here."""
    inline: bool = False
    """No Ray: all of it in this process, in order, for a debugger."""
    cpus: float | None = None
    """CPUs that each runner asks Ray for (1 unless told)."""
    resources: tuple[str, ...] = ()
    """What else each runner asks Ray for, as NAME=AMOUNT ..."""
    strategy: Literal["SPREAD", "DEFAULT", "PACK", "STRICT_PACK", "STRICT_SPREAD"] | None = None
    """Runners spread over the machines (SPREAD, unless told), or one machine filled after another (DEFAULT);
    the others hold the room of all runners as a placement group."""
    per_update: int | None = None
    """Asynchronous algorithms: fragments that an update learns from; None is half of the groups."""
    policy_actors: int | None = None
    """Asynchronous algorithms: actors that act for all runners, which then only step environments."""
    policy_cpus: float | None = None
    """CPUs that each policy actor asks Ray for (1 unless told)."""
    policy_gpus: float | None = None
    """GPUs that each policy actor asks Ray for (0 unless told)."""
    replay_shards: int | None = None
    """Asynchronous algorithms with a replay: actors that keep it (0 unless told: it is kept here)."""
    learners: str | None = None
    """Processes that share each update, as data=N,model=M: minibatches are split over data, parameters over
    model. Their number is no part of the experiment, but to rounding. With none this process learns."""
    learner_cpus: float | None = None
    """CPUs that each learner asks Ray for (1 unless told)."""
    learner_gpus: int | None = None
    """GPUs that each learner asks Ray for, 0 (unless told) or 1: it is then what it learns on."""
    learner_memory: int | None = None
    """Bytes that each learner may hold of parameters, optimizer and gradients; more is refused at once."""
    patience: float | None = None
    """A runner that takes so many times the longest fragment of late, and 3 s, is taken for hung (10)."""
    strikes: int | None = None
    """How often in a row a group may fail before it is given up or the run ends (3)."""


@dataclass(frozen=True, kw_only=True)
class OnServer:
    """With --on parameter-server: workers on Ray compute gradients, which go to shards of the parameters."""

    workers: int | None = None
    """Workers (2 unless told). Not part of a synchronous experiment."""
    shards: int | None = None
    """Parts that parameters and optimizer are divided into (1 unless told)."""
    mode: Literal["async", "stale", "sync"] | None = None
    """async (unless told) applies each gradient when it comes; stale likewise, but no group runs far ahead;
    sync makes the updates of a single process."""
    server_staleness: int | None = None
    """With --mode stale: so many fragments a group may be ahead of the slowest when it begins one (1)."""
    compression: Literal["none", "bfloat16", "top-k"] | None = None
    """How gradients travel: in full (none, unless told), halved, or only their largest numbers."""
    keep: float | None = None
    """With --compression top-k: the share of the numbers that travels (0.01)."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Without --steps, --target-return and --seconds it goes on to where it was going."""

    run: Annotated[str, Positional, arg(metavar="RUN")]
    """The run directory."""
    on: Literal["local", "cluster", "parameter-server"] | None = None
    """Where it goes on, if not where it was: local and cluster can be exchanged, unless asynchronous."""
    mesh: str | None = None
    """Go on over these devices of this process, as data=N,model=M, or none: the same run to rounding."""
    trust_imports: bool = False
    """Let the run's configuration import modules of yours (environment, wrappers, algorithm)."""
    plot: str | None = None
    """Draw the learning curve to this file at the end; a bare --plot draws RUN/curve.png."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Play episodes with a trained policy."""

    run: Annotated[str, Positional, arg(metavar="RUN")]
    """A run directory (its latest checkpoint) or a checkpoint."""
    best: bool = False
    """Of a run directory the checkpoint that evaluated best."""
    episodes: int = 20
    """Episodes to play."""
    explore: bool = False
    """Sample actions instead of taking the most likely ones."""
    video: str | None = None
    """Record the first episode into this folder; a bare --video records into RUN/videos."""
    trust_imports: bool = False
    """Let the run's configuration import modules of yours (environment, wrappers, algorithm)."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """What each device would hold."""

    env: Annotated[str, Positional, arg(metavar="ENV")]
    """The environment, as for `shoal train`."""
    mesh: str | None = None
    """Devices of one process, as data=N,model=M."""
    learners: str | None = None
    """Learners on a cluster, as data=N,model=M: a process each."""
    envs: int = 8
    """Environments in all: an update's minibatches follow from them."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments for the environment, as key=value ..."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around each environment, innermost first, as module:Name ..."""
    normalize_observations: bool = False
    """With running statistics of the observations."""
    scale_rewards: bool = False
    """With running statistics of the rewards."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw learning curves."""

    runs: Annotated[tuple[str, ...], Positional, arg(metavar="RUN ...")]
    """Run directories; runs that differ only in the seed are drawn as one curve with its spread."""
    output: str = "curve.png"
    """The picture to write; its ending picks the format."""
    x: Literal["steps", "seconds"] = "steps"
    """What runs along the horizontal axis."""


@dataclass(frozen=True, kw_only=True)
class List:
    """List runs."""

    folder: Annotated[str, Positional, arg(metavar="FOLDER")] = "runs"
    """Where to look, at any depth."""


# What `shoal train` (beside the algorithm's dataclass) and `shoal resume` take.
TRAIN: dict[str, type] = {"stop": Stopping, "run": Run, "cluster": OnCluster, "server": OnServer}
RESUME: dict[str, type] = {"stop": Stopping, "resume": Resume, "cluster": OnCluster, "server": OnServer}
