"""The command line: parsing, one line for each mistake, and whole runs of the program."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from shoal import (
    Cluster,
    Local,
    algorithms,
    cli,
    cli_cluster,
    cli_list,
    cli_options,
    cli_parsing,
    cli_train,
    elsewhere,
)
from shoal.errors import ShoalError

TINY = ("--rollout-length", "16", "--epochs", "1", "--minibatches", "1", "--hidden", "8", "--envs", "2")
TINY += ("--sink", "tensorboard", "--seed", "3")
ITERATION = 2 * 16  # rows of one iteration of TINY; a little fewer steps


def run(*arguments: str, expect: int = 0) -> None:
    assert cli.main(list(arguments)) == expect


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An algorithm's."""

    rate: float = 0.5
    """How fast."""
    sizes: tuple[int, ...] = (1, 2)
    """How wide."""
    kind: Literal["tanh", "relu"] = "tanh"
    shared: bool = False
    """Or not."""
    limit: int | None = None


PARTS = {"stop": cli_options.Stopping, "run": cli_options.Run, "x": Settings}


class TestParsing:
    def parse(self, *argv: str) -> dict[str, object]:
        return cli_parsing.parse(PARTS, argv, "shoal train x", "Train x.")

    def test_everything_lands_where_it_belongs(self) -> None:
        parsed = self.parse(
            *(
                "CartPole-v1",
                "--steps",
                "5e5",
                "--target-return",
                "475",
                "--rate",
                "3e-4",
                "--sizes",
                "8",
                "9",
            ),
            *("--shared", "--limit", "None", "--env_kwargs", "a=1", "b=x=y", "--wrapper", "m:A", "m:B"),
        )
        assert parsed["stop"] == cli_options.Stopping(steps=500_000, target_return=475.0)
        assert parsed["x"] == Settings(rate=3e-4, sizes=(8, 9), shared=True)
        run = parsed["run"]
        assert isinstance(run, cli_options.Run)
        assert (run.env, run.env_kwargs, run.wrapper) == ("CartPole-v1", ("a=1", "b=x=y"), ("m:A", "m:B"))

    def test_defaults_are_the_dataclasses_own(self) -> None:
        parsed = self.parse("E")
        assert parsed == {"stop": cli_options.Stopping(), "run": cli_options.Run(env="E"), "x": Settings()}

    @pytest.mark.parametrize(
        ("argv", "plot"),
        [
            (["E"], None),
            (["E", "--plot"], ""),
            (["E", "--plot", "--seed", "1"], ""),
            (["E", "--plot", "a.png"], "a.png"),
            (["E", "--plot=a.png"], "a.png"),
        ],
    )
    def test_plot_may_stand_bare(self, argv: list[str], plot: str | None) -> None:
        run = self.parse(*argv)["run"]
        assert isinstance(run, cli_options.Run)
        assert run.plot == plot

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "shoal train x needs ENV; shoal train x --help says more"),
            (["E", "F"], "unexpected argument F"),
            (["E", "--stpes", "4"], "unknown option --stpes: did you mean '--steps'?"),
            (
                ["--target_retrun", "4", "E"],
                "unknown option --target-retrun: did you mean '--target-return'?",
            ),
            (["E", "--qqq"], "unknown option --qqq: --help lists them all"),
            (["E", "--total-timesteps", "9"], "unknown option --total-timesteps: here it is --steps"),
            (["E", "--steps", "-5"], "--steps must be at least 1, got -5"),
            (["E", "--steps"], "--steps needs a value"),
            (["E", "--steps", "many"], "--steps: expected a whole number or None, got 'many'"),
            (["E", "--steps", "1.5"], "--steps: expected a whole number or None, got '1.5'"),
            (["E", "--rate", "fast"], "--rate: expected a number, got 'fast'"),
            (["E", "--sizes", "4", "a"], "--sizes: expected whole numbers, got '4', 'a'"),
            (["E", "--kind", "tnh"], "--kind: unknown value 'tnh': did you mean 'tanh'?"),
            (
                ["E", "--on", "moon"],
                "--on: unknown value 'moon': known are cluster, compiled, local, parameter-server",
            ),
        ],
    )
    def test_mistakes_are_one_line(self, argv: list[str], message: str) -> None:
        with pytest.raises(ShoalError) as caught:
            self.parse(*argv)
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("algorithm", "flag", "hint"),
        [
            ("ppo", "norm-adv", "here it is --normalize-advantages"),
            ("ppo", "no-norm-adv", "here it is --no-normalize-advantages"),
            ("ppo", "clip-vloss", "here it is --value-clip (in reward units)"),
            ("impala", "clip-vloss", "there is none here (elsewhere: --value-clip)"),
            ("ppo", "track", "here it is --sink (as in --sink wandb)"),
            ("ppo", "capture-video", "shoal evaluate RUN --video records an episode"),
            ("ppo", "n-env-runners", "here it is --runners (with --on cluster)"),
            ("ppo", "n-steps", "here it is --rollout-length (rows of each environment)"),
            ("ppo", "use-sde", "there is no state-dependent exploration here"),
            ("dqn", "n-steps", "here it is --n-step"),
            ("dqn", "start-e", "here it is --epsilon-start"),
            ("sarsa", "end-e", "here it is --epsilon-end"),
            ("dqn", "exploration-fraction", "here it is --epsilon-steps (in environment steps)"),
            ("dqn", "tau", "here it is --target-tau"),
            ("dqn", "lr-critic", "--help lists them all"),
            ("sac", "policy-lr", "here it is --learning-rate"),
            ("td3", "q-lr", "here it is --critic-learning-rate"),
            ("sac", "ent-coef", "here it is --initial-temperature"),
            (
                "td3",
                "ent-coef",
                "there is none here (elsewhere: --entropy-coefficient, --initial-temperature)",
            ),
            ("td3", "learnig-rate", "did you mean '--learning-rate'?"),
            ("td3", "action-space", "--help lists them all"),
        ],
    )
    def test_what_other_libraries_call_it(self, algorithm: str, flag: str, hint: str) -> None:
        parts = {**cli_options.TRAIN, algorithm: algorithms.load(algorithm)}
        with pytest.raises(ShoalError) as caught:
            cli_parsing.check_flags(parts, [f"--{flag}"])
        assert str(caught.value) == f"unknown option --{flag}: {hint}"

    def test_only_what_exists_is_proposed(self) -> None:
        """And what every algorithm has needs no translation."""
        every = [
            {flag[2:] for flag in cli_parsing.flags({**cli_options.TRAIN, name: algorithms.load(name)})}
            for name in algorithms.REGISTRY
        ]
        proposed = {name for names in elsewhere._HERE.values() for name in names}
        assert proposed | elsewhere._COUNTED.keys() <= set().union(*every)
        assert elsewhere._COUNTED.keys() <= proposed
        words = elsewhere._HERE.keys() | elsewhere._NONE.keys()
        assert len(words) == len(elsewhere._HERE) + len(elsewhere._NONE)
        assert not words & set.intersection(*every)

    def test_functions_are_for_python_only(self) -> None:
        with pytest.raises(ShoalError, match="--network is a function: it can be given in Python only"):
            cli_parsing.parse({"ppo": algorithms.load("ppo")}, ["--network", "x"], "shoal train ppo", "")

    def test_help_shows_every_flag_and_its_docstring(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            self.parse("--help")
        assert not stop.value.code
        shown = capsys.readouterr().out
        assert f"{cli_train.STEPS:,}" in shown, "what is done without any goal"
        for part in (
            "--rate",
            "How fast.",
            "--sizes",
            "How wide.",
            "--no-shared",
            "--target-return",
            "--plot",
        ):
            assert part in shown, part

    def test_key_values(self) -> None:
        pairs = ["a=1", "b=true", "c=x", "d=[1, 2]", "e=(1, 'y')", "f=x=y", "g=None", "h=-0.5"]
        assert cli_parsing.key_values(pairs) == {
            **{"a": 1, "b": True, "c": "x", "d": [1, 2]},
            **{"e": (1, "y"), "f": "x=y", "g": None, "h": -0.5},
        }
        for wrong in ("a", "=1", "a b=1"):
            with pytest.raises(ShoalError, match="key=value"):
                cli_parsing.key_values([wrong])

    def test_documented(self) -> None:
        assert cli_parsing.documented(Settings)[:3] == [
            ("rate", "float", "0.5", "How fast."),
            ("sizes", "tuple[int, ...]", "(1, 2)", "How wide."),
            ("kind", "Literal['tanh', 'relu']", "'tanh'", ""),
        ]

    def test_all_algorithms_settings_have_help(self) -> None:
        for name in algorithms.REGISTRY:
            for setting, _, _, text in cli_parsing.documented(algorithms.load(name)):
                assert len(text) > 20, f"{name}.{setting}"


class TestTheProgram:
    def test_help_and_import_need_no_jax(self) -> None:
        code = (
            "import sys; from shoal import cli; code = cli.main(['--help']);"
            "heavy = {'jax', 'numpy', 'gymnasium', 'tyro', 'rich', 'ray'} & set(sys.modules);"
            "assert code == 0 and not heavy, (code, heavy)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for command in cli.COMMANDS:
            assert f"  {command}" in done.stdout

    def test_listing_needs_no_jax(self, tmp_path: Path) -> None:
        code = (
            "import sys; from shoal import cli; code = cli.main(['list', sys.argv[1]]);"
            "assert code == 0 and 'jax' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        ("argv", "hint"),
        [
            (["tarin"], "unknown command 'tarin': did you mean 'train'?"),
            (["train"], "the algorithm comes first"),
            (["train", "--seed", "1"], "the algorithm comes first"),
            (["train", "pppo", "CartPole-v1"], "did you mean 'ppo'?"),
            (["train", "ppo", "CartPol-v1"], "did you mean 'CartPole-v1'?"),
            (["train", "ppo", "jax:CartPol-v1"], "did you mean 'jax:CartPole-v1'?"),
            (["train", "ppo", "CartPole-v1", "--learnin-rate", "1"], "did you mean '--learning-rate'?"),
            (["train", "ppo", "CartPole-v1", "--learning-rate", "-1"], "learning_rate"),
            (["train", "ppo", "CartPole-v1", "--envs", "3", "--groups", "2"], "groups"),
            (["train", "ppo", "CartPole-v1", "--on", "compiled"], "jax:CartPole-v1"),
            (["train", "ppo", "CartPole-v1", "--seeds", "0", "1"], "--on compiled"),
            (
                ["train", "ppo", "CartPole-v1", "--runners", "3"],
                "--runners is for --on cluster, and this run",
            ),
            (
                ["train", "ppo", "jax:CartPole-v1", "--on", "compiled", "--inline"],
                "--inline is for --on cluster",
            ),
            (
                ["train", "ppo", "CartPole-v1", "--on", "cluster", "--runners", "0"],
                "a number of at least 1, got 0",
            ),
            (
                ["train", "ppo", "CartPole-v1", "--on", "cluster", "--groups", "3"],
                "groups=3 must divide envs=8",
            ),
            (
                ["train", "ppo", "CartPole-v1", "--on", "cluster", "--inline", "--resources", "far"],
                "NAME=AMOUNT",
            ),
            (["train", "ppo", "CartPole-v1", "--on", "cluster", "--address", "here"], "give it as host:port"),
            (["train", "ppo", "X", "--on", "compiled", "--seeds", "0", "--seconds", "9"], "the same --steps"),
            (["train", "ppo", "CartPole-v1", "--env-kwargs", "gravity"], "key=value"),
            (["train", "ppo", "CartPole-v1", "--env-kwargs", "gravty=1"], "gravty"),
            (["train", "ppo", "CartPole-v1", "--wrapper", "nowhere:W"], "nowhere"),
            (["train", "ppo", "CartPole-v1", "--time-limit", "0"], "time_limit"),
            (["train", "ppo", "CartPole-v1", "--sink", "tensorbord"], "tensorboard"),
            (
                ["train", "ppo", "CartPole-v1", "--steps", "1", "--plot", "x.foo"],
                "--plot: x.foo should end in",
            ),
            (["resume", "nowhere", "--plot", "x.foo"], "--plot: x.foo should end in one of .png, .svg"),
            (
                ["train", "ppo", "CartPole-v1", "--steps", "1", "--sink", "wandb"],
                "pip install 'shoal[wandb]'",
            ),
            (["resume", "nowhere"], "nowhere"),
            (["evaluate", "nowhere"], "nowhere"),
            (["plot", "nowhere"], "nowhere"),
            (["plot"], "at least one run"),
            (["list", "nowhere"], "nowhere"),
            (["show", "pppo"], "did you mean 'ppo'?"),
            (["show"], "shoal show needs one algorithm"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes_are_one_line_and_leave_nothing(
        self,
        argv: list[str],
        hint: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
        run(*argv, expect=2)
        error = capsys.readouterr().err
        assert re.fullmatch(r"shoal: [^\n]+\n", error)
        assert hint in error
        assert list(tmp_path.rglob("*.*")) == []

    def test_new_run_dirs_never_collide(self, tmp_path: Path) -> None:
        names = []
        for _ in range(3):
            folder = cli_train.new_run_dir(tmp_path, "ALE/Pong v5-ppo-0")
            folder.mkdir()
            names.append(folder.name)
        assert names == ["ALE-Pong-v5-ppo-0", "ALE-Pong-v5-ppo-0-2", "ALE-Pong-v5-ppo-0-3"]

    def test_every_setting_of_a_cluster_is_a_flag(self) -> None:
        settings = {field.name for field in dataclasses.fields(Cluster)}
        assert settings == {f.name for f in dataclasses.fields(cli_options.OnCluster)} | {"envs", "groups"}
        flags = ["--runners", "3", "--resources", "far=2", "a=0.5", "--inline", "--cpus", "0.5"]
        parsed = cli_parsing.parse(cli_options.TRAIN, ["E", *flags], "", "")["cluster"]
        given = {"runners": 3, "resources": {"far": 2.0, "a": 0.5}, "inline": True, "cpus": 0.5}
        assert cli_cluster.settings(parsed) == given

    def test_ray_is_begun_as_it_will_be_asked_for(self, tmp_path: Path) -> None:
        """Told from the arguments before anything that takes long is imported, and never where in doubt."""
        wanted = cli_cluster._wanted
        run = ["ppo", "E", "--steps", "9", "--on=cluster", "--runners", "3", "--cpus", "0.5", "--groups", "6"]
        assert wanted("train", run) == Cluster(runners=3, groups=3, cpus=0.5, envs=3)
        assert wanted("train", [*run, "--resources", "far=1", "--address", "h:1"]) == Cluster(
            runners=3, groups=3, cpus=0.5, envs=3, address="h:1", resources={"far": 1.0}
        )
        for no in (["ppo", "E"], [*run, "--help"], [*run, "--runners", "x"], [*run, "--runners", "0"]):
            assert wanted("train", no) is None
        was = {"name": "cluster", "runners": 2, "envs": 8, "groups": 4, "cpus": 2.0}
        (tmp_path / "config.json").write_text(json.dumps({"on": was}))
        assert wanted("resume", [str(tmp_path), "--runners", "4"]) == Cluster(
            runners=4, groups=4, envs=4, cpus=2.0
        )
        assert wanted("resume", [str(tmp_path), "--on", "local"]) is None
        assert wanted("resume", [str(tmp_path / "nowhere")]) is None

    def test_where_a_run_goes_on(self) -> None:
        def moved(was: dict[str, object], *flags: str) -> object:
            parsed = cli_parsing.parse(cli_options.RESUME, ["RUN", *flags], "", "")
            return cli_cluster.moved(parsed["cluster"], parsed["server"], parsed["resume"].on, was)

        local = {"name": "local", "envs": 8, "groups": 4}
        cluster = {**local, "name": "cluster", "runners": 2, "address": "a:1"}
        assert moved(local) is None and moved(cluster) is None
        assert moved(local, "--on", "cluster") == Cluster(envs=8, groups=4)
        assert moved(cluster, "--on", "local") == Local(envs=8, groups=4)
        assert moved(cluster, "--runners", "4") == Cluster(runners=4, envs=8, groups=4, address="a:1")
        with pytest.raises(ShoalError, match="--runners is for --on cluster, and this run is on local"):
            moved(local, "--runners", "4")

    def test_show(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("show", "ppo")
        shown = capsys.readouterr().out
        assert re.search(r"learning_rate +0\.0003 +float +Adam's step size", shown)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 iterations."""
    folder = tmp_path_factory.mktemp("cli") / "whole"
    run("train", "ppo", "CartPole-v1", "--steps", str(20 * ITERATION), "--run-dir", str(folder), *TINY)
    return folder


class TestRuns:
    def test_train_leaves_a_run(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = json.loads((trained / "config.json").read_text())
        assert config["seed"] == 3
        assert config["algorithm"]["settings"]["rollout_length"] == 16
        summary = json.loads((trained / "summary.json").read_text())
        assert summary["env_steps"] >= 20 * ITERATION
        assert cli_list.described(trained) == {
            "run": str(trained),
            "algorithm": "ppo",
            "env": "CartPole-v1",
            "seed": 3,
            "steps": summary["env_steps"],
            "return": summary["episode_return_mean"],
            "state": "done",
        }
        run("list", str(trained.parent))
        assert re.search(r"whole +ppo +CartPole-v1 +3 +\d+ +[\d.]+ +done", capsys.readouterr().out)

    def test_a_run_directory_is_not_used_twice(
        self, trained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(trained.rglob("*"))
        run("train", "ppo", "CartPole-v1", "--steps", "10", "--run-dir", str(trained), *TINY, expect=2)
        assert re.fullmatch(r"shoal: there is already a run in [^\n]+\n", capsys.readouterr().err)
        assert sorted(trained.rglob("*")) == before

    def test_evaluate(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run("evaluate", str(trained), "--episodes", "3")
        assert "over 3 episodes" in capsys.readouterr().out

    def test_plot(self, trained: Path, tmp_path: Path) -> None:
        picture = tmp_path / "curve.png"
        run("plot", str(trained), "--output", str(picture), "--x", "seconds")
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_resume_past_the_goal(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (trained / "summary.json").read_bytes(), (trained / "metrics.jsonl").read_bytes()
        run("resume", str(trained))  # it stands where it was going to
        assert "done: return" in capsys.readouterr().out
        assert before == ((trained / "summary.json").read_bytes(), (trained / "metrics.jsonl").read_bytes())

    def test_a_default_goal_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(cli_train, "STEPS", ITERATION)
        monkeypatch.chdir(tmp_path)
        run("train", "ppo", "CartPole-v1", "--plot", *TINY)
        shown = capsys.readouterr().out
        assert f"training for {ITERATION} steps" in shown
        assert (tmp_path / "runs" / "CartPole-v1-ppo-3" / "curve.png").exists()

    @pytest.mark.parametrize("starts", [1_000, 8])
    def test_a_run_that_never_learned_says_so(
        self, starts: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        sizes = ("--rollout-length", "8", "--hidden", "8", "--envs", "2", "--batch-size", "4")
        limits = ("--steps", "40", "--learning-starts", str(starts), "--run-dir", str(tmp_path / "r"))
        run("train", "dqn", "CartPole-v1", *sizes, *limits)
        said = [str(w.message) for w in recwarn if "never learned" in str(w.message)]
        assert [line.partition(" (")[2] for line in said] == ["learning_starts is 1,000)"] * (starts > 40)

    def test_several_seeds_are_several_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "s"
        limits = ("--seeds", "5", "7", "--steps", str(ITERATION), "--run-dir", str(folder))
        sizes = ("--rollout-length", "16", "--hidden", "8", "--envs", "2")
        run("train", "a2c", "jax:CartPole-v1", "--on", "compiled", *sizes, *limits)
        shown = capsys.readouterr().out
        for seed in (5, 7):
            assert f"seed {seed}: return" in shown
            described = cli_list.described(folder / f"seed_{seed}")
            assert described is not None
            assert (described["seed"], described["state"]) == (seed, "done")
            assert json.loads((folder / f"seed_{seed}" / "goal.json").read_text())["steps"] == ITERATION

    def test_env_errors_keep_the_environments_own_traceback(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        envs = write_envs(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        folder = tmp_path / "broken"
        run(
            "train",
            "ppo",
            f"{envs}:Broken",
            "--steps",
            "9000",
            "--run-dir",
            str(folder),
            *TINY,
            expect=1,
        )
        error = capsys.readouterr().err
        assert re.fullmatch(
            rf"shoal: [^\n]*the wheel came off[^\n]* \(traceback: {folder}/error\.txt\)\n", error
        )
        text = (folder / "error.txt").read_text()
        assert "in _come_off" in text
        assert "trainer.py" not in text
        described = cli_list.described(folder)
        assert described is not None
        assert described["state"] == "failed"

    @pytest.mark.parametrize(
        ("name", "said"), [("Stillborn", "no licence"), ("Quitting", r"sys\.exit\(3\) was called")]
    )
    def test_an_env_that_cannot_be_made_leaves_no_run_directory(
        self,
        name: str,
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        envs = write_envs(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        folder = tmp_path / "never"
        run("train", "ppo", f"{envs}:{name}", "--run-dir", str(folder), *TINY, expect=1)
        error = capsys.readouterr().err
        assert re.fullmatch(rf"shoal: [^\n]*{said}[^\n]*{folder}\.error\.txt\)\n", error)
        assert f"{envs}.py" in (tmp_path / "never.error.txt").read_text()
        assert not folder.exists()


def write_envs(folder: Path) -> str:
    """A module of bad environments in this folder; its name is its own, for imports are remembered."""
    name = f"envs_of_{folder.name}"
    (folder / f"{name}.py").write_text(
        textwrap.dedent(
            """
            import sys
            import time
            from gymnasium.envs.classic_control import CartPoleEnv

            steps = 0  # in all, the trials before training included: there are at most 2,000 of those

            class Broken(CartPoleEnv):
                def step(self, action):
                    global steps
                    steps += 1
                    if steps > 3000:
                        self._come_off()
                    return super().step(action)
                def _come_off(self):
                    raise RuntimeError("the wheel\\ncame off")

            class Stillborn(CartPoleEnv):
                def __init__(self, render_mode=None):
                    raise RuntimeError("no licence")

            class Quitting(CartPoleEnv):
                def step(self, action):
                    sys.exit(3)

            class Stuck(CartPoleEnv):
                def step(self, action):
                    global steps
                    steps += 1
                    if steps > 3000:
                        print("stuck", flush=True)
                        time.sleep(600)
                    return super().step(action)
            """
        )
    )
    return name


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}: {process.stderr.read() if process.stderr else ''}")


class TestInterrupts:
    def test_interrupted_and_resumed_is_as_if_never_stopped(self, tmp_path: Path) -> None:
        process = start(
            "train", "ppo", "CartPole-v1", "--steps", "100000000", "--run-dir", "cut", *TINY, cwd=tmp_path
        )
        wait_for(process, "steps ")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (130, "")
        assert "stopping after this iteration" in out
        assert "shoal resume cut" in out
        state = cli_list.described(tmp_path / "cut")
        assert state is not None
        assert state["state"] == "stopped"
        goal = str(state["steps"] + 5 * ITERATION)
        run("resume", str(tmp_path / "cut"), "--steps", goal)
        run("train", "ppo", "CartPole-v1", "--steps", goal, "--run-dir", str(tmp_path / "whole"), *TINY)
        cut, whole = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("cut", "whole"))
        assert cut["fingerprint"] == whole["fingerprint"]
        assert cut["env_steps"] == whole["env_steps"]

    def test_a_second_signal_does_not_wait(self, tmp_path: Path) -> None:
        envs = write_envs(tmp_path)
        process = start(
            "train", "ppo", f"{envs}:Stuck", "--steps", "9000", "--run-dir", "r", *TINY, cwd=tmp_path
        )
        wait_for(process, "stuck")
        process.send_signal(signal.SIGTERM)
        wait_for(process, "once more stops at once")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        assert (process.returncode, out, error) == (130, "", "")
        described = cli_list.described(tmp_path / "r")
        assert described is not None
        assert described["state"] == "stopped"

    def test_resume_goes_on_to_the_same_goal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The goal is noted with the run, so that RUN alone is enough."""
        import shoal.trainer

        train = shoal.trainer.Trainer.train

        def failing(self: object, *_: object, **__: object) -> object:
            raise OSError("the power went")

        monkeypatch.setattr(shoal.trainer.Trainer, "train", failing)
        goal = ("--steps", str(2 * ITERATION), "--seconds", "1000")
        folder = str(tmp_path / "r")
        run("train", "ppo", "CartPole-v1", *goal, "--run-dir", folder, *TINY, expect=1)
        monkeypatch.setattr(shoal.trainer.Trainer, "train", train)
        run("resume", folder)
        summary = json.loads((tmp_path / "r" / "summary.json").read_text())
        assert 2 * ITERATION <= summary["env_steps"] < 3 * ITERATION
        assert not (tmp_path / "r" / "error.txt").exists()
