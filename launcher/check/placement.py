"""Faults of where a recipe puts its processes: sizes, GPUs, CPUs, and what sharing GPUs asks for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.parallelism import argument, engine_ranks, megatron_parallelism
from verst.launcher.plan.plan import gpus_needed, is_colocated, world_size
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

# Megatron arguments that count on memory staying where it is.
_FIXED_ADDRESSES = ("cuda-graph-impl", "enable-cuda-graph", "external-cuda-graph", "use-nccl-ub")


def placement_faults(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """`machine` is the one that the recipe is to run on, None for a cluster."""
    yield from _sizes(recipe, machine)
    yield from _cpus(recipe, machine)
    if is_colocated(recipe):
        yield from _colocated(recipe, machine)


def _sizes(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    for fault in megatron_parallelism(recipe.trainer.megatron, world_size(recipe)).faults():
        yield Fault("trainer.megatron", fault)
    rollout = recipe.rollout
    if rollout.min_engines > rollout.engines:
        yield Fault(
            "rollout.min_engines",
            f"is {rollout.min_engines}, more than rollout.engines ({rollout.engines}): the run could never begin",
        )
    ranks = engine_ranks(rollout.sglang)
    if ranks % rollout.nodes_per_engine:
        yield Fault(
            "rollout.nodes_per_engine",
            f"is {rollout.nodes_per_engine}, which does not divide the engine's {ranks} ranks "
            "(rollout.sglang: tp-size x pp-size)",
        )
    if machine is not None and machine.gpus and gpus_needed(recipe) > len(machine.gpus):
        engines = f", {rollout.engines} x {engine_ranks(rollout.sglang)} for engines"
        shared = is_colocated(recipe)
        yield Fault(
            "trainer.ranks_per_node",
            f"the run needs {gpus_needed(recipe)} GPUs "
            f"({world_size(recipe)} for trainer ranks{'' if shared else engines}), "
            f"this machine offers {len(machine.gpus)}: {','.join(machine.gpus)}. "
            "`CUDA_VISIBLE_DEVICES= verst run` runs it on the CPU",
        )


def _colocated(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """What trainer and engines on the same GPUs ask for."""
    rollout, trainer = recipe.rollout, recipe.trainer
    if recipe.algorithm.mode != "sync":
        yield Fault(
            "placement.layout",
            f"is colocated: trainer and engines take turns on the same GPUs, but in mode {recipe.algorithm.mode} "
            "they work at the same time; set algorithm.mode to sync, or the layout to disaggregated",
        )
    ranks = engine_ranks(rollout.sglang) // rollout.nodes_per_engine
    slots = trainer.ranks_per_node // max(1, ranks) * (trainer.nodes // rollout.nodes_per_engine)
    if rollout.engines > slots:
        yield Fault(
            "rollout.engines",
            f"is {rollout.engines}: with placement.layout colocated {trainer.nodes} x {trainer.ranks_per_node} "
            f"GPUs of the trainer have room for {slots} engines of {ranks} on each of "
            f"{rollout.nodes_per_engine} nodes",
        )
    if machine is not None and machine.gpus and find_spec("torch_memory_saver") is None:
        yield Fault(
            "placement.layout",
            "is colocated: engines give their GPU's memory back through the package torch-memory-saver, which is not "
            "installed: pip install 'verst[gpu]'",
        )
    for name in _FIXED_ADDRESSES:
        if argument(trainer.megatron, name) not in (None, False, "none"):
            yield Fault(
                f"trainer.megatron.{name}",
                "does not go with placement.layout colocated: it counts on memory that stays where it is, and the "
                "trainer's is at other addresses in each of its turns",
            )
    if recipe.weights.double_buffer:
        yield Fault(
            "weights.double_buffer",
            "does not go with placement.layout colocated: no engine generates while its weights come",
        )
    if recipe.weights.backend == "nccl":
        yield Fault(
            "weights.backend",
            "is nccl, which refuses a trainer rank and an engine on one GPU (placement.layout colocated): "
            "set it to ipc or gloo, or leave it out",
        )


def _cpus(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """CPUs that are stated and not there; without a word on them processes share what there is."""
    for role, cpus in recipe.placement.cpus.items():
        place = f"placement.cpus.{role}"
        if recipe.placement.affinity == "none":
            yield Fault(
                place, "has no meaning with placement.affinity none; leave it out, or set affinity to auto"
            )
        count = (
            world_size(recipe)
            if role == "trainer"
            else recipe.rollout.engines * recipe.rollout.nodes_per_engine
        )
        if machine is not None and cpus * count > machine.cores:
            yield Fault(
                place,
                f"is {cpus}: {count} x {cpus} CPUs are more than the {machine.cores} that this machine has",
            )
