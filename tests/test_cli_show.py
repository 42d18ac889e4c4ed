"""`shoal show` says of learners what a run will do."""

from __future__ import annotations

import pytest

import shoal
from shoal import Cluster, ShoalError, cli
from shoal.mesh import Mesh


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["show", *arguments])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())


def test_learners_get_what_a_run_gives_them(capsys: pytest.CaptureFixture[str]) -> None:
    """An update of IMPALA learns from half of the groups, one of PPO from all of them."""
    code, text = shown(capsys, "impala", "CartPole-v1", "--learners", "data=8", "--envs", "8")
    assert code and "data=8 must divide the 4 environments of an update" in text
    code, text = shown(capsys, "impala", "CartPole-v1", "--learners", "data=4", "--envs", "8")
    assert not code and "the fragments of 4 of the 8 environments at a time" in text
    code, text = shown(capsys, "ppo", "CartPole-v1", "--learners", "data=8", "--envs", "8")
    assert not code and "at a time" not in text
    code, text = shown(capsys, "ppo", "CartPole-v1", "--learners", "data=1", "--envs", "7")
    assert code and "groups=2 must divide envs=7" in text


@pytest.mark.parametrize("name", ["PPO", "IMPALA", "ApexDQN", "DQN"])
def test_it_is_what_build_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.execution.cluster import build, learners
    from shoal.recipe import Experiment, Recipe

    made = Experiment.of(Recipe(algorithm=getattr(shoal, name)(), env={"env": "CartPole-v1"}), 0)
    found: list[int] = []

    def check(on: Cluster, experiment: Experiment, envs: int) -> None:
        found.append(envs)
        raise ShoalError("seen")

    monkeypatch.setattr(learners, "check", check)
    for on in (
        Cluster(envs=24, groups=6, learners=Mesh()),
        Cluster(envs=24, runners=3, per_update=3, learners=Mesh()),
    ):
        with pytest.raises(ShoalError, match="seen"):
            build.start(on, made)
        assert found.pop() == on.at_a_time(made.agent.plan)
