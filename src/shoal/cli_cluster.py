"""What runs on Ray: from flags to a Cluster or a ParameterServer, and Ray begun before anything that takes
long is imported.

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
from shoal.execution.parameter_server import ParameterServer
from shoal.mesh import Mesh, from_json, parsed

if TYPE_CHECKING:
    from shoal.cli_options import OnCluster, OnServer
    from shoal.execution import Executor

_ON_RAY: dict[str, Any] = {"cluster": Cluster, "parameter-server": ParameterServer}
_SHARED = ("address", "inline", "cpus", "resources", "strategy", "patience", "strikes")  # flags of both
_FIRST = {"address": str, "runners": str, "min_runners": int, "cpus": float}
_FIRST |= {"policy_actors": int, "policy_cpus": float, "workers": int}
_FIRST |= {"learners": str, "learner_cpus": float, "learner_gpus": int}


@contextlib.contextmanager
def begun_early(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Begin Ray in the background where these arguments will want it, as far as can be told without parsing
    them; what nobody has joined at the end of the block is released."""
    on = _wanted(command, arguments)
    with contextlib.nullcontext() if on is None else on.prepared():
        yield


def _wanted(command: str, arguments: Sequence[str]) -> Executor | None:
    """What asks Ray for what the run will ask; None where there is no such, or something is wrong."""
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
        if (found.on or was["name"]) not in _ON_RAY:
            return None
        flags = {name: getattr(found, name) for name in (*_FIRST, "inline")}
        flags["resources"] = amounts(found.resources) or None
        flags["learners"] = None if found.learners is None else mesh_of(found.learners, "--learners")
        known = {name: value for name, value in _as_given(was).items() if name in flags}
        known |= {name: value for name, value in flags.items() if value is not None}
        workers = known.pop("workers", ParameterServer.workers)
        if (found.on or was["name"]) == "parameter-server":
            shared = {name: value for name, value in known.items() if name in _SHARED}
            return ParameterServer(**shared, workers=workers, envs=workers)
        least, runners = known.pop("min_runners", 1), known.pop("runners", Cluster.runners)
        count = least if runners == "auto" else int(runners)
        return Cluster(**known, runners=count, envs=count, groups=count)
    return None


def settings(options: OnCluster | OnServer) -> dict[str, Any]:
    """The executor's arguments that were given as flags."""
    flags = {
        field.name: (getattr(options, field.name), field.default) for field in dataclasses.fields(options)
    }
    given = {name: value for name, (value, default) in flags.items() if value != default}
    if "server_staleness" in given:  # for the algorithm may have a staleness too
        given["staleness"] = given.pop("server_staleness")
    if "learners" in given:
        given["learners"] = mesh_of(given["learners"], "--learners")
    return given | ({"resources": amounts(given["resources"])} if "resources" in given else {})


def mesh_of(text: str, flag: str) -> Mesh | None:
    """ "data=2,model=2", or "none"."""
    return None if text == "none" else parsed(text, flag)


def _as_given(was: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration has of an executor, as its arguments."""
    learners = {"learners": from_json(was["learners"])} if "learners" in was else {}
    return {name: value for name, value in was.items() if name != "name"} | learners


def given_for(on: str, cluster: OnCluster, server: OnServer) -> dict[str, Any]:
    """The arguments of the executor named `on` that were given as flags. Raises ShoalError for a flag that is
    for another one."""
    of_cluster, of_server = settings(cluster), settings(server)
    foreign = {"cluster": of_server, "parameter-server": of_cluster}.get(on, of_cluster | of_server)
    for name in foreign:
        if on == "parameter-server" and name in _SHARED:
            continue
        place = "parameter-server" if name in of_server else "cluster"
        word = "server_staleness" if name == "staleness" else name
        raise ShoalError(f"--{word.replace('_', '-')} is for --on {place}, and this run is on {on}")
    return of_cluster | of_server


def moved(cluster: OnCluster, server: OnServer, on: str | None, was: Mapping[str, Any]) -> Executor | None:
    """Where a run goes on whose configuration has `was`; None: where it was."""
    to = on or was["name"]
    given = given_for(to, cluster, server)
    if to == was["name"] and not given:
        return None
    before = {"envs": was["envs"], "groups": was["groups"]}
    if to == was["name"]:
        before = _as_given(was)
    if to in _ON_RAY:
        return _ON_RAY[to](**(before | given))
    from shoal.execution.local import Local

    return Local(**before)


def in_process(place: Path) -> Executor | None:
    """The executor of a run, or of a checkpoint, without its Ray or its mesh; None where it has neither."""
    for name in ("config.json", "manifest.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            read = json.loads((place / name).read_bytes())
            was = dict((read if name == "config.json" else read["info"]["config"])["on"])
            if was["name"] == "cluster":
                return Cluster(**{name: was[name] for name in ("runners", "envs", "groups")}, inline=True)
            if was["name"] == "parameter-server":
                kept = ("workers", "shards", "mode", "envs", "groups")
                return ParameterServer(**{name: was[name] for name in kept}, inline=True)
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
