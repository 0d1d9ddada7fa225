"""Makes the plan of a run: which process runs where, on which devices, with which command. A pure function.

In the colocated layout there is one group: the engines are on the trainer's nodes, on the GPUs of its ranks.
On one machine all nodes of the plan are node agents side by side. They share the machine's GPUs (trainer
ranks get the first ones, engines the next) and its CPU cores, as threads. On a cluster each node has its own.
The node agent chooses the exact CPUs of its ranks and engines, from the topology of its node
(`verst.runtime.node.affinity`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec

from verst.launcher.plan.machine import Cluster, Machine, Target
from verst.launcher.plan.parallelism import engine_ranks
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.node import gpu_use
from verst.runtime.run.plan import Node, Pin, Plan, Process

ROLLOUT_RESTARTS = 3  # most restarts of each rollout worker within one life of the run


def make_plan(recipe: Recipe, run_folder: Path, target: Target, python_path: str = "") -> Plan:
    """Places every process of the run. The recipe must have passed `check.check_recipe` for the same target.

    `python_path`: the PYTHONPATH where the processes find the recipe's hooks, even after a resume from
    another directory.
    """
    trainer = [_trainer_node(recipe, run_folder, target, n) for n in range(recipe.trainer.nodes)]
    rollout = [
        _rollout_process(recipe, run_folder, target, n)
        for n in range(recipe.rollout.engines * recipe.rollout.nodes_per_engine)
    ]
    if not recipe.starts_engines:
        groups = {"trainer": trainer}
    elif is_colocated(recipe):
        for node, processes in enumerate(trainer):
            processes += [p for n, p in enumerate(rollout) if engine_slot(recipe, n)[0] == node]
        groups = {"trainer": trainer}
    else:
        groups = {"trainer": trainer, "rollout": [[process] for process in rollout]}
    for number, processes in enumerate(p for members in groups.values() for p in members):
        processes += _gpu_use(target, run_folder, number, processes)
    nodes = {group: [Node(processes=p) for p in members] for group, members in groups.items()}
    if python_path:
        nodes = {
            group: [_with_path(node, python_path) for node in members] for group, members in nodes.items()
        }
    host = target.interface if isinstance(target, Cluster) else "127.0.0.1"
    return Plan(
        name=recipe.name,
        groups=nodes,
        host=host,
        one_machine=isinstance(target, Machine),
        log_bytes=int(recipe.logs.max_mib * (1 << 20)),
        logs_kept=recipe.logs.keep,
    )


def is_colocated(recipe: Recipe) -> bool:
    """Whether the engines share the trainer's GPUs."""
    return recipe.placement.layout == "colocated"


def engine_slot(recipe: Recipe, number: int) -> tuple[int, int]:
    """Where part `number` of all engines' parts runs in the colocated layout: (trainer node, first GPU on it).

    An engine has one part on each of its nodes, with the same GPUs on each.
    """
    parts = recipe.rollout.nodes_per_engine
    ranks = engine_ranks(recipe.rollout.sglang) // parts
    engine, part = divmod(number, parts)
    block, column = divmod(engine, max(1, recipe.trainer.ranks_per_node // ranks))
    return block * parts + part, column * ranks


def gpus_needed(recipe: Recipe) -> int:
    """The GPUs of the whole run: one for each trainer rank and, unless colocated, one for each engine rank."""
    if is_colocated(recipe) or not recipe.starts_engines:
        return world_size(recipe)
    return world_size(recipe) + recipe.rollout.engines * engine_ranks(recipe.rollout.sglang)


def world_size(recipe: Recipe) -> int:
    """The number of trainer ranks."""
    return recipe.trainer.nodes * recipe.trainer.ranks_per_node


def _trainer_node(recipe: Recipe, run_folder: Path, target: Target, node: int) -> list[Process]:
    quiet = _environment(target, threads=1, gpus=False)
    processes = []
    if node == 0:
        processes.append(
            Process(
                role="controller",
                index=0,
                argv=_command(target, "verst.runtime.controller", run_folder, 0),
                env=quiet | {"CUDA_VISIBLE_DEVICES": ""},
                on_exit="ends_run",
            )
        )
    processes.append(
        Process(
            role="store",
            index=node,
            argv=_command(target, "verst.runtime.store.shard", run_folder, node),
            env=quiet | {"CUDA_VISIBLE_DEVICES": ""},
        )
    )
    per_node = recipe.trainer.ranks_per_node
    threads = recipe.trainer.threads or _trainer_threads(recipe, target)
    pin = _pin(recipe, "trainer", ranks=1)
    for rank in range(node * per_node, (node + 1) * per_node):
        visible, gpus = _devices(target, "trainer", first=rank, count=1, first_on_node=rank - node * per_node)
        processes.append(
            Process(
                role="trainer",
                index=rank,
                argv=_command(target, "verst.runtime.trainer.rank", run_folder, rank),
                env=visible
                | _environment(target, threads, gpus=bool(gpus or visible["CUDA_VISIBLE_DEVICES"])),
                gpus=gpus,
                pin=pin,
            )
        )
    return processes


def _rollout_process(recipe: Recipe, run_folder: Path, target: Target, node: int) -> Process:
    """The process on one of an engine's nodes: the rollout worker on its first, a part of the engine on the others."""
    nodes = recipe.rollout.nodes_per_engine
    ranks = engine_ranks(recipe.rollout.sglang) // nodes  # engine ranks on this node
    first, group, on_node = world_size(recipe) + node * ranks, "rollout", 0
    if is_colocated(recipe):
        of_trainer, on_node = engine_slot(recipe, node)
        first, group = of_trainer * recipe.trainer.ranks_per_node + on_node, "trainer"
    visible, gpus = _devices(target, group, first=first, count=ranks, first_on_node=on_node)
    pin = _pin(recipe, "rollout", ranks)
    engine, part = divmod(node, nodes)
    role, index, module = (
        ("rollout", engine, "verst.runtime.rollout.worker")
        if part == 0
        else ("rollout_part", node, "verst.runtime.rollout.engine.part")
    )
    return Process(
        role=role,
        index=index,
        argv=_command(target, module, run_folder, index),
        env=visible
        | _environment(
            target,
            _engine_threads(recipe, target, ranks),
            gpus=bool(gpus or visible["CUDA_VISIBLE_DEVICES"]),
        ),
        gpus=gpus,
        pin=pin,
        on_exit="restart",
        max_restarts=ROLLOUT_RESTARTS,
    )


def _gpu_use(target: Target, run_folder: Path, number: int, processes: list[Process]) -> list[Process]:
    """The process that measures the node's GPUs for the dashboard; none on a node without GPUs."""
    places = sorted({place for process in processes for place in process.gpus or ()})
    names = [n for p in processes for n in p.env.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
    if not places and not names:
        return []
    quiet = _environment(target, threads=1, gpus=True)
    return [
        Process(
            role=gpu_use.ROLE,
            index=number,
            argv=_command(target, "verst.runtime.node.gpu_use", run_folder, number),
            env=quiet | {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(names))},
            gpus=list(range(max(places) + 1)) if places else None,
            on_exit="ignored",
        )
    ]


def _devices(
    target: Target, group: str, *, first: int, count: int, first_on_node: int
) -> tuple[dict[str, str], list[int] | None]:
    """A process's GPUs: as CUDA_VISIBLE_DEVICES on this machine, as positions among the node's GPUs on a cluster.

    Returns the environment and, on a cluster, the positions.
    """
    if isinstance(target, Machine):
        return {"CUDA_VISIBLE_DEVICES": ",".join(target.gpus[first : first + count])}, None
    offer = target.trainer if group == "trainer" else target.rollout
    places = list(range(first_on_node, first_on_node + count)) if offer.gpus else None
    return {"CUDA_VISIBLE_DEVICES": ""}, places


def _pin(recipe: Recipe, role: Literal["trainer", "rollout"], ranks: int) -> Pin | None:
    """The request for CPUs of a process's own. Trainer and engines that take turns may get the same CPUs."""
    placement = recipe.placement
    if placement.affinity == "none":
        return None
    turn = 1 if role == "rollout" and recipe.algorithm.mode == "sync" else 0
    cpus = placement.cpus.get(role)
    return Pin(cpus=cpus, turn=turn, ranks=ranks, near_nics=placement.nics == "near")


def _trainer_threads(recipe: Recipe, target: Target) -> int | None:
    """OMP_NUM_THREADS of a trainer rank: its share of the cores. None if only the node agent can know it.

    On one machine the ranks share all cores when trainer and engines take turns, else half of them.
    """
    stated = recipe.placement.cpus.get("trainer")
    if isinstance(target, Cluster):
        cores, ranks = target.trainer.cores, recipe.trainer.ranks_per_node
    else:  # without a policy stage there are no engines, and the mode is the default, sync
        cores = target.cores if recipe.algorithm.mode == "sync" else target.cores // 2
        ranks = world_size(recipe)
    if stated is None and cores is None:
        return _known_on_node(recipe)
    share = stated or max(1, (cores or 1) // ranks)
    # With GPUs the threads only feed the GPUs. Beyond a few, they cost more in wake-ups than they gain.
    feeds = bool(target.trainer.gpus if isinstance(target, Cluster) else target.gpus)
    return min(share, 8) if feeds else share


def _engine_threads(recipe: Recipe, target: Target, ranks: int) -> int | None:
    """OMP_NUM_THREADS of each of an engine's `ranks` on a node. None if only the node agent can know it.

    On one machine the engines share half of the cores: their servers and tokenizers need some too.
    """
    stated = recipe.placement.cpus.get("rollout")
    if stated is not None:
        return max(1, stated // ranks)
    if isinstance(target, Cluster):
        cores = target.rollout.cores
        if is_colocated(recipe):
            cores = target.trainer.cores
            ranks *= max(1, recipe.trainer.ranks_per_node // ranks)  # the ranks of all engines on the node
        return _known_on_node(recipe) if cores is None else max(1, cores // ranks)
    return max(1, target.cores // (2 * recipe.rollout.engines * recipe.rollout.nodes_per_engine * ranks))


def _known_on_node(recipe: Recipe) -> int | None:
    """None if the node agent will choose CPUs, else 1: without CPUs of its own, a process can rely on one only."""
    return None if recipe.placement.affinity == "auto" else 1


def _command(target: Target, module: str, run_folder: Path, index: int) -> list[str]:
    python = target.python if isinstance(target, Cluster) else sys.executable
    return [python, "-m", module, "--run", str(run_folder), "--index", str(index)]


def _environment(target: Target, threads: int | None, gpus: bool) -> dict[str, str]:
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if isinstance(target, Machine):
        # Stay on this machine: otherwise torch.distributed picks an interface by the host's name.
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    if not gpus:
        # Trainer and engine may share cores, so a waiting thread must not spin.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return environment


def _with_path(node: Node, python_path: str) -> Node:
    return Node(
        processes=[
            msgspec.structs.replace(process, env={**process.env, "PYTHONPATH": python_path})
            for process in node.processes
        ]
    )
