"""Two hosts: Ray nodes in network namespaces of their own, one of which is cut off and comes back.

Needs root and iproute2 (`ip netns`), as a container or a virtual machine usually gives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal import PPO, Local
from shoal.fingerprint import fingerprint
from shoal.recipe import Experiment, Recipe

HEAD, OTHER = "shoal-head", "shoal-other"
ADDRESS = {HEAD: "10.99.7.1", OTHER: "10.99.7.2"}
LINK = {HEAD: "shoal0", OTHER: "shoal1"}
PORT = 6397
CHILD = Path(__file__).with_name("hosts_child.py")

pytestmark = pytest.mark.slow


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def inside(host: str, *command: str, **how: object) -> subprocess.Popen[str]:
    """A process on that host."""
    environment = {
        **os.environ,
        "no_proxy": ",".join(ADDRESS.values()),
        "RAY_AUTH_MODE": "token" if (Path.home() / ".ray" / "auth_token").exists() else "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *command],
        env=environment,
        text=True,
        **how,  # type: ignore[call-overload]
    )


def ray_start(host: str, *options: str) -> None:
    ray = Path(sys.executable).with_name("ray")
    started = inside(
        host,
        str(ray),
        "start",
        f"--node-ip-address={ADDRESS[host]}",
        "--num-cpus=2",
        *options,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = started.communicate(timeout=120)
    assert started.returncode == 0, output


@pytest.fixture
def hosts() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    try:
        ip("netns", "add", HEAD)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces: {error.stderr}")
    try:
        ip("netns", "add", OTHER)
        ip("link", "add", LINK[HEAD], "type", "veth", "peer", "name", LINK[OTHER])
        for host in (HEAD, OTHER):
            ip("link", "set", LINK[host], "netns", host)
            ip("-n", host, "addr", "add", f"{ADDRESS[host]}/24", "dev", LINK[host])
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", LINK[host], "up")
        ray_start(HEAD, "--head", f"--port={PORT}", "--include-dashboard=false")
        ray_start(OTHER, f"--address={ADDRESS[HEAD]}:{PORT}")
        yield
    finally:
        for host in (HEAD, OTHER):
            pids = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout
            for pid in pids.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def train(plan: str, out: Path) -> list[dict[str, object]]:
    """Train from the head; cut the other host off after 10 s of it, and let it come back after 20 s more."""
    address = f"{ADDRESS[HEAD]}:{PORT}"
    child = inside(HEAD, sys.executable, str(CHILD), plan, address, str(out))
    try:
        deadline = time.monotonic() + 240
        while not out.exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(10)
        ip("-n", OTHER, "link", "set", LINK[OTHER], "down")
        time.sleep(20)
        ip("-n", OTHER, "link", "set", LINK[OTHER], "up")
        assert child.wait(timeout=240) == 0
    finally:
        if child.poll() is None:
            child.kill()
    return [json.loads(line) for line in out.read_text().splitlines()]


def lost(rows: list[dict[str, object]]) -> list[object]:
    return [event for row in rows for event in row["events"] if "lost" in str(event)]  # type: ignore[union-attr]


def test_a_host_is_cut_off_and_comes_back_while_nobody_waits(hosts: None, tmp_path: Path) -> None:
    """The account balances all the time, training goes on without that host, and with it again."""
    rows = train("impala", tmp_path / "rows.jsonl")
    assert lost(rows)
    runners = [row["runners"] for row in rows]
    assert min(runners) == 1 and runners[-1] == 2  # type: ignore[type-var]
    for row in rows:
        count = row["fragments"]
        assert count["delivered"] == count["learned"] + count["dropped"] + count["queued"]  # type: ignore[index]
    assert max(row["seconds"] for row in rows[1:]) < 10  # type: ignore[type-var]


def test_a_host_is_cut_off_and_the_bits_stay(hosts: None, tmp_path: Path) -> None:
    rows = train("ppo", tmp_path / "rows.jsonl")
    assert lost(rows)
    sys.path.insert(0, str(CHILD.parent))
    from hosts_child import ENVS, GROUPS, Slow

    recipe = Recipe(algorithm=PPO(rollout_length=32, minibatches=4), env={"env": Slow})
    run = Local(envs=ENVS, groups=GROUPS).start(Experiment.of(recipe, 0))
    for _ in rows:
        run.iterate()
    assert fingerprint(run.learner.state) == rows[-1]["fingerprint"]
