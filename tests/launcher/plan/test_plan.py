"""Where everything runs, as values: a pure function of recipe and machine."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.machine import Machine
from verst.launcher.plan.parallelism import Parallelism, megatron_parallelism
from verst.launcher.plan.plan import gpus_needed, make_plan
from verst.launcher.plan.show_plan import plan_as_data, print_plan
from verst.launcher.plan.slurm_options import cluster_of
from verst.launcher.recipe.load import load_recipe
from verst.runtime.run.plan import Pin, Plan, Process


def plan(tmp_path: Path, machine: Machine, *overrides: str) -> Plan:
    return make_plan(load_recipe(write_recipe(tmp_path), overrides), Path("/runs/test"), machine)


def processes(plan: Plan, group: str) -> list[list[Process]]:
    return [node.processes for node in plan.groups[group]]


def placed(plan: Plan) -> dict[str, tuple[str, str]]:
    """Process name -> (devices, threads)."""
    return {
        process.name: (process.env["CUDA_VISIBLE_DEVICES"], process.env["OMP_NUM_THREADS"])
        for group in plan.groups
        for node in processes(plan, group)
        for process in node
    }


def test_the_smallest_run_has_four_processes_on_two_nodes(tmp_path):
    made = plan(tmp_path, Machine(cores=2))
    assert [[p.name for p in node] for node in processes(made, "trainer")] == [
        ["controller-0", "store-0", "trainer-0"]
    ]
    assert [[p.name for p in node] for node in processes(made, "rollout")] == [["rollout-0"]]
    (controller, store, rank), (worker,) = processes(made, "trainer")[0], processes(made, "rollout")[0]
    assert controller.argv == [
        sys.executable,
        "-m",
        "verst.runtime.controller",
        "--run",
        "/runs/test",
        "--index",
        "0",
    ]
    assert store.argv[1:3] == ["-m", "verst.runtime.store.shard"]
    assert rank.argv[1:3] == ["-m", "verst.runtime.trainer.rank"]
    assert worker.argv[1:3] == ["-m", "verst.runtime.rollout.worker"]
    assert [p.on_exit for p in (controller, store, rank, worker)] == [
        "ends_run",
        "fails_run",
        "fails_run",
        "restart",
    ]
    assert worker.max_restarts == 3


def test_each_trainer_node_has_a_store_and_its_own_ranks(tmp_path):
    made = plan(tmp_path, Machine(cores=8), "trainer.nodes=2", "trainer.ranks_per_node=3")
    assert [[p.name for p in node] for node in processes(made, "trainer")] == [
        ["controller-0", "store-0", "trainer-0", "trainer-1", "trainer-2"],
        ["store-1", "trainer-3", "trainer-4", "trainer-5"],
    ]
    assert processes(made, "trainer")[1][2].argv[-2:] == ["--index", "4"]


def test_gpus_go_to_the_ranks_first_and_then_to_the_engines(tmp_path):
    machine = Machine(cores=64, gpus=("4", "5", "6", "7", "a", "b"))
    made = plan(
        tmp_path, machine, "trainer.ranks_per_node=2", "rollout.engines=2", "rollout.sglang.tp-size=2"
    )
    assert placed(made) == {
        "controller-0": ("", "1"),
        "store-0": ("", "1"),
        "trainer-0": ("4", "8"),
        "trainer-1": ("5", "8"),
        "rollout-0": ("6,7", "8"),
        "rollout-1": ("a,b", "8"),
        "gpu_use-0": ("4,5", "1"),
        "gpu_use-1": ("6,7", "1"),
        "gpu_use-2": ("a,b", "1"),
    }


@pytest.mark.parametrize(
    ("cores", "overrides", "rank", "engine"),
    [
        (2, [], "2", "1"),  # they take turns
        (8, [], "8", "4"),
        (8, ["algorithm.mode=fully_async"], "4", "4"),  # they do not
        (8, ["trainer.ranks_per_node=4", "rollout.engines=2"], "2", "2"),
        (1, ["trainer.ranks_per_node=4"], "1", "1"),
        (8, ["trainer.threads=3"], "3", "4"),
    ],
)
def test_cores_are_shared_out_as_threads(tmp_path, cores, overrides, rank, engine):
    threads = placed(plan(tmp_path, Machine(cores=cores), *overrides))
    assert (threads["trainer-0"], threads["rollout-0"]) == (("", rank), ("", engine))


def pins(plan: Plan) -> dict[str, Pin | None]:
    return {p.name: p.pin for group in plan.groups for node in processes(plan, group) for p in node}


def test_ranks_and_engines_have_cpus_of_their_own_and_the_others_none(tmp_path):
    made = plan(tmp_path, Machine(cores=8), "placement.cpus.trainer=6", "placement.nics=near")
    assert made.one_machine
    assert pins(made) == {
        "controller-0": None,
        "store-0": None,
        "trainer-0": Pin(cpus=6, near_nics=True),
        "rollout-0": Pin(turn=1, near_nics=True),  # mode sync: they take turns
    }
    assert placed(made)["trainer-0"] == ("", "6")
    overlapping = plan(tmp_path, Machine(cores=8), "algorithm.mode=fully_async", "rollout.sglang.tp-size=2")
    assert pins(overlapping)["rollout-0"] == Pin(ranks=2)
    assert set(pins(plan(tmp_path, Machine(cores=8), "placement.affinity=none")).values()) == {None}


def test_on_a_cluster_whose_cores_are_not_known_the_node_says_how_many_threads(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["slurm.sbatch.exclusive=true"])
    made = make_plan(recipe, Path("/runs/test"), cluster_of(recipe))
    assert not made.one_machine
    threads = {
        p.name: p.env.get("OMP_NUM_THREADS") for g in made.groups for n in processes(made, g) for p in n
    }
    assert threads == {"controller-0": "1", "store-0": "1", "trainer-0": None, "rollout-0": None}
    unpinned = load_recipe(write_recipe(tmp_path), ["placement.affinity=none"])
    made = make_plan(unpinned, Path("/runs/test"), cluster_of(unpinned))
    assert processes(made, "trainer")[0][2].env["OMP_NUM_THREADS"] == "1"


def test_the_plan_shows_each_processs_cpus(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    machine = Machine(cores=len(cores))
    recipe = load_recipe(write_recipe(tmp_path), ["placement.cpus={trainer: 1, rollout: 1}"])
    made = make_plan(recipe, Path("/runs/test"), machine)
    assert plan_as_data(recipe, made, machine, {})["cpus"] == {
        "trainer-0": cores[:1],
        "rollout-0": cores[:1],
    }
    console = Console(width=200, record=True, file=io.StringIO())
    print_plan(console, recipe, made, machine, {})
    assert re.search(rf"trainer-0 .* {cores[0]} \(NUMA 0\) +│ 1 ", console.export_text())


def test_colocated_engines_are_on_the_trainers_nodes_and_gpus(tmp_path):
    machine = Machine(cores=64, gpus=tuple("abcdefgh"))
    sizes = ("trainer.nodes=2", "trainer.ranks_per_node=4", "rollout.engines=4", "rollout.sglang.tp-size=2")
    made = plan(tmp_path, machine, "placement.layout=colocated", *sizes)
    assert list(made.groups) == ["trainer"]
    assert [[p.name for p in node][-4:] for node in processes(made, "trainer")] == [
        ["trainer-3", "rollout-0", "rollout-1", "gpu_use-0"],
        ["trainer-7", "rollout-2", "rollout-3", "gpu_use-1"],
    ]
    devices = {name: where for name, (where, _) in placed(made).items()}
    assert [devices[f"trainer-{n}"] for n in range(8)] == list("abcdefgh")
    assert [devices[f"rollout-{n}"] for n in range(4)] == ["a,b", "c,d", "e,f", "g,h"]
    assert {pin.turn for name, pin in pins(made).items() if pin and name.startswith("rollout")} == {1}
    assert gpus_needed(load_recipe(tmp_path / "recipe.yaml", ["placement.layout=colocated", *sizes])) == 8


def test_a_colocated_engine_over_nodes_has_the_same_gpus_of_each(tmp_path):
    sizes = ("trainer.nodes=4", "trainer.ranks_per_node=4", "rollout.engines=4", "rollout.nodes_per_engine=2")
    more = ("rollout.sglang.tp-size=4", "slurm.trainer={gpus-per-node: 4, cpus-per-task: 32}")
    recipe = load_recipe(write_recipe(tmp_path), ["placement.layout=colocated", *sizes, *more])
    made = make_plan(recipe, Path("/runs/test"), cluster_of(recipe))
    engines = [
        [(p.name, p.gpus, p.env["OMP_NUM_THREADS"]) for p in node if p.role.startswith("rollout")]
        for node in processes(made, "trainer")
    ]
    (meter,) = [p for p in processes(made, "trainer")[3] if p.role == "gpu_use"]
    assert (meter.index, meter.gpus, meter.on_exit) == (3, [0, 1, 2, 3], "ignored")
    assert engines == [
        [("rollout-0", [0, 1], "8"), ("rollout-1", [2, 3], "8")],
        [("rollout_part-1", [0, 1], "8"), ("rollout_part-3", [2, 3], "8")],
        [("rollout-2", [0, 1], "8"), ("rollout-3", [2, 3], "8")],
        [("rollout_part-5", [0, 1], "8"), ("rollout_part-7", [2, 3], "8")],
    ]


def test_the_plan_reads_back_as_itself(tmp_path):
    made = plan(tmp_path, Machine(cores=2))
    made.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == made


def test_hooks_are_found_from_the_directory_of_the_command(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    made = make_plan(recipe, Path("/runs/test"), Machine(cores=2), python_path="/home/me")
    assert {
        p.env["PYTHONPATH"] for group in made.groups for node in processes(made, group) for p in node
    } == {"/home/me"}


def test_coordinates_are_megatrons(tmp_path):
    grid = megatron_parallelism(
        {
            "tensor-model-parallel-size": 2,
            "pipeline_model_parallel_size": 2,
            "context-parallel-size": 2,
            "expert-model-parallel-size": 4,
            "expert-tensor-parallel-size": 1,
        },
        world=16,
    )
    assert grid == Parallelism(world=16, tp=2, cp=2, pp=2, ep=4, etp=1)
    assert grid.dp == 2
    assert grid.faults() == []
    # As megatron.core.parallel_state.RankGenerator has it for "tp-cp-ep-dp-pp".
    assert [grid.coordinates(rank) for rank in (0, 1, 2, 4, 8, 15)] == [
        {"tp": 0, "cp": 0, "dp": 0, "pp": 0, "ep": 0},
        {"tp": 1, "cp": 0, "dp": 0, "pp": 0, "ep": 1},
        {"tp": 0, "cp": 1, "dp": 0, "pp": 0, "ep": 2},
        {"tp": 0, "cp": 0, "dp": 1, "pp": 0, "ep": 0},
        {"tp": 0, "cp": 0, "dp": 0, "pp": 1, "ep": 0},
        {"tp": 1, "cp": 1, "dp": 1, "pp": 1, "ep": 3},
    ]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (
            Parallelism(world=6, tp=4),
            "6 ranks (trainer.nodes x trainer.ranks_per_node) cannot be divided into model copies",
        ),
        (
            Parallelism(world=6, ep=4),
            "cannot be divided into groups of 4 ranks (expert-tensor 1 x expert 4 x pipeline 1)",
        ),
    ],
)
def test_sizes_that_do_not_divide(grid, words):
    (fault,) = grid.faults()
    assert words in fault
    assert fault.endswith("the number of ranks must be a multiple of 4")


@pytest.mark.parametrize(
    "grid",
    [
        Parallelism(world=16, tp=2, cp=2, pp=2, ep=4, etp=1),
        Parallelism(world=16, tp=2, pp=2, ep=2, etp=2),
        Parallelism(world=12, tp=3, pp=2, ep=1, etp=3, pp_before_dp=True),
    ],
    ids=str,
)
def test_coordinates_agree_with_megatrons_own_generator(grid):
    from megatron.core.parallel_state import RankGenerator

    order = "tp-cp-ep-pp-dp" if grid.pp_before_dp else "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=grid.tp, ep=1, dp=grid.dp, pp=grid.pp, cp=grid.cp, order=order)
    expert_dp = grid.world // (grid.etp * grid.ep * grid.pp)
    experts = RankGenerator(tp=grid.etp, ep=grid.ep, dp=expert_dp, pp=grid.pp, cp=1, order=order)
    for name, generator in [("tp", dense), ("cp", dense), ("dp", dense), ("pp", dense), ("ep", experts)]:
        for group in generator.get_ranks(name):
            assert [grid.coordinates(rank)[name] for rank in group] == list(range(len(group))), name
