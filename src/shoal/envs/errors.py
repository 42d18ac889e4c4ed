"""What is raised when an environment misbehaves while it runs."""

from __future__ import annotations

from shoal.errors import ShoalError


class EnvError(ShoalError):
    """An environment raised, or showed what no policy can learn from (NaN, infinity, what its space lacks).

    The message names the environment's id, group, number in the group, episode and step; where the
    environment itself raised, `__cause__` is its own exception with its traceback.
    """
