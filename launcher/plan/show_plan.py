"""Prints a plan, for `verst plan`: processes, each trainer rank's place in the grid, memory, commands, scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from verst.launcher.plan.machine import Machine, Target
from verst.launcher.plan.memory import MemoryEstimate, estimate_memory, in_words
from verst.launcher.plan.model_files import model_files
from verst.launcher.plan.model_source import model_folder
from verst.launcher.plan.parallelism import Parallelism, megatron_parallelism
from verst.launcher.plan.plan import world_size
from verst.launcher.plan.show_places import cpus_in_words, known_places
from verst.launcher.plan.training import training_lines, training_of
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.node.affinity import Place
from verst.runtime.run.plan import Plan, Process
from verst.slurm.submission import TOKEN, sbatch_command

_SOME_TOKEN = "verst-TOKEN"


def print_plan(
    console: Console, recipe: Recipe, plan: Plan, target: Target, scripts: Mapping[str, str]
) -> None:
    """Prints a plan for people."""
    grid = _grid(recipe)
    console.print(f"[bold]{recipe.name}[/] on {_in_words(target)}", highlight=False)
    sizes = f"TP {grid.tp} x CP {grid.cp} x PP {grid.pp} x DP {grid.dp}"
    console.print(
        f"{_count(world_size(recipe), 'trainer rank')} ({sizes}, EP {grid.ep}), {_stages(recipe)}",
        highlight=False,
    )
    places, remarks = known_places(plan, target)
    console.print(_processes(plan, grid, places, target))
    for remark in remarks:
        console.print(remark, highlight=False)
    folder = model_folder(recipe.model.path)
    if folder is not None:
        console.print(f"{recipe.model.path}: {model_files(folder).in_words()}", highlight=False, markup=False)
    memory = _memory(recipe, grid)
    if memory is not None:
        console.print(
            f"Memory for weights, gradients and optimizer state, without activations and caches: "
            f"{in_words(memory.trainer_rank)} per trainer rank"
            + (f", {in_words(memory.engine_rank)} per engine rank " if recipe.starts_engines else " ")
            + f"({memory.parameters / 1e6:.0f}M parameters)",
            highlight=False,
        )
    for line in training_lines(training_of(recipe)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("\nCommands (started by the node agents):")
    for process in _all(plan):
        environment = " ".join(f"{key}={shlex.quote(value)}" for key, value in process.env.items())
        console.print(
            f"  {environment} {shlex.join(process.argv)}", soft_wrap=True, highlight=False, markup=False
        )
    for name, script in scripts.items():
        console.print(f"\n[bold]slurm/{name}.sh, as submitted[/]", highlight=False)
        console.print(script, soft_wrap=True, highlight=False, markup=False)
        command = sbatch_command(Path(f"slurm/{name}.sh"), script, _SOME_TOKEN)
        console.print(
            f"It is submitted by: {TOKEN}={_SOME_TOKEN} {shlex.join(command)}\n"
            f"{_SOME_TOKEN} stands for a name that is drawn for each submission, to find its job by.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def plan_as_data(recipe: Recipe, plan: Plan, target: Target, scripts: Mapping[str, str]) -> dict[str, Any]:
    """A plan as plain data, for `verst plan --json`."""
    grid = _grid(recipe)
    memory = _memory(recipe, grid)
    return {
        "name": recipe.name,
        "machine": {"cores": target.cores, "gpus": list(target.gpus)}
        if isinstance(target, Machine)
        else None,
        "scripts": dict(scripts),
        "parallelism": {**{n: getattr(grid, n) for n in ("world", "tp", "cp", "pp", "dp", "ep", "etp")}},
        "ranks": [{"rank": rank, **grid.coordinates(rank)} for rank in range(grid.world)],
        "memory": None if memory is None else msgspec.to_builtins(memory),
        "training": msgspec.to_builtins(training_of(recipe)),
        "cpus": {name: list(place.cpus) for name, place in known_places(plan, target)[0].items()},
        "plan": msgspec.to_builtins(plan),
        "recipe": recipe.resolved(),
    }


def _stages(recipe: Recipe) -> str:
    algorithm = recipe.algorithm
    parts = [
        f"{span.stage.kind}: {_count(span.stage.planned_steps, 'step')} of {span.stage.batch_size} rows"
        for span in algorithm.spans
    ]
    if not algorithm.generates:
        return ", ".join(["no engine", *parts])
    if recipe.record.source is not None:
        trained = (
            "1 recorded step" if recipe.record.last_step else f"{_count(algorithm.steps, 'recorded step')}"
        )
        return ", ".join(["no engine", *parts, trained])
    policy = f"{algorithm.steps} steps of {algorithm.prompts_per_step} prompts x {algorithm.samples_per_prompt} samples"
    return ", ".join([_count(recipe.rollout.engines, "engine"), f"mode {algorithm.mode}", *parts, policy])


def _in_words(target: Target) -> str:
    if isinstance(target, Machine):
        gpus = f"GPUs {','.join(target.gpus)}" if target.gpus else "no GPU"
        return f"this machine: {target.cores} cores, {gpus}"
    return f"Slurm, {target.trainer.gpus} GPUs per trainer node and {target.rollout.gpus} per rollout node"


def _grid(recipe: Recipe) -> Parallelism:
    return megatron_parallelism(recipe.trainer.megatron, world_size(recipe))


def _memory(recipe: Recipe, grid: Parallelism) -> MemoryEstimate | None:
    folder = model_folder(recipe.model.path)
    return None if folder is None else estimate_memory(recipe, folder, grid)


def _processes(plan: Plan, grid: Parallelism, places: Mapping[str, Place], target: Target) -> Table:
    table = Table("node", "process", "place in the grid", "devices", "CPUs", "threads", "if it ends")
    for group, nodes in plan.groups.items():
        for number, node in enumerate(nodes):
            for place, process in enumerate(node.processes):
                table.add_row(
                    f"{group} {number}" if place == 0 else "",
                    process.name,
                    _coordinates(process, grid),
                    _devices(process),
                    cpus_in_words(process, places, target),
                    process.env.get("OMP_NUM_THREADS", "by CPUs"),
                    _end(process),
                    end_section=place == len(node.processes) - 1,
                )
    return table


def _coordinates(process: Process, grid: Parallelism) -> str:
    if process.role != "trainer":
        return ""
    return " ".join(f"{name}{index}" for name, index in grid.coordinates(process.index).items())


def _devices(process: Process) -> str:
    if process.gpus is not None:
        return "node's GPUs " + ",".join(map(str, process.gpus))
    return process.env.get("CUDA_VISIBLE_DEVICES") or "cpu"


def _end(process: Process) -> str:
    if process.on_exit == "restart":
        return f"restart, at most {_count(process.max_restarts, 'time')}"
    return {
        "ends_run": "the run ends",
        "fails_run": "the run fails",
        "restart_always": "always restart",
        "ignored": "the run goes on",
    }[process.on_exit]


def _all(plan: Plan) -> list[Process]:
    return [process for nodes in plan.groups.values() for node in nodes for process in node.processes]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
