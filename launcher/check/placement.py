"""Checks where a recipe places its processes: parallel sizes, GPUs, CPUs, and the colocated layout."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.parallelism import argument, engine_ranks, megatron_parallelism
from verst.launcher.plan.plan import gpus_needed, is_colocated, world_size
from verst.launcher.plan.slurm_options import cluster_of
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

# Megatron arguments that need memory to stay at the same address.
_FIXED_ADDRESSES = ("cuda-graph-impl", "enable-cuda-graph", "external-cuda-graph", "use-nccl-ub")


def placement_faults(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """The faults of the placement. `machine` is the machine that the recipe will run on; None for a cluster."""
    yield from _sizes(recipe, machine)
    yield from _cpus(recipe, machine)
    if recipe.starts_engines and recipe.model.dtype == "float32" and _engines_have_gpus(recipe, machine):
        on_cpu = (
            ". `CUDA_VISIBLE_DEVICES= verst run` runs the recipe on the CPU" if machine is not None else ""
        )
        yield Fault(  # seen: its RMSNorm kernel fails in the first forward pass (SGLang 0.5.17)
            "model.dtype",
            f"is float32, which SGLang's kernels do not take on a GPU: set it to bfloat16{on_cpu}",
        )
    if is_colocated(recipe) and recipe.starts_engines:
        yield from _colocated(recipe, machine)


def _engines_have_gpus(recipe: Recipe, machine: Machine | None) -> bool:
    if machine is not None:
        return bool(machine.gpus)
    cluster = cluster_of(recipe)
    return (cluster.trainer if is_colocated(recipe) else cluster.rollout).gpus > 0


def _sizes(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    for fault in megatron_parallelism(recipe.trainer.megatron, world_size(recipe)).faults():
        yield Fault("trainer.megatron", fault)
    rollout = recipe.rollout
    if rollout.min_engines > rollout.engines:
        yield Fault(
            "rollout.min_engines",
            f"is {rollout.min_engines}, more than rollout.engines ({rollout.engines}): the run could never start",
        )
    ranks = engine_ranks(rollout.sglang)
    if ranks % rollout.nodes_per_engine:
        yield Fault(
            "rollout.nodes_per_engine",
            f"is {rollout.nodes_per_engine}, which does not divide the {ranks} ranks of an engine "
            "(rollout.sglang: tp-size x pp-size)",
        )
    if machine is not None and machine.gpus and gpus_needed(recipe) > len(machine.gpus):
        engines = f", {rollout.engines} x {engine_ranks(rollout.sglang)} for engines"
        none = is_colocated(recipe) or not recipe.starts_engines
        yield Fault(
            "trainer.ranks_per_node",
            f"the run needs {gpus_needed(recipe)} GPUs "
            f"({world_size(recipe)} for trainer ranks{'' if none else engines}), "
            f"but this machine has {len(machine.gpus)}: {','.join(machine.gpus)}. "
            "`CUDA_VISIBLE_DEVICES= verst run` runs it on the CPU",
        )


def _colocated(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """The faults of a recipe whose trainer and engines share GPUs."""
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
            f"is {rollout.engines}, but with placement.layout colocated the trainer's {trainer.nodes} x "
            f"{trainer.ranks_per_node} GPUs have room for only {slots} engines of {ranks} GPUs on each of "
            f"{rollout.nodes_per_engine} nodes",
        )
    if machine is not None and machine.gpus and find_spec("torch_memory_saver") is None:
        yield Fault(
            "placement.layout",
            "is colocated, but the package torch-memory-saver, with which engines release their GPU memory, is not "
            "installed: `scripts/environment.sh gpu` in the checkout installs it",
        )
    for name in _FIXED_ADDRESSES:
        if argument(trainer.megatron, name) not in (None, False, "none"):
            yield Fault(
                f"trainer.megatron.{name}",
                "cannot be used with placement.layout colocated: it needs memory at fixed addresses, and the "
                "trainer's memory moves from turn to turn",
            )
    if recipe.weights.double_buffer:
        yield Fault(
            "weights.double_buffer",
            "cannot be used with placement.layout colocated: no engine generates while weights are sent",
        )
    if recipe.weights.backend == "nccl":
        yield Fault(
            "weights.backend",
            "is nccl, which cannot connect a trainer rank and an engine on the same GPU (placement.layout "
            "colocated): set it to ipc or gloo, or leave it out",
        )


def _cpus(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """The faults of `placement.cpus`: more CPUs than there are. Processes without an entry share the CPUs."""
    for role, cpus in recipe.placement.cpus.items():
        place = f"placement.cpus.{role}"
        if recipe.placement.affinity == "none":
            yield Fault(
                place, "has no effect with placement.affinity none: leave it out, or set affinity to auto"
            )
        count = (
            world_size(recipe)
            if role == "trainer"
            else recipe.rollout.engines * recipe.rollout.nodes_per_engine
        )
        if machine is not None and cpus * count > machine.cores:
            yield Fault(
                place,
                f"is {cpus}: {count} x {cpus} CPUs are more than this machine's {machine.cores}",
            )
