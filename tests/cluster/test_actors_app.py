"""An app of actors as a Slurm job of two nodes: it comes back when it is requeued, and is cancelled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import SlurmCluster
from tests.runs.verst_run import ROOT
from verst.launcher.slurm.jobs import submissions
from verst.runtime.run.folder import RunFolder

APP = """
name: app
main: tests.runs.actors_for_tests:until_stopped
nodes: 2
actors:
  ledger: {{actor: tests.runs.actors_for_tests:Ledger, arguments: {{file: {file}}}}}
  worker: {{actor: tests.runs.actors_for_tests:Worker, count: 3, after: [ledger]}}
slurm:
  stop_lead_s: 60
  sbatch: {{mem: 1G}}
"""


@pytest.mark.long
def test_an_app_of_actors_on_two_nodes_comes_back_and_is_cancelled(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    ledger, folder = tmp_path / "ledger", RunFolder(tmp_path / "app")
    (tmp_path / "app.yaml").write_text(APP.format(file=ledger))

    def verst(*arguments: str) -> str:
        done = cluster.run(
            *(sys.executable, "-P", "-m", "verst.launcher.cli", *arguments),
            cwd=ROOT,
            timeout=90,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        )
        return done.stdout + done.stderr

    def lives() -> list[str]:
        return ledger.read_text().splitlines() if ledger.exists() else []

    said = verst("actors", "submit", str(tmp_path / "app.yaml"), f"runs_dir={tmp_path}")
    assert "1 task of 2 nodes" in said
    job = submissions(folder)[-1].job + "_0"
    cluster.wait_for(lambda: lives() == ["life 0"], "the first life", 60)
    hosts = {path.stem.split(".")[0] for path in folder.members.glob("*.json")}
    assert {"ledger-0", "worker-0", "worker-1", "worker-2", "main-0"} <= hosts
    cluster.run("scontrol", "requeue", job)
    cluster.wait_for(lambda: lives() == ["life 0", "life 1"], "the second life", 90)
    assert "cancelled" in verst("cancel", str(folder.root))
    cluster.wait_for(lambda: not cluster.queue("PENDING,RUNNING"), "an empty queue", 60)
    assert lives() == ["life 0", "life 1"]
