"""The recipe's `metrics` and `logs` sections."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WandbConfig(BaseModel):
    """Weights & Biases; the package is `wandb`. What is written offline goes up later with `wandb sync`."""

    model_config = ConfigDict(extra="forbid")

    project: str = Field("verst", description="the project that the run is listed under")
    entity: str | None = Field(None, description="user or team; by default the key's own")
    mode: Literal["offline", "online"] = Field(
        "offline", description="offline: files in the run folder; online needs a network and WANDB_API_KEY"
    )


class MlflowConfig(BaseModel):
    """MLflow; the package is `mlflow` or `mlflow-skinny`."""

    model_config = ConfigDict(extra="forbid")

    tracking_uri: str | None = Field(
        None, description="a server, or a file store; by default files in the run folder's mlruns"
    )
    experiment: str = Field("verst", description="the experiment that the run is listed under")


class PrometheusConfig(BaseModel):
    """Prometheus; the package is `prometheus_client`. Needs a port, a textfile or both."""

    model_config = ConfigDict(extra="forbid")

    port: int | None = Field(
        None, ge=1, le=65535, description="the controller serves its metrics here, to anyone who can reach it"
    )
    address: str = Field("127.0.0.1", description="the address to serve on; 0.0.0.0 for every interface")
    textfile: str | None = Field(
        None, description="a file ending in .prom for the node exporter, replaced after each step"
    )


class MetricsConfig(BaseModel):
    """What a run tells besides metrics.jsonl, which it always writes. See docs/observability.md."""

    model_config = ConfigDict(extra="forbid")

    traces: bool = Field(True, description="spans of every process, for `verst trace`")
    shown_groups: int = Field(
        1, ge=0, description="prompt groups of a step that are kept to look at, below `shown/`"
    )
    shown_samples: int = Field(16, ge=1, description="of each of them at most so many samples")
    shown_every: int = Field(1, ge=1, description="steps from one such file to the next")
    shown_keep: int = Field(200, ge=1, description="the newest files to keep")
    tensorboard: bool = Field(False, description="event files in the run folder's tensorboard")
    wandb: WandbConfig | None = Field(None, description="off unless given")
    mlflow: MlflowConfig | None = Field(None, description="off unless given")
    prometheus: PrometheusConfig | None = Field(None, description="off unless given")


class LogsConfig(BaseModel):
    """The processes' logs, below `logs/` in the run folder."""

    model_config = ConfigDict(extra="forbid")

    max_mib: float = Field(64, gt=0, description="a log that grows beyond it is set aside, MiB")
    keep: int = Field(3, ge=1, description="logs set aside for each process; the oldest goes")


# Section of the recipe -> module to import, what pip calls its package.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "prometheus": ("prometheus_client", "prometheus_client"),
}


def wanted(config: MetricsConfig) -> list[str]:
    """The trackers that are asked for."""
    return [name for name in PACKAGES if getattr(config, name) not in (None, False)]
