"""Reads the recipe's `slurm` section: each group's sbatch options, the cores and GPUs of its nodes, and faults."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Literal

from verst.launcher.plan.machine import Cluster, NodeOffer
from verst.launcher.plan.parallelism import engine_ranks
from verst.launcher.recipe.faults import Fault, nearest, shown
from verst.launcher.recipe.recipe import Recipe
from verst.slurm.config import OptionValue
from verst.slurm.sbatch_options import KNOWN, OWNED, option_fault, srun_fault

Group = Literal["trainer", "rollout"]
GROUPS: tuple[Group, ...] = ("trainer", "rollout")


def group_options(recipe: Recipe, group: Group) -> dict[str, OptionValue]:
    """The sbatch options of a group's jobs: the common ones and the group's own."""
    own = recipe.slurm.trainer if group == "trainer" else recipe.slurm.rollout
    return {**recipe.slurm.sbatch, **own}


def groups_of(recipe: Recipe) -> tuple[Group, ...]:
    """The groups that have nodes of their own. Colocated engines have none: they are on the trainer's."""
    alone = recipe.placement.layout == "colocated" or not recipe.algorithm.generates
    return ("trainer",) if alone else GROUPS


def cluster_of(recipe: Recipe) -> Cluster:
    """The cluster as the recipe describes it: cores and GPUs of each group's nodes, Python and network interface."""
    offers = {group: _offer(group_options(recipe, group)) for group in GROUPS}
    return Cluster(
        trainer=offers["trainer"],
        rollout=offers["rollout"],
        python=recipe.slurm.python or sys.executable,
        interface=recipe.slurm.interface,
    )


def slurm_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of the `slurm` section that show without asking the cluster."""
    for section in ("sbatch", *GROUPS):
        for option, value in getattr(recipe.slurm, section).items():
            place = f"slurm.{section}.{option}"
            if option not in KNOWN:
                closest = nearest(option, KNOWN - set(OWNED))
                yield Fault(place, f"sbatch has no option --{option} (its value is {shown(value)}).{closest}")
            elif fault := option_fault(option, value):
                yield Fault(place, fault)
    for option in recipe.slurm.srun:
        if fault := srun_fault(option):
            yield Fault("slurm.srun", fault)
    yield from _gpu_faults(recipe)
    colocated = recipe.placement.layout == "colocated"
    for key in ("throttle", "after_trainer"):
        if recipe.slurm.layout == "het" and getattr(recipe.slurm, key):
            yield Fault(f"slurm.{key}", "has no effect with slurm.layout het: all nodes start together")
    for key in ("throttle", "after_trainer", "rollout"):
        if colocated and getattr(recipe.slurm, key):
            yield Fault(
                f"slurm.{key}",
                "has no effect with placement.layout colocated: there is only the trainer's array",
            )
    if colocated and recipe.slurm.layout == "het":
        yield Fault(
            "slurm.layout",
            "is het, but with placement.layout colocated the run has only one group: set it to arrays",
        )
    yield from _time_faults(recipe)
    ranks = engine_ranks(recipe.rollout.sglang) // recipe.rollout.nodes_per_engine
    needs = {"trainer": recipe.trainer.ranks_per_node, "rollout": ranks}
    words = {
        "trainer": "trainer.ranks_per_node",
        "rollout": "an engine's ranks on a node (tp-size x pp-size)",
    }
    cluster = cluster_of(recipe)
    if "rollout" not in groups_of(recipe):
        needs["rollout"] = 0
    for group, offer in (("trainer", cluster.trainer), ("rollout", cluster.rollout)):
        if 0 < offer.gpus < needs[group]:
            yield Fault(
                f"slurm.{group}",
                f"requests {offer.gpus} GPUs per node, but {words[group]} need {needs[group]}: set gpus-per-node",
            )


def _time_faults(recipe: Recipe) -> Iterator[Fault]:
    for group in GROUPS:
        limit = _seconds(str(group_options(recipe, group).get("time", "")))
        if limit and limit <= 2 * recipe.slurm.stop_lead_s:
            yield Fault(
                "slurm.stop_lead_s",
                f"is {recipe.slurm.stop_lead_s}, at least half of the {group} job's time limit of {limit} s (`time`), "
                "so the job would be told to stop too early: raise `time`, or lower this",
            )


def _offer(options: Mapping[str, OptionValue]) -> NodeOffer:
    cores = str(options.get("cpus-per-task", ""))
    return NodeOffer(cores=int(cores) if cores.isdigit() else None, gpus=_gpus(options))


def _seconds(text: str) -> int | None:
    """Seconds of a time in one of sbatch's formats: 90 (minutes), 90:00, 1:30:00, 1-12, 1-12:30, 1-12:30:00.

    None for any other text. 0 means no limit.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, *fields = match.groups()
    numbers = [int(field) for field in fields if field is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def _gpus(options: Mapping[str, OptionValue]) -> int:
    """The GPUs per node that sbatch options request, of whatever type; 0 if none of them names GPUs.

    `gpus-per-node: h100:8`, `gpus-per-task`, `gres: gpu:8`, `tres-per-task: gres/gpu:8`, or `gpus` of one node.
    """
    for option in ("gpus-per-node", "gpus-per-task", "gpus"):
        if option in options and options[option] is not False:
            return sum(_count(part) for part in str(options[option]).split(","))
    generic = [
        part
        for option in ("gres", "tres-per-task")
        for part in str(options.get(option, "")).split(",")
        if re.match(r"(gres[:/])?gpu\b", part.strip())
    ]
    return sum(_count(part) for part in generic)


def _count(text: str) -> int:
    """The number at the end of "h100:8", "gres/gpu=8" or "gpu:8(S:0-1)"; 1 if there is none."""
    match = re.search(r"(?:^|[:=])(\d+)(?:\(.*)?$", text.strip())
    return int(match[1]) if match else 1


def _gpu_faults(recipe: Recipe) -> Iterator[Fault]:
    """`gpus` counts those of a whole job, which Slurm may spread unevenly over several nodes."""
    nodes = {"trainer": recipe.trainer.nodes, "rollout": recipe.rollout.nodes_per_engine}
    if recipe.slurm.layout == "het":
        nodes["rollout"] *= recipe.rollout.engines
    for group in groups_of(recipe):
        if "gpus" in group_options(recipe, group) and nodes[group] > 1:
            section = group if "gpus" in getattr(recipe.slurm, group) else "sbatch"
            yield Fault(
                f"slurm.{section}.gpus",
                f"counts the GPUs of a whole job, and a {group} job has {nodes[group]} nodes: use gpus-per-node",
            )
