"""The recipe's `slurm` section: what it asks of a node, and what is wrong with it, all at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.machine import NodeOffer
from verst.launcher.plan.plan import make_plan
from verst.launcher.plan.show_plan import print_plan
from verst.launcher.plan.slurm_options import _gpus, _seconds, cluster_of, slurm_faults
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.slurm.launch import scripts_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path)


def recipe(here: Path, *overrides: str) -> Recipe:
    return load_recipe(here, list(overrides))


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 0),
        ({"gpus-per-node": 8}, 8),
        ({"gpus-per-node": "h100:4"}, 4),
        ({"gpus-per-task": 2}, 2),
        ({"gres": "gpu:8"}, 8),
        ({"gres": "gpu:h200:4,nvme:1"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:2(S:0-1)"}, 2),
        ({"gres": "nvme:1"}, 0),
        ({"gpus": 8}, 8),
        ({"gpus": "h100:8"}, 8),
        ({"tres-per-task": "gres/gpu:4"}, 4),
        ({"tres-per-task": "cpu=8,gres/gpu:h100=4"}, 4),
        ({"gpus-per-node": "a100:4,h100:4"}, 8),
        ({"gres": "gpu:a100:4,gpu:h100:2"}, 6),
    ],
)
def test_gpus_of_a_node(options: dict[str, Any], gpus: int) -> None:
    assert _gpus(options) == gpus


def test_all_faults_of_the_section(here: Path) -> None:
    wrong = recipe(
        here,
        "slurm.sbatch.partitoin=gpu",
        "slurm.trainer.nodes=4",
        "slurm.rollout.cpus-per-task=many",
        "slurm.rollout.gpus-per-node=1",
        "rollout.sglang.tp-size=2",
    )
    assert [(fault.place, fault.message) for fault in slurm_faults(wrong)] == [
        (
            "slurm.sbatch.partitoin",
            "sbatch has no option --partitoin (its value is 'gpu'). Did you mean `partition`?",
        ),
        ("slurm.trainer.nodes", "is set by Verst: use trainer.nodes and rollout.nodes_per_engine"),
        ("slurm.rollout.cpus-per-task", "is 'many', must be a whole number"),
        (
            "slurm.rollout",
            "requests 1 GPUs per node, but an engine's ranks on a node (tp-size x pp-size) need 2: set gpus-per-node",
        ),
    ]


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        (
            "slurm.sbatch={gpus: 8}",
            "slurm.sbatch.gpus",
            "counts the GPUs of a whole job, and a trainer job has 2 nodes: use gpus-per-node",
        ),
        (
            "slurm.sbatch={gpus-per-socket: 4}",
            "slurm.sbatch.gpus-per-socket",
            "is set by Verst: use gpus-per-node",
        ),
        (
            "slurm.sbatch={job-name: foo}",
            "slurm.sbatch.job-name",
            "is set by Verst: jobs are named after the recipe's `name`",
        ),
        (
            "slurm.sbatch={test-only: true}",
            "slurm.sbatch.test-only",
            "is set by Verst: use `verst plan --slurm`, which submits nothing either",
        ),
        (
            "slurm.srun=[--mpi=none, --signal=USR1@30]",
            "slurm.srun",
            "has '--signal=USR1@30', which is set by Verst: use slurm.stop_lead_s",
        ),
        (
            "slurm.srun=[-n4]",
            "slurm.srun",
            "has '-n4', which is set by Verst: each node has one task, the agent",
        ),
        (
            "slurm.sbatch={account: true}",
            "slurm.sbatch.account",
            "is true, but sbatch wants a value for it",
        ),
        (
            "slurm.sbatch={hold: 5}",
            "slurm.sbatch.hold",
            "is 5, but sbatch takes no value for it: set it to true or false",
        ),
    ],
)
def test_options_that_would_do_something_else_are_faults(
    here: Path, options: str, place: str, message: str
) -> None:
    wrong = recipe(here, "trainer.nodes=2", options)
    assert [(fault.place, fault.message) for fault in slurm_faults(wrong)] == [(place, message)]


def test_names_that_look_like_numbers_stay_as_they_are_written(here: Path) -> None:
    for written in ("2024_10", "0123", "1_000.5", "12:30"):
        asked = recipe(here, f"slurm.sbatch={{account: {written}}}")
        assert f"#SBATCH --account={written}\n" in scripts_of(asked, Path("/r"), cluster_of(asked))["trainer"]
    assert recipe(here, "trainer.megatron.lr=1e-6").trainer.megatron["lr"] == 1e-6
    assert recipe(here, "trainer.megatron.clip-grad=1.").trainer.megatron["clip-grad"] == 1.0


def test_a_time_of_zero_is_no_limit(here: Path) -> None:
    assert not list(slurm_faults(recipe(here, "slurm.sbatch={time: 0}")))
    assert list(slurm_faults(recipe(here, "slurm.sbatch={time: 5}")))


def test_each_node_has_its_own_gpus_and_cores(here: Path) -> None:
    sizes = ["trainer.nodes=2", "trainer.ranks_per_node=2", "rollout.engines=2", "rollout.sglang.tp-size=2"]
    asked = recipe(here, *sizes, "slurm.sbatch.gpus-per-node=2", "slurm.trainer.cpus-per-task=8")
    cluster = cluster_of(asked)
    assert cluster.trainer == NodeOffer(cores=8, gpus=2)
    assert cluster.rollout == NodeOffer(cores=None, gpus=2)
    plan = make_plan(asked, Path("/runs/test"), cluster)
    assert plan.host == "auto"
    placed = {p.name: p.gpus for nodes in plan.groups.values() for n in nodes for p in n.processes}
    assert placed == {
        "controller-0": None,
        "store-0": None,
        "store-1": None,
        **{f"trainer-{rank}": [rank % 2] for rank in range(4)},
        **{f"rollout-{engine}": [0, 1] for engine in range(2)},
        **{f"gpu_use-{node}": [0, 1] for node in range(4)},
    }
    ranks = [p for n in plan.groups["trainer"] for p in n.processes if p.role == "trainer"]
    assert {p.env["OMP_NUM_THREADS"] for p in ranks} == {"4"}
    assert all("GLOO_SOCKET_IFNAME" not in p.env for p in ranks)  # each node's agent finds its own


def test_the_scripts_are_shown_as_they_are_submitted(here: Path) -> None:
    asked = recipe(here, "slurm.container=apptainer exec --nv verst.sif", "slurm.python=/usr/bin/python3")
    scripts = scripts_of(asked, Path("/runs/test"), cluster_of(asked))
    agent = "/usr/bin/python3 -m verst.launcher.slurm.job --run /runs/test --group"
    for group in ("trainer", "rollout"):
        srun = next(line for line in scripts[group].splitlines() if line.startswith("srun "))
        assert srun.endswith(f"apptainer exec --nv verst.sif {agent} {group}")
    assert not os.path.exists("runs")


def test_the_het_layout_is_one_script_of_two_components(here: Path) -> None:
    sizes = ["trainer.nodes=2", "rollout.engines=3", "slurm.layout=het", "slurm.rollout.partition=cheap"]
    asked = recipe(here, *sizes, "slurm.container=apptainer exec x.sif")
    (script,) = scripts_of(asked, Path("/runs/test"), cluster_of(asked)).values()
    trainer, rollout = script.split("#SBATCH hetjob\n")
    assert "#SBATCH --nodes=2\n" in trainer
    assert "partition" not in trainer
    assert "#SBATCH --nodes=3\n" in rollout
    assert "#SBATCH --partition=cheap\n" in rollout
    srun = next(line for line in script.splitlines() if line.startswith("srun "))
    first, second = srun.split(" : ")
    for part, group in ((first, "trainer"), (second, "rollout")):
        assert part.endswith(f" --run /runs/test --group {group}")
        assert " apptainer exec x.sif " in part


def test_what_the_het_layout_cannot_do_is_a_fault(here: Path) -> None:
    wrong = recipe(here, "slurm.layout=het", "slurm.throttle=2", "slurm.after_trainer=true")
    assert [(fault.place, fault.message) for fault in slurm_faults(wrong)] == [
        ("slurm.throttle", "has no effect with slurm.layout het: all nodes start together"),
        ("slurm.after_trainer", "has no effect with slurm.layout het: all nodes start together"),
    ]
    assert not list(slurm_faults(recipe(here, "slurm.layout=het")))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("3:30", 210),
        ("1:30:00", 5400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_time_limits_as_sbatch_writes_them(text: str, seconds: int | None) -> None:
    assert _seconds(text) == seconds


def test_a_job_that_would_be_stopped_at_once_is_refused(here: Path) -> None:
    short = recipe(here, "slurm.trainer.time=3")
    assert [fault.place for fault in slurm_faults(short)] == ["slurm.stop_lead_s"]
    assert "the trainer job's time limit of 180 s" in next(iter(slurm_faults(short))).message
    assert list(slurm_faults(recipe(here, "slurm.sbatch.time=12:00:00"))) == []


def test_a_time_limit_stays_what_was_written(here: Path) -> None:
    """YAML 1.1 takes 24:00:00 for 86400, and sbatch would take that for minutes."""
    here.write_text(here.read_text() + "slurm:\n  sbatch: {time: 24:00:00, cpus-per-task: 16, mem: 0x10}\n")
    assert recipe(here).slurm.sbatch == {"time": "24:00:00", "cpus-per-task": 16, "mem": 16}
    again = load_recipe(here, ["slurm.rollout.time=1:30:00"])
    again.write(here.parent / "resolved.yaml")
    assert load_recipe(here.parent / "resolved.yaml").slurm.rollout == {"time": "1:30:00"}


def test_the_plan_shows_how_each_script_is_submitted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = recipe(here, "slurm.sbatch.comment=a b")
    target = cluster_of(asked)
    scripts = scripts_of(asked, Path("/runs/test"), target)
    print_plan(Console(width=200), asked, make_plan(asked, Path("/runs/test"), target), target, scripts)
    shown = capsys.readouterr().out
    for group in ("trainer", "rollout"):
        assert (
            f"VERST_SUBMISSION=verst-TOKEN sbatch --parsable '--comment=a b verst-TOKEN' slurm/{group}.sh"
            in shown
        )
