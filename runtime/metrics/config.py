"""The recipe's `metrics` and `logs` sections."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WandbConfig(BaseModel):
    """Weights & Biases; the package is `wandb`. Upload offline files later with `wandb sync`."""

    model_config = ConfigDict(extra="forbid")

    project: str = Field("verst", description="the project that the run is listed under")
    entity: str | None = Field(None, description="user or team; by default the owner of the API key")
    mode: Literal["offline", "online"] = Field(
        "offline",
        description="offline: writes files in the run folder; online: sends to the server, which needs a "
        "network and WANDB_API_KEY",
    )


class MlflowConfig(BaseModel):
    """MLflow; the package is `mlflow` or `mlflow-skinny`."""

    model_config = ConfigDict(extra="forbid")

    tracking_uri: str | None = Field(
        None, description="a tracking server or a file store; by default files in the run folder's `mlruns`"
    )
    experiment: str = Field("verst", description="the experiment that the run is listed under")


class PrometheusConfig(BaseModel):
    """Prometheus; the package is `prometheus_client`. Set `port`, `textfile` or both."""

    model_config = ConfigDict(extra="forbid")

    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port on which the controller serves metrics to anyone who can reach it",
    )
    address: str = Field("127.0.0.1", description="address to serve on; 0.0.0.0 for every interface")
    textfile: str | None = Field(
        None, description="file for the node exporter, with a name ending in .prom; replaced after each step"
    )


class MetricsConfig(BaseModel):
    """Figures, traces and samples that a run writes besides metrics.jsonl. See docs/observability.md."""

    model_config = ConfigDict(extra="forbid")

    traces: bool = Field(True, description="record spans of time in every process, for `verst trace`")
    shown_groups: int = Field(
        1, ge=0, description="how many prompt groups of a step to keep for people to look at, in `shown/`"
    )
    shown_samples: int = Field(
        16, ge=1, description="how many samples of each of these groups to keep, at most"
    )
    shown_eval: int = Field(
        32, ge=0, description="of how many held-out prompts to keep all answers, in each evaluation"
    )
    shown_every: int = Field(
        1, ge=1, description="number of steps from one file with samples of a step to the next"
    )
    shown_keep: int = Field(
        200, ge=1, description="how many of the files of each kind to keep; older ones are removed"
    )
    tensorboard: bool = Field(False, description="write event files in the run folder's `tensorboard`")
    wandb: WandbConfig | None = Field(None, description="off unless given")
    mlflow: MlflowConfig | None = Field(None, description="off unless given")
    prometheus: PrometheusConfig | None = Field(None, description="off unless given")


class LogsConfig(BaseModel):
    """The logs of the processes, in `logs/` in the run folder."""

    model_config = ConfigDict(extra="forbid")

    max_mib: float = Field(
        64, gt=0, description="size in MiB beyond which a log is set aside and a new one begins"
    )
    keep: int = Field(3, ge=1, description="how many set-aside logs to keep for each process")


# Section of the recipe -> (module to import, name of its package for pip).
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "prometheus": ("prometheus_client", "prometheus_client"),
}


def wanted(config: MetricsConfig) -> list[str]:
    """The names of the trackers that the recipe asks for."""
    return [name for name in PACKAGES if getattr(config, name) not in (None, False)]
