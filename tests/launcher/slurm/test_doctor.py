"""`verst doctor --on-node` examines a node by the job that the run would be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import write_recipe
from tests.slurm.stand_in import StandIn
from verst.launcher.recipe.load import load_recipe
from verst.launcher.slurm.doctor import _node_findings, _on_node, node_report, probe_script


def test_the_probe_is_the_runs_job_for_five_minutes(tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path),
        [
            "slurm.sbatch={account: lab, time: 24:00:00, time-min: 1:00:00}",
            "slurm.trainer={partition: gpu, gpus-per-node: 8}",
            "slurm.setup=[module load cuda]",
            "slurm.container=apptainer exec x.sif",
            "slurm.srun=[--mpi=none]",
            "slurm.python=/opt/python",
            "slurm.interface=hsn0",
            "trainer.nodes=4",
        ],
    )
    lines = probe_script(recipe, tmp_path / "a b", tmp_path / "a b/report.json").splitlines()
    for option in ("account=lab", "partition=gpu", "gpus-per-node=8", "time=5", "nodes=1"):
        assert f"#SBATCH --{option}" in lines
    assert not [line for line in lines if "time-min" in line]
    assert "module load cuda" in lines
    srun = next(line for line in lines if line.startswith("srun "))
    assert "--mpi=none" in srun
    report = f"'{tmp_path}/a b/report.json'"
    assert srun.endswith(f"apptainer exec x.sif /opt/python -m verst.launcher.slurm.doctor {report} hsn0")


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        ("lo", "address 127.0.0.1 leads to no other node"),
        ("nix0", "'nix0' is neither an interface of this node"),
    ],
)
def test_an_interface_that_cannot_be_used_is_bad(tmp_path: Path, interface: str, words: str) -> None:
    node_report(tmp_path / "report.json", interface)
    first = next(_node_findings(json.loads((tmp_path / "report.json").read_text())))
    assert first.kind == "bad"
    assert words in first.text


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        (
            "PENDING|Resources",
            "note",
            "the job waits in the queue (no free nodes yet); it asks for what the run",
        ),
        ("FAILED|None", "bad", "the job that examines a node failed and wrote no report to "),
    ],
)
def test_a_busy_cluster_is_no_fault(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, kind: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verst.launcher.slurm.doctor._NODE_JOB_S", 0.0)
    stand_in.command("squeue", f'echo "11_0|{state}|"\n')
    (finding,) = _on_node(None)
    assert finding.kind == kind
    assert words in finding.text
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
