"""Reviews what a resumed run changes: what is refused, what is told, and whether generated groups are still of use.

The journal holds groups that were generated and not yet trained. They are kept only if every changed key is one that
neither their content nor the weights depend on (`_INNOCENT`). Otherwise they are dropped and generated anew, because
the run would train on them as if the present recipe had made them.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.epochs import with_steps
from verst.launcher.recipe.faults import UserError, shown
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.runs.model_record import ModelRecord, model_faults, recorded_model
from verst.launcher.runs.prepare import with_absolute_paths
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import Span
from verst.runtime.run.checkpoints import latest, read_manifest
from verst.runtime.run.folder import RunFolder

# Once there is a checkpoint, these make no sense.
_FIXED = {
    "model.path": "the checkpoint is of that model",
    "model.dtype": "the checkpoint's weights and optimizer state are of that type",
    "model.family": "the checkpoint's tensors have the names of that family",
    "algorithm.seed": "the order of the rows would change in the middle of the run",
    "record.source": "the run would train on the same prompts again",
}
# Neither samples nor weights depend on these. A key stands for all keys below it.
_INNOCENT = (
    "name", "runs_dir", "checkpoint", "hooks", "metrics", "logs", "slurm", "placement", "weights", "data.eval",
    "data.eval_engines", "algorithm.early_stop",
    "algorithm.steps", "algorithm.stages", "algorithm.routing_probe_interval",
    "rollout.engines", "rollout.nodes_per_engine", "rollout.min_engines", "rollout.concurrency",
    "rollout.wait_for_engines_s", "rollout.wait_for_trainer_s", "rollout.start_timeout_s",
    "rollout.request_timeout_s", "rollout.reward_timeout_s", "rollout.reward_retries", "rollout.reward_processes",
    "rollout.reward_memory_gib", "rollout.generate_timeout_s", "rollout.generate_failure",
    "rollout.max_dropped_in_a_row", "data.accept_changes", "trainer.max_logprob_diff",
    "trainer.step_timeout_s", "trainer.threads", "trainer.nodes", "trainer.ranks_per_node",
    "trainer.max_tokens_per_microbatch",
    "trainer.megatron.tensor-model-parallel-size", "trainer.megatron.pipeline-model-parallel-size",
    "trainer.megatron.context-parallel-size", "trainer.megatron.expert-model-parallel-size",
    "trainer.megatron.expert-tensor-parallel-size", "trainer.megatron.sequence-parallel",
    "trainer.megatron.use-distributed-optimizer",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A key whose value differs between two lives of a run. None for a key that one of them does not have."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {_value(self.before)} -> {_value(self.after)}"

    def concerns(self, key: str) -> bool:
        """Whether it is a change of `key` or of a key below it."""
        return self.key == key or self.key.startswith(f"{key}.")


@dataclass(frozen=True)
class Review:
    """What a resumed run changes."""

    changes: list[Change]
    drops_groups: list[Change]  # the changes for which the journal is dropped


def review(folder: RunFolder, overrides: list[str]) -> Review:
    """Compares the recipe of the run's last life with the one that `overrides` make of it.

    Raises UserError for a change that makes no sense, and RecipeError for faults of the schema. Takes little time, so
    that the slow checks come after it.
    """
    for override in overrides:
        if override.partition("=")[0] in ("name", "runs_dir"):
            raise UserError(
                f"{override}: a resumed run cannot change its name or folder; `verst run` starts a new run"
            )
    before, after = load_recipe(folder.recipe), with_steps(load_recipe(folder.recipe, overrides))
    if model_folder(after.model.path) is not None:
        after = with_absolute_paths(after)
    changes = compare(before, after)
    checkpoint = latest(folder.checkpoints)
    began, model = recorded_model(folder), model_folder(after.model.path)
    faults = model_faults(began, model) if began is not None and model is not None else []
    if checkpoint is None:  # the run begins again, perhaps with another model
        changes += _replaced(began) if faults and before.model.path == after.model.path else []
    else:
        _refuse(changes, checkpoint, began, faults)
        manifest = read_manifest(checkpoint)
        version = manifest.version
        if after.algorithm.critic is not None and manifest.critic is None:
            raise UserError(
                f"algorithm.critic: {checkpoint.name} was written without a critic, and has none to go on with: start "
                "the run anew"
            )
        _refuse_changed_stages(before, after, version, folder)
        trained = version - after.algorithm.offline_steps
        if after.algorithm.generates and after.algorithm.steps < trained:
            raise UserError(
                f"algorithm.steps: is {after.algorithm.steps}, but {folder.root} has trained {trained} steps "
                f"already ({checkpoint.name}): set it to more than {trained} to train further"
            )
    return Review(changes, [change for change in changes if not is_innocent(change, after)])


def compare(before: Recipe, after: Recipe) -> list[Change]:
    """The keys whose values differ, in the order of the recipe."""
    old, new = dict(flat(before.resolved())), dict(flat(after.resolved()))
    return [
        Change(key, old.get(key), new.get(key)) for key in [*old, *(k for k in new if k not in old)]
        if old.get(key) != new.get(key)
    ]  # fmt: skip


def carry_out(folder: RunFolder, found: Review) -> None:
    """Tells what changed, on stdout and in events.jsonl, and drops the journal if the changes ask for it.

    No process of the run may be running.
    """
    if not found.changes:
        return
    said = [f"changed since the last life: {'; '.join(map(str, found.changes))}"]
    journals = list(folder.samples.glob("*/*.journal"))  # those of a recording are one folder further down
    if found.drops_groups and journals:
        for journal in journals:
            journal.unlink()
        keys = ", ".join(change.key for change in found.drops_groups)
        said.append(
            f"groups that were generated and not yet trained are dropped and made anew, because {keys} changed"
        )
    for message in said:
        print(message, flush=True)
        folder.event("recipe_changed", message=message)


def _refuse(changes: list[Change], checkpoint: Path, began: ModelRecord | None, of_model: list[str]) -> None:
    wrong = [
        f"{change}: {why}" for change in changes for key, why in _FIXED.items()
        if change.concerns(key) and not _is_moved_model(change, began)
    ]  # fmt: skip
    wrong += of_model
    if wrong:
        raise UserError(
            "\n".join(
                [
                    f"a run with a checkpoint ({checkpoint.name}) cannot change:",
                    *(f"  {line}" for line in wrong),
                    "`verst run` starts a new run with the changed recipe",
                ]
            )
        )


def _replaced(began: ModelRecord | None) -> list[Change]:
    """The change of a model in its place, which no key of the recipe shows: groups that it generated are dropped."""
    return [Change("model.path", began.path, f"{began.path} with other contents")] if began else []


def _is_moved_model(change: Change, began: ModelRecord | None) -> bool:
    """Whether a change of model.path may be the same model at another place.

    If the run noted which model it `began` with, `model_faults` decides. Else config.json must be equal, unless
    the old place is gone.
    """
    if change.key != "model.path":
        return False
    old, new = model_folder(str(change.before)), model_folder(str(change.after))
    if new is None:
        return False
    return (
        began is not None
        or old is None
        or filecmp.cmp(old / "config.json", new / "config.json", shallow=False)
    )


def is_innocent(change: Change, after: Recipe) -> bool:
    """Whether neither the content of groups nor the weights depend on the changed key."""
    if change.key == "algorithm.steps":
        megatron, critic = after.trainer.megatron, after.algorithm.critic
        models = [megatron] if critic is None else [megatron, critic.arguments(megatron)]
        # A schedule that ends with the run gives the same step another learning rate.
        return all("lr-decay-iters" in m or m.get("lr-decay-style", "constant") == "constant" for m in models)
    return any(change.concerns(key) for key in _INNOCENT)


def _refuse_changed_stages(before: Recipe, after: Recipe, version: int, folder: RunFolder) -> None:
    """Raises UserError if a stage that has begun is another one now. Only its number of steps may change, if it is not
    over yet, and what is measured."""
    was, now = before.algorithm.spans, after.algorithm.spans
    if len(now) != len(was) and version > before.algorithm.offline_steps:
        raise UserError(
            f"algorithm.stages: the last stage has begun, so there cannot be {_more(was, now)} before it"
        )
    for number, span in enumerate(was):
        if span.first >= version:
            return  # it has not begun
        if number >= len(now) or _essence(now[number]) != _essence(span):
            raise UserError(
                f"{span.place}: {folder.root} has trained {version} steps already, so this stage can change only its "
                "steps, its eval and the place of its data; `verst run` starts a new run with the changed recipe"
            )
        steps = now[number].stage.planned_steps
        if steps != span.stage.planned_steps and (version > span.end or now[number].end < version):
            raise UserError(
                f"{span.place}.steps: is {steps}, but {folder.root} has trained {version} steps already "
                "and cannot go back"
            )


def longer(algorithm: AlgorithmConfig) -> str:
    """An override that makes a run longer, as an example."""
    if algorithm.generates:
        return f"algorithm.steps={2 * algorithm.steps}"
    last = algorithm.spans[-1]
    return f"{last.place}.steps={2 * last.stage.planned_steps}"


def _more(was: list[Span], now: list[Span]) -> str:
    return "more stages" if len(now) > len(was) else "fewer stages"


def _essence(span: Span) -> dict[str, Any]:
    """What decides how a stage trains, without its length. Its rows are compared when the run starts."""
    return span.stage.model_dump(exclude={"steps": True, "epochs": True, "eval": True, "data": {"path"}})


def flat(section: Mapping[str, Any], place: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by dotted key, e.g. of a resolved recipe. An empty mapping has no keys."""
    found: list[tuple[str, Any]] = []
    for key, value in section.items():
        inside = f"{place}.{key}" if place else str(key)
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            value = dict(enumerate(value))
        found += flat(value, inside) if isinstance(value, Mapping) else [(inside, value)]
    return found


def _value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else shown(value)
