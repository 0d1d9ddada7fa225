"""A whole run on the test cluster through the `verst` command: real Megatron, real SGLang, real Slurm."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.cluster.slurm_cluster import SlurmCluster
from tests.runs.tiny_moe import RECIPE, tiny_overrides
from tests.runs.verst_run import ROOT, VerstRun
from verst.launcher.slurm.jobs import submissions
from verst.runtime.run.ending import RunEnd, last_end
from verst.runtime.run.folder import RunFolder


class SlurmRun(VerstRun):
    """The tiny mixture of experts, submitted. `lines` of VerstRun read its metrics and events."""

    def __init__(self, cluster: SlurmCluster, model: Path, folder: Path, *overrides: str) -> None:
        super().__init__(str(RECIPE), folder, (*tiny_overrides(model), *overrides))
        self.cluster = cluster
        self.run_folder = RunFolder(folder)

    def verst(self, *arguments: str, check: bool = True, user: str | None = None) -> str:
        """Calls the command on the login node; returns what it printed."""
        done = self.cluster.run(
            *(sys.executable, "-P", "-m", "verst.launcher.cli", *arguments),
            check=check,
            cwd=ROOT,
            user=user,
            timeout=120,
            env={"COLUMNS": "120", "NO_COLOR": "1", "PATH": os.environ["PATH"]},
        )
        return done.stdout + done.stderr

    def submit(self) -> str:
        """`verst submit`."""
        place = [f"runs_dir={self.folder.parent}", f"name={self.folder.name}"]
        return self.verst("submit", self.recipe, *place, *self.overrides)

    @property
    def trainer(self) -> str:
        """The trainer's job as Slurm's commands want it, the last one submitted."""
        return [s.job for s in submissions(self.run_folder) if s.group == "trainer"][-1] + "_0"

    def wait_lines(self, kind: str, count: int, file: str = "metrics.jsonl", timeout: float = 240) -> None:
        """Waits until the run has written `count` lines of a kind."""
        self.cluster.wait_for(
            lambda: len(self.lines(kind, file)) >= count or self._over(), f"{count} {kind}", timeout
        )
        assert len(self.lines(kind, file)) >= count, self.told()

    def wait_end(self, timeout: float = 400) -> RunEnd:
        """Waits until the run is over for good."""
        try:
            return self.cluster.wait_for(self._over, "the run to end", timeout)  # type: ignore[return-value]
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def _over(self) -> RunEnd | None:
        end = last_end(self.run_folder)
        return end if end is not None and not end.resumes else None

    def told(self) -> str:
        """The run's events and the end of every log."""
        path = self.folder / "events.jsonl"
        text = path.read_text()[-6000:] if path.exists() else "no events"
        for log in sorted([*self.folder.glob("logs/life-*/*/*/*.log"), *self.folder.glob("logs/slurm/*")]):
            text += f"\n--- {log.relative_to(self.folder)}\n{log.read_text(errors='replace')[-1500:]}"
        return text
