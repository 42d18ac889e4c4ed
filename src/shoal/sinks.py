"""The writers of a run directory, opened where the run stands: what lies beyond is cut first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal import writers
from shoal.errors import ShoalError, did_you_mean
from shoal.rundir import RunDir
from shoal.writers import JsonLines, MLflow, TensorBoard, WandB, Writer, cut, cut_events

SINKS: dict[str, Callable[[RunDir, str], Writer]] = {
    "tensorboard": lambda run, run_id: TensorBoard(run.tensorboard_path),
    "wandb": lambda run, run_id: WandB(
        "shoal", run_id=run_id, name=run.path.name, config=run.config, folder=run.path
    ),
    "mlflow": lambda run, run_id: MLflow("shoal", run_id=run_id, name=run.path.name, config=run.config),
}
_PACKAGES: dict[str, Callable[[], object]] = {
    "tensorboard": writers.import_tensorboard,
    "wandb": writers.import_wandb,
    "mlflow": writers.import_mlflow,
}


def check_sinks(names: Sequence[str]) -> None:
    """Raises ShoalError for a name that is no sink."""
    if isinstance(names, str):
        raise ShoalError(f"sinks must be several names such as ({names!r},), got {names!r}")
    for name in names:
        if name not in SINKS:
            raise ShoalError(f"unknown sink {name!r}: {did_you_mean(name, SINKS)}")


def check_packages(names: Sequence[str]) -> None:
    """Raises ShoalError where a sink's package is missing: to be asked before a run directory is made. A run
    that is only looked at needs none of them."""
    for name in names:
        _PACKAGES[name]()


def open_writers(run: RunDir, iteration: int, env_steps: int) -> list[Writer]:
    """metrics.jsonl and the sinks that the run's config names, ready for the row after `iteration`."""
    cut(run.metrics_path, iteration)
    cut_events(run.tensorboard_path, env_steps)
    run_id = f"{run.path.name}-{run.config['run_id']}"
    return [JsonLines(run.metrics_path), *(SINKS[name](run, run_id) for name in run.config["sinks"])]
