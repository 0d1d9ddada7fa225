"""Weights & Biases. Offline by default: `wandb sync runs/NAME/wandb/offline-run-*` uploads from a login node.

A resumed run goes on under the same id. The step is a metric of its own, because a resumed run repeats some
steps, while W&B's own step may only grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import wandb
import yaml

from verst.runtime.metrics.config import WandbConfig


class WandbSink:
    """One run of a W&B project, with the recipe as its configuration."""

    def __init__(self, folder: Path, key: str, config: WandbConfig) -> None:
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=folder.name,
            id=key,
            resume="allow" if config.mode == "online" else None,
            dir=str(folder),
            mode=config.mode,
            config=yaml.safe_load((folder / "recipe.yaml").read_text()),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the figures of a step as one record."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Writes or sends the remaining figures."""
        self._run.finish()
