"""What the user gave as code, on its way to another process: unpacked only there, by our own hand.

Ray unpacks arguments before a task begins; then it is too late to say where modules lie, or that JAX shall
leave the GPUs alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from shoal.errors import ShoalError


class Luggage(NamedTuple):
    """pickled: by Ray's cloudpickle. paths: where the sender finds its modules."""

    pickled: bytes
    paths: tuple[str, ...]


def pack(thing: Any) -> Luggage:
    """Raises ShoalError, one line, for what cannot travel."""
    from ray.cloudpickle import cloudpickle

    try:
        pickled = cloudpickle.dumps(thing)
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise ShoalError(
            f"the environment, a wrapper or the algorithm cannot be sent to env runners: {error}; give a "
            "class or function that can be imported, or one that holds nothing but plain data"
        ) from error
    return Luggage(pickled, tuple(str(Path(path or ".").resolve()) for path in sys.path))


def unpack(luggage: Luggage, *, gpu: bool = False) -> Any:
    """What was packed. Modules are found where the sender found them, as far as those places exist here.
    gpu: whether this process may use one; it decides it for good, if JAX has not started yet."""
    if not gpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path += [path for path in luggage.paths if path not in sys.path and Path(path).exists()]
    from ray.cloudpickle import cloudpickle

    return cloudpickle.loads(luggage.pickled)
