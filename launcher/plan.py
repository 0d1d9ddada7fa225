"""Recipe and machine -> which process runs where, on what, with which command. A pure function.

One machine for now: the groups' nodes are then node agents side by side, GPUs are dealt to trainer ranks
first and to engines after them, CPU cores are shared out as threads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from verst.launcher.machine import Machine
from verst.launcher.parallelism import engine_ranks
from verst.launcher.recipe import Recipe
from verst.runtime.plan import Node, Plan, Process

ROLLOUT_RESTARTS = 3  # of each worker, within one life of the run


def make_plan(recipe: Recipe, run_folder: Path, machine: Machine, python_path: str = "") -> Plan:
    """Places every process of the run on this machine. The recipe has passed `check.check_recipe`.

    `python_path` is where the processes find the recipe's hooks, also when the run is resumed from elsewhere.
    """
    nodes = {
        "trainer": [_trainer_node(recipe, run_folder, machine, n) for n in range(recipe.trainer.nodes)],
        "rollout": [_rollout_node(recipe, run_folder, machine, n) for n in range(recipe.rollout.engines)],
    }
    if python_path:
        nodes = {
            group: [_with_path(node, python_path) for node in members] for group, members in nodes.items()
        }
    return Plan(name=recipe.name, groups=nodes)


def gpus_needed(recipe: Recipe) -> int:
    """GPUs of the whole run: one for each trainer rank and each rank of each engine."""
    return world_size(recipe) + recipe.rollout.engines * engine_ranks(recipe.rollout.sglang)


def world_size(recipe: Recipe) -> int:
    """Trainer ranks."""
    return recipe.trainer.nodes * recipe.trainer.ranks_per_node


def _trainer_node(recipe: Recipe, run_folder: Path, machine: Machine, node: int) -> Node:
    processes = []
    if node == 0:
        processes.append(
            Process(
                role="controller",
                index=0,
                argv=_command("verst.runtime.controller", run_folder, 0),
                env=_environment(devices=(), threads=1),
                on_exit="ends_run",
            )
        )
    processes.append(
        Process(
            role="store",
            index=node,
            argv=_command("verst.runtime.store", run_folder, node),
            env=_environment(devices=(), threads=1),
        )
    )
    first = node * recipe.trainer.ranks_per_node
    for rank in range(first, first + recipe.trainer.ranks_per_node):
        processes.append(
            Process(
                role="trainer",
                index=rank,
                argv=_command("verst.runtime.trainer.rank", run_folder, rank),
                env=_environment(
                    devices=machine.gpus[rank : rank + 1],
                    threads=recipe.trainer.threads or _threads(recipe, machine, world_size(recipe)),
                ),
            )
        )
    return Node(processes=processes)


def _rollout_node(recipe: Recipe, run_folder: Path, machine: Machine, engine: int) -> Node:
    ranks = engine_ranks(recipe.rollout.sglang)
    first = world_size(recipe) + engine * ranks
    return Node(
        processes=[
            Process(
                role="rollout",
                index=engine,
                argv=_command("verst.runtime.rollout.worker", run_folder, engine),
                env=_environment(
                    devices=machine.gpus[first : first + ranks],
                    threads=max(1, machine.cores // (2 * recipe.rollout.engines * ranks)),
                ),
                on_exit="restart",
                max_restarts=ROLLOUT_RESTARTS,
            )
        ]
    )


def _threads(recipe: Recipe, machine: Machine, ranks: int) -> int:
    """A rank's share of the cores: of all of them when trainer and engines take turns, else of half."""
    share = machine.cores if recipe.algorithm.mode == "sync" else machine.cores // 2
    # With GPUs the threads only feed them; more than a few then cost more in wake-ups than they give.
    return max(1, min(share // ranks, 8 if machine.gpus else share))


def _command(module: str, run_folder: Path, index: int) -> list[str]:
    return [sys.executable, "-m", module, "--run", str(run_folder), "--index", str(index)]


def _environment(devices: tuple[str, ...], threads: int) -> dict[str, str]:
    environment = {
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "OMP_NUM_THREADS": str(threads),
        # torch.distributed picks an interface by the host's name if it is not told: stay on this machine.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    if not devices:
        # Trainer and engine share the cores: a thread that waits must not spin on one.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return environment


def _with_path(node: Node, python_path: str) -> Node:
    return Node(
        processes=[
            msgspec.structs.replace(process, env={**process.env, "PYTHONPATH": python_path})
            for process in node.processes
        ]
    )
