"""`shoal show`: the settings of an algorithm, and what each device of a mesh would hold of its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal import algorithms
from shoal.cli_options import Show
from shoal.cli_parsing import documented, key_values, parse
from shoal.errors import ShoalError
from shoal.execution.cluster import Cluster
from shoal.mesh import Mesh, parsed

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.sharding import Placed
    from shoal.types import Agent

LEAVES = 40  # how many of the largest are listed


def show(arguments: Sequence[str], console: Callable[[], Console]) -> int:
    """shoal show ALGORITHM [ENV --mesh data=N,model=M ...], and its exit code."""
    names = ", ".join([*algorithms.REGISTRY, *algorithms.PRESETS])
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise ShoalError(f"shoal show needs one algorithm: {names}")
        print(f"usage: shoal show ALGORITHM, one of {names}")
        print("shoal show ALGORITHM ENV --mesh data=2,model=2 says what each device would hold.")
        return 0
    name, *rest = arguments
    algorithm = algorithms.load(name)
    if not rest:
        settings(name, algorithm, console())
        return 0
    defaults = {name: algorithms.default(name)} if name.lower() in algorithms.PRESETS else {}
    title = f"What each device of a mesh would hold of {name} on an environment."
    found = parse({"show": Show, name: algorithm}, rest, f"shoal show {name}", title, defaults)
    devices(name, found[name], found["show"], console())
    return 0


def settings(name: str, algorithm: type, console: Console) -> None:
    """Every setting, its default and its meaning."""
    from rich.text import Text

    preset = algorithms.default(name) if name.lower() in algorithms.PRESETS else None
    table = _table("setting", "default", "type", "meaning", folded=("type", "meaning"))
    for setting, kind, default, text in documented(algorithm):
        value = default if preset is None else repr(getattr(preset, setting))
        table.add_row(setting, value, Text(kind, "dim"), Text(text))
    console.print(Text(" ".join(str(algorithm.__doc__).split())))
    console.print(table)


def devices(name: str, algorithm: Any, options: Show, console: Console) -> None:
    """What each device would hold, and how the largest leaves are split. Raises ShoalError, one line, where
    the mesh does not fit. No device is needed."""
    if options.mesh is not None and options.learners is not None:
        raise ShoalError(
            "--mesh is for the devices of one process, --learners for those of a cluster: give one"
        )
    flag = "--mesh" if options.learners is None else "--learners"
    mesh = parsed(options.learners or options.mesh or "data=1,model=1", flag)
    agent, envs = _agent(algorithm, options), options.envs
    if options.learners is not None:
        on = Cluster(envs=options.envs, learners=mesh)
        envs = on.at_a_time(agent.plan)
        if envs != options.envs:
            console.print(
                f"With {on.runners} runners and {on.in_groups} groups, learners get the fragments of {envs} "
                f"of the {options.envs} environments at a time; --groups and --per-update of `shoal train` "
                "change that."
            )
    leaves = _placed(mesh, agent, envs)

    from shoal.execution.split import minibatch_rows
    from shoal.sharding import holdings

    kind = "devices" if options.learners is None else "learners, a process each"
    rows, what = minibatch_rows(agent.plan, envs)
    console.print(f"{name} on {options.env}, {mesh}: {mesh.size} {kind if mesh.size > 1 else 'device'}")
    console.print(f"Each minibatch of {rows} {what}: {rows // mesh.data} on each of data={mesh.data}\n")
    held = holdings(leaves)
    table = _table("bytes", "whole", "each device", right=("whole", "each device"))
    for part, (whole, each) in held.items():
        table.add_row(part, size(whole), size(each))
    table.add_row("all", *(size(sum(amounts)) for amounts in zip(*held.values(), strict=True)), style="bold")
    console.print(table)
    console.print("Experience, activations and the programs come on top.\n")
    console.print(_leaves(mesh, leaves))


def _agent(algorithm: Any, options: Show) -> Agent:
    from shoal.recipe import Recipe

    env = {
        "env": options.env,
        "env_kwargs": key_values(options.env_kwargs) or None,
        "wrappers": options.wrapper,
    }
    recipe = Recipe(
        algorithm=algorithm,
        env=env,
        normalize=options.normalize_observations,
        scale=options.scale_rewards,
    )
    return recipe.agent(recipe.source().spec)


def _placed(mesh: Mesh, agent: Agent, envs: int) -> list[Placed]:
    import jax
    import numpy as np

    from shoal.execution.split import check
    from shoal.sharding import check_rules, placed

    check(mesh, agent.plan, envs)
    form = jax.eval_shape(agent.init, np.zeros(2, np.uint32))
    check_rules(mesh, form)
    return placed(mesh, form)


def _leaves(mesh: Mesh, leaves: Sequence[Placed]) -> Any:
    table = _table("leaf", "shape", "split", "each device", right=("each device",))
    largest = sorted(leaves, key=lambda leaf: -leaf.bytes)
    for leaf in largest[:LEAVES]:
        over = [f"axis {i} over {axis}" for i, axis in enumerate(leaf.axes) if axis is not None]
        shape = " x ".join(map(str, leaf.shape)) or "1"
        table.add_row(leaf.path, shape, ", ".join(over) or "whole", size(leaf.per_device))
    if rest := largest[LEAVES:]:
        table.add_row(f"and {len(rest)} smaller ones", "", "", size(sum(leaf.per_device for leaf in rest)))
    return table


def _table(*headings: str, right: Sequence[str] = (), folded: Sequence[str] = ()) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading, no_wrap=heading not in folded, justify="right" if heading in right else "left"
        )
    return table


def size(count: int) -> str:
    """Bytes in words: 1.5 MB."""
    amount, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{count} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"
