"""`--on cluster`: from flags to a Cluster, and Ray begun before anything that takes long is imported.

Imported before JAX, tyro and the rest, so that Ray starts while they are read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError
from shoal.execution.cluster import Cluster

if TYPE_CHECKING:
    from shoal.cli_options import OnCluster
    from shoal.execution import Executor

_FIRST = {"address": str, "runners": str, "min_runners": int, "cpus": float}
_FIRST |= {"policy_actors": int, "policy_cpus": float}


@contextlib.contextmanager
def begun_early(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Begin Ray in the background where these arguments will want it, as far as can be told without parsing
    them; what nobody has joined at the end of the block is released."""
    cluster = _wanted(command, arguments)
    with contextlib.nullcontext() if cluster is None else cluster.prepared():
        yield


def _wanted(command: str, arguments: Sequence[str]) -> Cluster | None:
    """A Cluster that asks Ray for what the run will ask; None where there is none, or something is wrong."""
    if {"-h", "--help"} & set(arguments):
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, kind in _FIRST.items():
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", type=kind)
    parser.add_argument("--on")
    parser.add_argument("--inline", action="store_true", default=None)
    parser.add_argument("--resources", nargs="*", default=[])
    parser.add_argument("place", nargs="?")  # of `train` the algorithm, of `resume` the run
    with contextlib.suppress(argparse.ArgumentError, ShoalError, OSError, ValueError, KeyError):
        found, _ = parser.parse_known_args(list(arguments))
        was: dict[str, Any] = {"name": "local"}
        if command == "resume":
            was = json.loads((Path(found.place) / "config.json").read_bytes())["on"]
        if (found.on or was["name"]) != "cluster":
            return None
        flags = {name: getattr(found, name) for name in (*_FIRST, "inline")}
        flags["resources"] = amounts(found.resources) or None
        known = {name: value for name, value in was.items() if name in flags}
        known |= {name: value for name, value in flags.items() if value is not None}
        least, runners = known.pop("min_runners", 1), known.pop("runners", Cluster.runners)
        count = least if runners == "auto" else int(runners)
        return Cluster(**known, runners=count, envs=count, groups=count)
    return None


def settings(options: OnCluster) -> dict[str, Any]:
    """Cluster's arguments that were given as flags."""
    flags = {
        field.name: (getattr(options, field.name), field.default) for field in dataclasses.fields(options)
    }
    given = {name: value for name, (value, default) in flags.items() if value != default}
    return given | ({"resources": amounts(given["resources"])} if "resources" in given else {})


def refuse(options: OnCluster, on: str) -> None:
    """Raises ShoalError for a flag that is for another executor than this."""
    for name in settings(options):
        flag = f"--{name.replace('_', '-')}"
        raise ShoalError(f"{flag} is for --on cluster, and this run is on {on}")


def moved(options: OnCluster, on: str | None, was: Mapping[str, Any]) -> Executor | None:
    """Where a run goes on whose configuration has `was`; None: where it was."""
    given = settings(options)
    if (on or was["name"]) != "cluster":
        refuse(options, on or was["name"])
        if on in (None, was["name"]):
            return None
        from shoal.execution.local import Local

        return Local(envs=was["envs"], groups=was["groups"])
    if not given and on in (None, was["name"]):
        return None
    before = {"envs": was["envs"], "groups": was["groups"]}
    if was["name"] == "cluster":
        before = {name: value for name, value in was.items() if name != "name"}
    return Cluster(**(before | given))


def in_process(place: Path) -> Executor | None:
    """The executor of a run, or of a checkpoint, without its Ray or its mesh; None where it has neither."""
    for name in ("config.json", "manifest.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            read = json.loads((place / name).read_bytes())
            was = dict((read if name == "config.json" else read["info"]["config"])["on"])
            if was["name"] == "cluster":
                return Cluster(**{name: was[name] for name in ("runners", "envs", "groups")}, inline=True)
            if was.pop("mesh", None) is not None:
                from shoal.config import executor_from_json

                return executor_from_json(was)
    return None


def amounts(pairs: Sequence[str]) -> dict[str, float]:
    """["tpu=1", "far=0.5"] -> {"tpu": 1.0, "far": 0.5}."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            raise ShoalError(f"--resources: expected NAME=AMOUNT, such as far=1, got {pair!r}") from None
        if not name or not 0 <= found[name] < float("inf"):
            raise ShoalError(f"--resources: expected NAME=AMOUNT, such as far=1, got {pair!r}")
    return found
