"""Starts the metric trackers that a recipe's `metrics` section names."""

from __future__ import annotations

import logging
import secrets
from functools import partial

from verst.runtime.metrics.config import MetricsConfig, wanted
from verst.runtime.metrics.sinks import MetricSinks, Sink
from verst.runtime.run.folder import RunFolder, write_atomically

log = logging.getLogger(__name__)


def open_sinks(folder: RunFolder, config: MetricsConfig) -> MetricSinks:
    """Starts the recipe's trackers."""
    makers = {name: partial(_make, name, folder, config) for name in wanted(config)}
    return MetricSinks(makers, partial(_tell, folder))


def _make(name: str, folder: RunFolder, config: MetricsConfig) -> Sink:
    if name == "tensorboard":
        from verst.runtime.metrics.tensorboard import TensorboardSink

        return TensorboardSink(folder.root / "tensorboard")
    if name == "wandb":
        from verst.runtime.metrics.wandb import WandbSink

        assert config.wandb is not None
        return WandbSink(folder.root, run_key(folder), config.wandb)
    if name == "mlflow":
        from verst.runtime.metrics.mlflow import MlflowSink

        assert config.mlflow is not None
        return MlflowSink(folder.root, run_key(folder), config.mlflow)
    from verst.runtime.metrics.prometheus import PrometheusSink

    assert config.prometheus is not None
    return PrometheusSink(folder.root.name, config.prometheus)


def run_key(folder: RunFolder) -> str:
    """The name by which trackers know this run, in all its lives. Makes it at the first call."""
    path = folder.root / ".tracked-as"
    if not path.exists():
        write_atomically(path, f"{folder.root.name}-{secrets.token_hex(4)}".encode())
    return path.read_text()


def _tell(folder: RunFolder, message: str) -> None:
    log.warning(message)
    try:
        folder.event("metrics_off", message=message)
    except OSError as error:
        log.warning("the event about it cannot be written: %s", error)
