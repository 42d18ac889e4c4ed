"""What cannot be: one clear line within seconds, from the Trainer and from the program, and nothing is left
running. (Addresses that do not answer as they should and other versions of Ray: test_session.py.)"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from elsewhere import DRIVER, Nowhere, Once
from test_session import HOST, descendants, gone, python, read

from shoal import PPO, Cluster, ShoalError, Trainer, cli
from shoal.algorithms.impala import IMPALA
from shoal.execution.cluster import fleet, session

SIZES: dict[str, Any] = {"rollout_length": 8, "hidden": (8,)}
SMALL = PPO(**SIZES, epochs=1, minibatches=1)
FLAGS = ("--rollout-length", "8", "--epochs", "1", "--minibatches", "1", "--hidden", "8", "--envs", "2")


@pytest.fixture(autouse=True)
def this_is_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ROOM_SECONDS", 2.0)
    monkeypatch.setattr(fleet, "PLACE_SECONDS", 2.0)
    monkeypatch.setenv(DRIVER, str(os.getpid()))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A cluster of two nodes, with two CPUs and with one and a resource "far": its address and process."""
    errors = tmp_path_factory.mktemp("host") / "errors"
    with python(HOST, errors=errors, RAY_AUTH_MODE="disabled") as process:
        yield read(process)["address"], process.pid


def runners_of(pid: int) -> dict[int, int]:
    """Runners below a process: their numbers and start times."""
    title = b"ray::EnvRunner"
    return {
        p: s for p, s in descendants(pid).items() if Path(f"/proc/{p}/cmdline").read_bytes()[:14] == title
    }


def refused(begin: Callable[[], Trainer], seconds: float) -> str:
    """What the user reads, when such a trainer is made and trains."""
    begun = time.monotonic()
    with pytest.raises(ShoalError) as caught, begin() as trainer:
        trainer.train()
    assert time.monotonic() - begun < seconds
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(capsys: pytest.CaptureFixture[str], seconds: float, *arguments: str) -> tuple[int, str]:
    """The exit code of `shoal train ppo ...` on a cluster, and what it says: one line."""
    begun = time.monotonic()
    code = cli.main(["train", "ppo", *arguments, *FLAGS, "--on", "cluster", "--steps", "100"])
    assert time.monotonic() - begun < seconds
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


def unpicklable() -> Any:
    lock = threading.Lock()

    def make() -> Any:
        assert not lock.locked()
        return gym.make("CartPole-v1")

    return make


NO_LICENCE = (
    r"^group \d failed 3 times in a row; the first error: Once .* raised RuntimeError: "
    "there is a licence for one when it was made$"
)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "not on a runner": (
        {"env": Nowhere},
        {},
        r"^no env runner can be started: Nowhere raised RuntimeError: there is no display here .* was made$",
    ),
    "not in a group": (
        {"env": Once},
        {},
        NO_LICENCE,
    ),
    "in no group, which are given up but for the last": (
        {"env": Once, "algorithm": IMPALA(**SIZES)},
        {},
        NO_LICENCE,
    ),
    "what cannot be sent": (
        {"env": unpicklable()},
        {},
        "^the environment, a wrapper or the algorithm cannot be sent to env runners: .*lock",
    ),
    "too many runners": (
        {},
        {"runners": 4, "envs": 4},
        "^the run asks for 4 CPU, but the Ray .* has 3 .*at most 3",
    ),
    "too much for one": (
        {},
        {"runners": 1, "cpus": 3},
        "^each runner asks for 3 CPU, but no machine of the Ray at .* has that: ask for less",
    ),
    "not on one machine": (
        {},
        {"runners": 1, "cpus": 2, "resources": {"far": 1}},
        "^each runner asks for 2 CPU and 1 far, but no machine",
    ),
    "what is not there": (
        {},
        {"resources": {"near": 1}},
        "^the run asks for 2 near, but .* has 0 .*: ask for none",
    ),
    "more than is there": (
        {},
        {"resources": {"far": 1}},
        "^the run asks for 2 far, but .* has 1 .*: ask for at most 1",
    ),
    "no room for a group": (
        {},
        {"strategy": "STRICT_PACK", "runners": 3, "envs": 3},
        r"^the cluster had no room within 2 s for 3 runners of \{'CPU': 1.0\} placed by STRICT_PACK: ",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_on_a_cluster_that_is_there(name: str, host: tuple[str, int]) -> None:
    address, pid = host
    how, on, line = CASES[name]
    cluster = Cluster(**{"runners": 2, "envs": 2, "address": address, **on})
    message = refused(lambda: Trainer(**{"algorithm": SMALL, "env": "CartPole-v1", "on": cluster, **how}), 30)
    assert re.search(line, message), message
    assert gone(runners_of(pid), 10) == []
    with session.join(address, cpus=1):
        import ray._private.state

        assert ray._private.state.state.actor_table(None, None, "ALIVE") == {}


@pytest.mark.parametrize("when", ["before", "in the same moment"])
def test_where_others_have_the_cpus(
    host: tuple[str, int], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, pid = host
    seconds, looks, taken = (2, [""], fleet._taken) if when == "before" else (4, [], fleet._taken)
    monkeypatch.setattr(fleet, "LATE_ROOM_SECONDS", 4.0)

    def seen(each: Any) -> str:
        looks.append(taken(each))
        return looks[-1] if len(looks) > 1 else ""

    monkeypatch.setattr(fleet, "_taken", seen)
    with session.join(address, cpus=1):
        import ray

        class Other:
            def there(self) -> bool:
                return True

        remote: Any = ray.remote(num_cpus=1)(Other)
        others = [remote.remote() for _ in range(3)]
        assert all(ray.get([other.there.remote() for other in others]))
        on = Cluster(runners=2, envs=2, address=address)
        message = refused(lambda: Trainer(SMALL, "CartPole-v1", on=on), 30)
        assert message == (
            f"no env runner has found room on this Ray within {seconds} s: each asks for 1 CPU, but of 3 CPU "
            "only 0 are free: end what takes them, ask for less for each runner, or join a larger cluster"
        )
        ray.kill(others.pop())  # and with room for one of them, one trains for both
        with Trainer(SMALL, "CartPole-v1", on=on) as trainer:
            assert trainer.train()["timing/runners"] == 1
        assert all(ray.get([other.there.remote() for other in others]))
    assert gone(runners_of(pid), 10) == []


def test_stopped_runners_do_not_stay_on_a_ray_that_goes_on(host: tuple[str, int]) -> None:
    """On this node and on another; a stopped process follows no order to end."""
    address, pid = host
    with session.join(address, cpus=1):
        with Trainer(SMALL, "CartPole-v1", on=Cluster(runners=2, envs=2, address=address)) as trainer:
            run: Any = trainer._run
            while len(run._pool._fleet.identities()) < 2:
                trainer.train()
            identities = run._pool._fleet.identities().values()
            processes = {number: started for _, number, started in identities}
            assert len({node for node, _, _ in identities}) == 2
            assert processes.keys() == runners_of(pid).keys()
            for number in processes:
                os.kill(number, signal.SIGSTOP)
        assert gone(processes, 10) == []


def test_a_runner_that_stopped_on_its_way_is_ended(host: tuple[str, int]) -> None:
    with session.join(host[0], cpus=1):
        import ray

        class Sluggish:
            """A runner that is never ready."""

            def begin(self) -> None:
                time.sleep(1000)

        crew = fleet.Crew(actor=Sluggish, arguments=lambda runner: ())
        runners = fleet.RayFleet(crew, fleet.Placement())
        runners.start(0)
        ((_, told),) = runners._starting.values()
        _, number, started = ray.get(told)
        os.kill(number, signal.SIGSTOP)
        assert runners.identities() == {}  # it is not ready, and not to be counted on
        runners.kill(0)
        assert gone({number: started}, 2) == [] and not runners._starting
        runners.close()


def test_from_the_program(host: tuple[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, pid = host
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
    run_dir = ("--run-dir", str(tmp_path / "run"))
    for arguments, line in (
        (("CartPole-v1", "--address", dead), f"no Ray cluster answers at {dead} (connection refused)"),
        (("CartPole-v1", "--address", address, "--cpus", "4"), "the run asks for 8 CPU, but the Ray"),
        (("CartPole-v1", "--address", address, "--resources", "near=1"), "the run asks for 2 near, but"),
        (
            ("elsewhere:Nowhere", "--address", address),
            "no env runner can be started: Nowhere raised RuntimeError: there is no",
        ),
    ):
        code, told = said(capsys, 30, *arguments, *run_dir)
        assert code == 2 and told.startswith(f"shoal: {line}"), told
    assert gone(runners_of(pid), 10) == []


def test_a_ray_of_our_own_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = descendants(os.getpid())
    seen: dict[int, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.update(descendants(os.getpid()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        code, told = said(
            capsys, 40, "elsewhere:Nowhere", "--runners", "2", "--run-dir", str(tmp_path / "run")
        )
    finally:
        over.set()
        looking.join()
    assert code == 2 and told.startswith(
        "shoal: no env runner can be started: Nowhere raised RuntimeError: there is no display"
    )
    assert len(seen.keys() - before.keys()) >= 6
    assert gone({p: s for p, s in seen.items() if p not in before}, 2) == []
