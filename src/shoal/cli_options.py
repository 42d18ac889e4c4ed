"""The command line's options as dataclasses, and their parsing: every mistake is one line, never a box.

A flag is a field, and its help is the string below it. The algorithm's own dataclass is parsed beside
these, so that each of its hyper-parameters is a flag too.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import json
import re
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, SuppressFixed, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from shoal.elsewhere import meant
from shoal.errors import ShoalError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop: whichever comes first. What a resumed run had before counts too."""

    steps: int | None = None
    """Environment steps of the whole run."""
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
    """Seconds between checkpoints; None leaves it to --checkpoint-every. The end always has one."""
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


def parse(
    parts: Mapping[str, type],
    argv: Sequence[str],
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments -> for each part an instance of its dataclass. Prints help and exits where asked for it.

    defaults: instances whose values hold where nothing is given, for parts whose own shall not.
    Raises ShoalError, with one line, for anything that does not fit.
    """
    defaults = defaults or {}
    argv = bare(argv, "--plot", "--video")
    check_flags(parts, argv)
    fields = [
        (name, cls, dataclasses.field(default=defaults[name]) if name in defaults else dataclasses.field())
        for name, cls in parts.items()
    ]
    command = dataclasses.make_dataclass("Command", fields, frozen=True, kw_only=True)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _registry():
            parsed = tyro.cli(
                command,
                prog=prog,
                description=description,
                args=argv,
                config=(OmitArgPrefixes, SuppressFixed),
            )
    except SystemExit as stop:
        if not stop.code:  # help was asked for
            raise
        raise ShoalError(one_line(box.getvalue(), prog)) from None
    return {name: getattr(parsed, name) for name in parts}


def bare(argv: Sequence[str], *flags: str) -> list[str]:
    """Give flags that stand without a value an empty one: --plot becomes --plot= ."""
    follows = [*argv, "--"][1:]
    return [f"{a}=" if a in flags and n.startswith("--") else a for a, n in zip(argv, follows, strict=True)]


def flags(parts: Mapping[str, type]) -> dict[str, Any]:
    """Every flag -> the type of its field."""
    known: dict[str, Any] = {"--help": bool}
    for cls in parts.values():
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            name = field.name.replace("_", "-")
            known[f"--{name}"] = hints[field.name]
            if hints[field.name] is bool:
                known[f"--no-{name}"] = bool
    return known


def check_flags(parts: Mapping[str, type], argv: Sequence[str]) -> None:
    """Raises ShoalError for the first flag that does not exist, or that only Python can give."""
    known = flags(parts)
    for token in argv:
        flag = token.partition("=")[0].replace("_", "-")
        if not re.match(r"--[a-z]", flag):
            continue
        if flag not in known:
            raise ShoalError(f"unknown option {flag}: {meant(flag[2:], [name[2:] for name in known])}")
        if "Callable" in str(known[flag]):
            raise ShoalError(f"{flag} is a function: it can be given in Python only")


def integer(text: str) -> int:
    """500000, 500_000 or 5e5; raises ValueError for anything else."""
    if re.fullmatch(r"\d+(\.\d*)?e\d+", text) and float(text).is_integer():
        return int(float(text))
    return int(text)


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def whole(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda texts: integer(texts[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def one_line(box: str, prog: str) -> str:
    """What a box of tyro's says, in one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [re.sub(r"^[│|]\s?|\s*[│|]?\s*$", "", row) for row in plain.splitlines() if row.strip()]
    framed = bool(rows) and rows[0][:1] in "╭+"  # else the title is a section of its own
    sections = "\n".join(row for row in rows if row and not re.match(r"[╭╰+]", row))
    sections = [" ".join(s.split()) for s in re.split(r"\n\s*[─-]{5,}\n", sections)]
    message = sections[0 if framed or len(sections) == 1 else 1]
    if found := re.match(r"Error parsing (\S+?): (.*)", message):
        flag, why = found.groups()
        if not flag.startswith("-"):  # an algorithm as a whole: its own words say which setting
            return why
        given = re.search(r"(?:from|arguments:) \[(.*?)\]", why) or re.search(r": ('[^']*')", why)
        form = re.search(rf"helptext: {re.escape(flag)}(?:, \S+)* (\[.*?\]\]|\S+)(?: |$)", " ".join(sections))
        if given and form:
            return f"{flag}: expected {_in_words(form[1])}, got {given[1]}"
        return f"{flag}: {why}"
    if found := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?)\)", message):
        value, flag, choices = found.groups()
        near = did_you_mean(value, re.findall(r"'([^']*)'", choices))
        return f"{flag}: unknown value {value!r}: {near}"
    if found := re.match(r"Missing value for argument [('\s]*([\w-]+)", message):
        return f"{found[1]} needs a value"
    if found := re.match(r"Missing from .*?: (\S+)", message):
        return f"{prog} needs {found[1]}; {prog} --help says more"
    if found := re.match(r"Unrecognized options: (.*)", message):
        return f"unexpected argument {found[1]}"
    return message


def _in_words(form: str) -> str:
    names = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "{None}": "None", "{auto}": "auto"}
    if form.startswith("["):
        return {"[INT [INT ...]]": "whole numbers", "[FLOAT [FLOAT ...]]": "numbers"}.get(form, form)
    parts = [names.get(part, part) for part in form.split("|")]
    return " or ".join(sorted(parts, key=lambda part: part == "None"))


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """["a=1", "b=true", "c=x"] -> {"a": 1, "b": True, "c": "x"}: JSON or Python literals, else text."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ShoalError(f"--env-kwargs: expected key=value, got {pair!r}")
        values[key] = _literal(text)
    return values


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read(text)
    return text


def documented(cls: type) -> list[tuple[str, str, str, str]]:
    """A dataclass's fields as (name, type, default, help): the help is the string below the field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    rows = []
    for i, node in enumerate(body.body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        below = body.body[i + 1] if i + 1 < len(body.body) else None
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = inspect.cleandoc(str(below.value.value))
        default = "" if node.value is None else ast.unparse(node.value)
        rows.append((node.target.id, ast.unparse(node.annotation), default, text))
    return rows
