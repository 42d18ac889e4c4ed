"""Checks of hyper-parameters, so that a wrong value is one clear line before anything starts."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal

from shoal.errors import ShoalError

_KINDS: Mapping[type, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "a text"),
}


def typed(config: Any) -> None:
    """Each field of a dataclass that is annotated as int, float, bool, str, Literal, tuple[int, ...], a
    function or a dataclass (or None beside it) is such a value, and finite. Other annotations are left to
    those who know them."""
    name = type(config).__name__
    for field, kinds in _annotated(type(config)).items():
        value = getattr(config, field)
        wrong = [why for kind in kinds if (why := _not_a(kind, value)) is not None]
        if len(wrong) == len(kinds):
            raise ShoalError(f"{name}: {field} must be {' or '.join(wrong)}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            unlimited = "; None has no limit" if value > 0 and type(None) in kinds else ""
            raise ShoalError(f"{name}: {field} must be finite, got {value!r}{unlimited}")


@cache
def _annotated(cls: type) -> dict[str, tuple[Any, ...]]:
    """field -> the kinds of value that it may have, of the fields of which all are known here."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = typing.get_args(hint) if union else (hint,)
        if all(_known(kind) for kind in kinds):
            found[field.name] = kinds
    return found


def _known(kind: Any) -> bool:
    plain = kind in (*_KINDS, type(None), tuple[int, ...]) or dataclasses.is_dataclass(kind)
    return plain or typing.get_origin(kind) in (Literal, Callable)


def _not_a(kind: Any, value: Any) -> str | None:
    """What a value of this kind would be, where this is none."""
    if kind is type(None):
        return None if value is None else "None"
    if typing.get_origin(kind) is Literal:
        words = f"one of {', '.join(map(repr, typing.get_args(kind)))}"
        return None if isinstance(value, str) else words  # which of them, is checked where they are known
    if kind == tuple[int, ...]:
        whole = isinstance(value, tuple | list) and all(_not_a(int, one) is None for one in value)
        return None if whole else "whole numbers such as (64, 64)"
    if typing.get_origin(kind) is Callable:  # what an algorithm asks functions for is made of a space
        result = typing.get_args(kind)[1].__name__
        return None if callable(value) else f"a function from a space to a {result}"
    if kind not in _KINDS:  # a dataclass
        example = f"{kind.__name__}({dataclasses.fields(kind)[0].name}=...)"
        return None if isinstance(value, kind) else f"a {kind.__name__} such as {example}"
    form, words = _KINDS[kind]
    right = isinstance(value, form) and (kind is bool or not isinstance(value, bool))
    return None if right else words


def number(name: str, value: Any, least: float, kind: type = Real) -> None:
    """A single argument is a number (Real) or a whole one (Integral), and at least `least`."""
    if not isinstance(value, kind) or isinstance(value, bool):
        words = "a whole number" if kind is Integral else "a number"
        raise ShoalError(f"{name} must be {words}, got {value!r}")
    if not value >= least:  # NaN neither
        raise ShoalError(f"{name} must be at least {least}, got {value}")


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
