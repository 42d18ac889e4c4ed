"""Checks of hyper-parameters, so that a wrong value is one clear line before anything starts."""

from __future__ import annotations

from typing import Any

from shoal.errors import ShoalError


def at_least(config: Any, bound: float, *names: str, strictly: bool = False) -> None:
    """Each named field (numbers; None passes) is >= bound, or > bound where `strictly`."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not (value > bound if strictly else value >= bound):
            word = "greater than" if strictly else "at least"
            raise ShoalError(f"{type(config).__name__}: {name} must be {word} {bound:g}, got {value!r}")


def between(config: Any, low: float, high: float, *names: str) -> None:
    """Each named field lies in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ShoalError(
                f"{type(config).__name__}: {name} must lie between {low:g} and {high:g}, got {value!r}"
            )


def divides(divisor: int, number: int, divisor_name: str, number_name: str) -> None:
    """`number` is a multiple of `divisor`; else the error names the nearest divisor that would do."""
    if divisor <= number and number % divisor == 0:
        return
    fitting = [d for d in range(1, number + 1) if number % d == 0]
    nearest = min(fitting, key=lambda d: abs(d - divisor))
    raise ShoalError(
        f"{divisor_name}={divisor} does not divide the {number} {number_name} of an update; "
        f"{divisor_name}={nearest} would"
    )
