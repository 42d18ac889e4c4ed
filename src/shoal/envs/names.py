"""Environments and wrappers as names that can be written down, and back."""

from __future__ import annotations

import importlib
import json
from typing import Any

from shoal.errors import ShoalError

JAX_ENVS = {"CartPole-v1": "shoal.envs.cartpole:CartPole", "GridWorld": "shoal.envs.gridworld:GridWorld"}


def import_name(name: str, what: str) -> Any:
    """The object that "module:name" names; `what` it is appears in the ShoalError where there is none."""
    module, colon, path = name.partition(":")
    if not colon:
        raise ShoalError(f"the {what} {name!r} should be written as 'module:name'")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ShoalError(f"cannot import the {what} {name!r}: {error}") from error
    return found


def as_tuples(value: Any) -> Any:
    """With a tuple for each list: fields of dataclasses, after JSON, which has no tuples."""
    return tuple(as_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def reference_of(given: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `resolve` as JSON-able data, or None where some name cannot be imported."""
    reference = {
        **given,
        "env": _importable(given["env"]),
        "wrappers": [_importable(w) for w in given["wrappers"]],
    }
    if reference["env"] is None or None in reference["wrappers"]:
        return None
    try:
        return json.loads(json.dumps(reference))
    except (TypeError, ValueError):
        return None


def _importable(thing: Any) -> str | None:
    """A string that `resolve` takes for the same thing: itself, a registered id, or "module:name"."""
    if isinstance(thing, str):
        return thing
    if hasattr(thing, "entry_point"):
        import gymnasium

        return thing.id if gymnasium.registry.get(thing.id) == thing else None
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "<")
    if module in (None, "__main__") or "<" in name:
        return None
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    if found is not thing:
        return None
    ours = {path: f"jax:{short}" for short, path in JAX_ENVS.items()}
    return ours.get(f"{module}:{name}", f"{module}:{name}")
