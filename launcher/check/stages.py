"""Checks `algorithm.stages`: their files, and what a run without engines has no use for."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.plan.parallelism import megatron_parallelism
from verst.launcher.plan.plan import world_size
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.algorithms.stages import RowStage
from verst.runtime.data.config import NO_PROMPTS
from verst.runtime.rollout.config import NO_ROLLOUT
from verst.runtime.store.config import RecordConfig
from verst.sync.config import WeightsConfig

_OF_POLICY_STEPS = ("step_begin", "step_end", "weights_synced", "metrics")
_WHY = "has no effect, because no stage generates anything: leave it out, or add `{kind: policy}` to algorithm.stages"


def stage_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of stages that show without reading their files."""
    dp = megatron_parallelism(recipe.trainer.megatron, world_size(recipe)).dp
    for number, stage in enumerate(recipe.algorithm.stages):
        if isinstance(stage, RowStage) and stage.batch_size < dp:
            yield Fault(
                f"algorithm.stages.{number}.batch_size",
                f"is {stage.batch_size}, which leaves some of the {dp} data-parallel ranks without work: must be at "
                f"least {dp}",
            )
        if isinstance(stage, RowStage) and stage.epochs is not None:
            yield Fault(
                f"algorithm.stages.{number}.epochs",
                f"is {stage.epochs:g}, but the rows of {stage.data.path} cannot be counted: give steps instead",
            )
    if not recipe.algorithm.generates:
        yield from _without_engines(recipe)


def _without_engines(recipe: Recipe) -> Iterator[Fault]:
    """Sections that only a run with engines uses."""
    given = {
        "rollout": recipe.rollout != NO_ROLLOUT,
        "data.train": recipe.data.train != NO_PROMPTS,
        "data.eval": recipe.data.eval is not None,
        "data.eval_engines": recipe.data.eval_engines is not None,
        "weights": recipe.weights != WeightsConfig(),
        "placement.layout": recipe.placement.layout == "colocated",
        "placement.cpus.rollout": "rollout" in recipe.placement.cpus,
        "slurm.rollout": bool(recipe.slurm.rollout),
        "slurm.throttle": bool(recipe.slurm.throttle),
        "slurm.after_trainer": bool(recipe.slurm.after_trainer),
        "slurm.layout": recipe.slurm.layout == "het",
        "record": recipe.record != RecordConfig(),
        "trainer.old_logprobs": recipe.trainer.old_logprobs != "auto",
        "trainer.max_logprob_diff": recipe.trainer.max_logprob_diff is not None,
    }
    told = recipe.hooks.paths()
    given |= {f"hooks.{name}": told[name] is not None for name in _OF_POLICY_STEPS}
    for place in (place for place, is_given in given.items() if is_given):
        yield Fault(place, _WHY)
