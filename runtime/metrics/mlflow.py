"""MLflow: sends to a tracking server, or by default to a file store in the run folder.

Look at a file store with `mlflow ui --backend-store-uri …`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from verst.runtime.metrics.config import MlflowConfig

# Newer versions require this before they write files. A database would not work on a shared file system.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

_TAG = "verst.run"


class MlflowSink:
    """One run of an experiment. A resumed run continues the same one."""

    def __init__(self, folder: Path, key: str, config: MlflowConfig) -> None:
        self._client = MlflowClient(config.tracking_uri or (folder / "mlruns").as_uri())
        experiment = self._client.get_experiment_by_name(config.experiment)
        id = experiment.experiment_id if experiment else self._client.create_experiment(config.experiment)
        known = self._client.search_runs([id], f"tags.`{_TAG}` = '{key}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(id, tags={_TAG: key}, run_name=folder.name).info.run_id
            self._client.log_batch(self._run, params=[Param("run_folder", str(folder))])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values with one call."""
        now = int(time.time() * 1000)
        metrics = [Metric(_flat(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Marks the run as ended, for this life of it."""
        self._client.set_terminated(self._run)


def _flat(name: str) -> str:
    """Replaces all slashes but the first: `seconds/train/optimizer` becomes `seconds/train.optimizer`.

    The file store makes a folder for the part before a slash, but `seconds/train` is a file there already.
    The first slash is kept because MLflow's page groups metrics by it.
    """
    group, slash, rest = name.partition("/")
    return group + slash + rest.replace("/", ".").replace("@", "_at_")
