"""The libraries that Shoal is measured against: exact versions, one virtual environment each.

Every environment lies under `.venvs/NAME` and is made from this page alone, so that a figure can be
had again. What is not named here is resolved by pip at install time; the results name the versions that ran.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"
STAMP = "benchmark-pins.json"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One library and how to install it. `steps`: pip calls in order; what comes first keeps its version."""

    name: str
    title: str
    steps: Sequence[Sequence[str]]
    driver: str
    packages: Sequence[str]  # whose versions the results name
    processes: bool = False  # its memory is spread over several processes

    @property
    def python(self) -> Path:
        return VENVS / self.name / "bin" / "python"


TORCH = (
    "torch==2.13.0"  # first in every environment: a later resolution would take a build with CUDA's gigabytes
)
JAX = ("jax==0.10.2", "jaxlib==0.10.2")
MUJOCO = "gymnasium[mujoco]==1.4.*"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name="sb3",
            title="Stable-Baselines3",
            steps=([TORCH], ["stable-baselines3==2.9.*"], [MUJOCO]),
            driver="peer_sb3.py",
            packages=("stable-baselines3", "torch", "gymnasium", "numpy"),
        ),
        Peer(
            name="sbx",
            title="SBX (SB3 in JAX)",
            steps=([TORCH], [*JAX], ["sbx-rl==0.28.*"], [MUJOCO]),
            driver="peer_sbx.py",
            packages=("sbx-rl", "stable-baselines3", "jax", "jaxlib", "torch", "gymnasium", "numpy"),
        ),
        Peer(
            name="rllib",
            title="Ray RLlib",
            steps=([TORCH], ["ray[rllib]==2.60.*"]),
            driver="peer_rllib.py",
            processes=True,
            packages=("ray", "torch", "gymnasium", "numpy"),
        ),
        Peer(
            name="rejax",
            title="rejax",
            steps=([*JAX], ["gymnax==0.0.9", "six"], ["rejax==0.1.3"]),
            driver="peer_rejax.py",
            packages=("rejax", "gymnax", "jax", "jaxlib", "numpy"),
        ),
        Peer(
            name="cpprb",
            title="cpprb (replay in C++)",
            steps=(["cpprb==11.0.*"],),
            driver="replay.py",
            packages=("cpprb", "numpy"),
        ),
    )
}


def pins(peer: Peer) -> str:
    """The text whose change makes an installed environment stale."""
    return json.dumps([list(step) for step in peer.steps])


def installed(peer: Peer) -> list[list[str]]:
    """The steps that made the environment that is there; none where there is none."""
    stamp = VENVS / peer.name / STAMP
    return json.loads(stamp.read_text()) if peer.python.exists() and stamp.exists() else []


def install(peer: Peer) -> None:
    """Make the peer's environment unless it is there with these pins. CalledProcessError if pip fails.

    An environment made by the first of these steps only gets the others; any other one is made anew.
    """
    steps, done = json.loads(pins(peer)), installed(peer)
    if steps == done:
        return
    print(f"installing {peer.title} into {VENVS / peer.name}", file=sys.stderr, flush=True)
    if not done or steps[: len(done)] != done:
        done = []
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENVS / peer.name)], check=True)
    for step in steps[len(done) :]:
        subprocess.run([str(peer.python), "-m", "pip", "install", "-q", *step], check=True)
    (VENVS / peer.name / STAMP).write_text(pins(peer))


if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        install(PEERS[name])
