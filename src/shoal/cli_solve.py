"""`shoal solve ENV`: the optimal values and policy of an environment whose MDP is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from shoal.cli_parsing import key_values, parse
from shoal.storage import check_picture

_WIDEST = 2500  # cells, up to which a grid is printed


@dataclass(frozen=True, kw_only=True)
class Solve:
    """Solve an environment's finite MDP exactly; print and draw its values and policy."""

    env: Annotated[str, Positional, arg(metavar="ENV")]
    """GridWorld ("shoal/GridWorld-v0"), FrozenLake, CliffWalking, Taxi, or yours with mdp(gamma) or P."""
    gamma: float = 0.99
    """The discount. 1 needs episodes that can end from every state."""
    method: Literal["auto", "value-iteration", "policy-iteration"] = "auto"
    """How; auto is value iteration, and policy iteration for gamma = 1."""
    tolerance: float = 1e-6
    """No value that value iteration gives is further from the optimal one than this."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments for the environment, as key=value ..."""
    output: str = "values.png"
    """The picture to write; its ending picks the format."""


def _number(value: float, digits: int) -> str:
    """With so many digits behind the point, but without zeros at the end."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def solve(arguments: Sequence[str]) -> int:
    """shoal solve ENV ..., and its exit code."""
    about = "Solve an environment whose MDP is known."
    options: Solve = parse({"solve": Solve}, arguments, "shoal solve", about)["solve"]
    check_picture(options.output, "--output")
    from shoal.envs.toy_text import mdp_of
    from shoal.tabular import planning
    from shoal.tabular.picture import draw, error_digits, text_grid

    mdp = mdp_of(options.env, gamma=options.gamma, env_kwargs=key_values(options.env_kwargs))
    begun = time.perf_counter()
    found = planning.solve(mdp, options.method, options.tolerance)
    seconds = time.perf_counter() - begun
    bound = found.error_bound
    digits = 12 if bound is None else error_digits(bound)
    error = "rounding, among policies that end every episode" if bound is None else f"{bound:.1e}"
    for name, text in (
        ("value of the start", _number(found.start_value, digits)),
        ("error at most", error),
        ("method", f"{found.method}, {found.iterations} iterations, {seconds:.2f} s"),
        ("MDP", f"{mdp.states} states, {mdp.actions} actions, gamma {mdp.gamma:g}"),
    ):
        print(f"{name:18}  {text}")
    if mdp.grid is None:
        print("(its states lie in no grid, so the picture shows the value of each state number)")
    elif mdp.states <= _WIDEST:
        print(f"\n{text_grid(mdp, found.value, found.policy)}\n")
    title = f"{options.env}, gamma {mdp.gamma:g}"
    print(f"picture: {draw(mdp, found.value, options.output, policy=found.policy, title=title)}")
    return 0
