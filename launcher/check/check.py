"""Faults that a recipe's schema cannot see: what its sections ask of each other, of files and of the machine.

`examine` is the whole of it: schema, cross-checks, hooks, Megatron's and SGLang's own parsers, everything
that is wrong in one list.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verst.launcher.check.arguments import argument_faults
from verst.launcher.check.data import data_faults
from verst.launcher.check.engine import engine_faults
from verst.launcher.check.hooks import hook_fault
from verst.launcher.check.metrics import metrics_faults
from verst.launcher.check.weights import weights_faults
from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_source import ModelMissingError, is_mixture_of_experts, model_description
from verst.launcher.plan.parallelism import argument, engine_ranks, megatron_parallelism
from verst.launcher.plan.plan import gpus_needed, is_colocated, world_size
from verst.launcher.plan.slurm_options import slurm_faults
from verst.launcher.recipe.faults import Fault, RecipeError
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.recipe.recipe import Recipe, hook_places
from verst.runtime.algorithms.config import AlgorithmConfig

_CACHES_ELSEWHERE = ("enable-hierarchical-cache", "enable-lmcache", "enable-flexkv")
_FIXED_ADDRESSES = ("cuda-graph-impl", "enable-cuda-graph", "external-cuda-graph", "use-nccl-ub")


def examine(path: Path, overrides: list[str] | tuple[str, ...], machine: Machine | None) -> Recipe:
    """Reads a recipe and checks all of it. Raises RecipeError with every fault.

    `machine` is the one that it is to run on, None for a cluster.
    """
    file, recipe, faults = parse_recipe(path, overrides)
    if recipe is not None:
        known = {fault.place for fault in faults}
        faults += [fault for fault in check_recipe(recipe, machine) if not _follows_from(fault.place, known)]
    if faults or recipe is None:
        raise RecipeError(file.name, [file.line(fault) for fault in faults])
    return recipe


def check_recipe(recipe: Recipe, machine: Machine | None, parsers: bool = True) -> list[Fault]:
    """Every fault of a recipe whose schema is right; `parsers`: Megatron's and SGLang's too, some 20 s."""
    description, faults = _model(recipe)
    faults += [
        *data_faults(recipe),
        *_hooks(recipe),
        *_placement(recipe, machine),
        *engine_faults(recipe.rollout),
        *_cpus(recipe, machine),
        *(_colocated(recipe, machine) if is_colocated(recipe) else ()),
        *slurm_faults(recipe),
        *metrics_faults(recipe.metrics),
        *weights_faults(recipe, description, machine),
        *_batch(recipe),
        *_staleness(recipe.algorithm),
        *_lengths(recipe, description),
    ]
    replays = recipe.algorithm.routing_replay != "off"
    if replays and description is not None and not is_mixture_of_experts(description):
        faults.append(
            Fault(
                "algorithm.routing_replay",
                f"is {recipe.algorithm.routing_replay}, but {recipe.model.path} is a dense model (its config.json "
                "names no experts); there is no routing to replay: set it to off",
            )
        )
    faults += _lost_routing(recipe)
    faults += _mixed_choices(recipe, description or {})
    return faults + argument_faults(recipe) if parsers else faults


def _follows_from(place: str, known: set[str]) -> bool:
    """Whether the place, or something inside or around it, is already known to be faulty."""
    return any(place == k or place.startswith(k + ".") or k.startswith(place + ".") for k in known if k)


def _model(recipe: Recipe) -> tuple[dict[str, Any] | None, list[Fault]]:
    try:
        return model_description(recipe.model.path), []
    except ModelMissingError as error:
        return None, [Fault("model.path", f"is {recipe.model.path!r}: {error}")]


def _lost_routing(recipe: Recipe) -> Iterator[Fault]:
    """SGLang writes experts down by slot of the GPU's cache: of a token that comes back into another they are lost."""
    if recipe.algorithm.routing_replay != "rollout":
        return
    for name, value in recipe.rollout.sglang.items():
        if name.replace("_", "-") in _CACHES_ELSEWHERE and value is not False:
            yield Fault(
                f"rollout.sglang.{name}",
                "brings cached tokens back without the experts that they were computed with, and "
                "algorithm.routing_replay is rollout: leave it out, or set routing_replay to trainer or off",
            )


def _mixed_choices(recipe: Recipe, description: dict[str, Any]) -> Iterator[Fault]:
    """SGLang 0.5.17 takes down the experts of the model alone, but what sparse attention goes to of drafts too, whose
    layer for multi-token prediction counts as layer 0 (model_runner.py: init_indexer_capturer has no guard)."""
    sparse = (description.get("text_config") or description).get("index_topk")
    if recipe.algorithm.routing_replay != "rollout" or not sparse:
        return
    for name, value in recipe.rollout.sglang.items():
        if name.replace("_", "-") == "speculative-algorithm" and value:
            yield Fault(
                f"rollout.sglang.{name}",
                f"is {value}: SGLang would give the draft's choices of sparse attention for those of layer 0, and "
                "algorithm.routing_replay is rollout: leave it out, or set routing_replay to trainer or off",
            )


def _hooks(recipe: Recipe) -> Iterator[Fault]:
    for place, (dotted, arguments) in hook_places(recipe).items():
        fault = hook_fault(dotted, arguments)
        if fault is not None:
            yield Fault(place, fault)


def _placement(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
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


def _batch(recipe: Recipe) -> Iterator[Fault]:
    algorithm = recipe.algorithm
    dp = megatron_parallelism(recipe.trainer.megatron, world_size(recipe)).dp
    samples = algorithm.prompts_per_step * algorithm.samples_per_prompt
    if samples < dp:
        yield Fault(
            "algorithm.prompts_per_step",
            f"is {algorithm.prompts_per_step}: {algorithm.prompts_per_step} x samples_per_prompt "
            f"{algorithm.samples_per_prompt} = {samples} samples leave some of {dp} data-parallel ranks without work; "
            f"{dp} samples are the least",
        )
    normalised = AlgorithmConfig.model_fields["advantage"].default
    if algorithm.samples_per_prompt == 1 and algorithm.advantage == normalised:
        yield Fault(
            "algorithm.samples_per_prompt",
            "is 1: the advantage of a sample over its group is then always 0 and nothing is learned; at least 2",
        )
    if algorithm.samples_per_prompt > 1 and recipe.rollout.sampling.temperature == 0:
        yield Fault(
            "rollout.sampling.temperature",
            f"is 0: all {algorithm.samples_per_prompt} samples of a prompt would be the same; must be greater than 0",
        )


def _staleness(algorithm: AlgorithmConfig) -> Iterator[Fault]:
    bound = algorithm.max_staleness
    wrong = {
        "sync": bound not in (None, 0) and "every group is trained in its own version: 0, or leave it out",
        "one_step_off": bound == 0 and "groups are one version old: at least 1, or mode sync",
        "fully_async": bound == 0 and "groups are older than the weights: at least 1, or mode sync",
    }[algorithm.mode]
    if wrong:
        yield Fault("algorithm.max_staleness", f"is {bound}, but in mode {algorithm.mode} {wrong}")


def _lengths(recipe: Recipe, description: dict[str, Any] | None) -> Iterator[Fault]:
    new, prompt = recipe.rollout.sampling.max_new_tokens, recipe.data.train.max_prompt_tokens
    limit = recipe.trainer.max_tokens_per_microbatch
    longest = (
        f"data.train.max_prompt_tokens {prompt} + rollout.sampling.max_new_tokens {new} = {prompt + new}"
    )
    if prompt + new > limit:
        yield Fault(
            "trainer.max_tokens_per_microbatch",
            f"is {limit}, less than the longest sample ({longest}): such a sample could never be trained on",
        )
    window = (description or {}).get("max_position_embeddings")
    if isinstance(window, int) and prompt + new > window:
        yield Fault(
            "rollout.sampling.max_new_tokens",
            f"is {new}: {longest} tokens do not fit into the model's {window} positions",
        )
