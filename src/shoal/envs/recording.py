"""Videos of episodes, through Gymnasium's own recorder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.envs.source import Source, resolve
from shoal.errors import ShoalError


def recorded(how: Mapping[str, Any], folder: Path) -> Source:
    """The source that `resolve(**how)` gives, its first episode recorded as a video into `folder`.

    Raises ShoalError where the environment cannot be recorded.
    """
    if resolve(**how).journal == "state":
        raise ShoalError(f"{how['env']} is written in JAX and cannot be recorded as a video")
    try:
        import moviepy  # noqa: F401  # pyright: ignore[reportMissingImports]
        from gymnasium.wrappers import RecordVideo
    except ImportError as error:
        raise ShoalError(f"a video needs {error.name}: pip install 'shoal[video]'") from error

    def record(env: Any) -> Any:
        return RecordVideo(
            env, str(folder), episode_trigger=lambda episode: episode == 0, disable_logger=True
        )

    kwargs = {**(how.get("env_kwargs") or {}), "render_mode": "rgb_array"}
    wrappers = [*how.get("wrappers", ()), record]
    # Without a probe for the journal, whose episodes would be the ones recorded.
    return resolve(**{**how, "env_kwargs": kwargs, "wrappers": wrappers, "vector": False, "journal": "none"})
