"""The schema of a recipe: one YAML file that describes a whole run.

The schema of each section is defined beside the code that it configures; this module puts them together.
`load.py` reads a file into a `Recipe`. `launcher/check/check.py` finds the faults that the schema cannot see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from verst.runtime.algorithms.config import AlgorithmConfig, ReferenceConfig, generates
from verst.runtime.algorithms.stages import DpoStage, StageReferenceConfig
from verst.runtime.data.config import NO_PROMPTS, DataConfig, PromptFileConfig, TrainConfig
from verst.runtime.data.own_source import is_own_source
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.metrics.config import LogsConfig, MetricsConfig
from verst.runtime.node.config import PlacementConfig
from verst.runtime.rewards.config import RewardPart
from verst.runtime.rollout.config import NO_ROLLOUT, RolloutConfig
from verst.runtime.run.folder import write_atomically
from verst.runtime.store.config import RecordConfig
from verst.runtime.trainer.config import OPTIMIZER_DEFAULTS, CheckpointConfig, TrainerConfig
from verst.slurm.config import SlurmConfig
from verst.sync.config import WeightsConfig


class Recipe(BaseModel):
    """All settings of one run."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the name of the run; its folder is `runs_dir/name`",
    )
    runs_dir: str = Field("runs", description="folder that contains the run folders")
    model: ModelConfig
    data: DataConfig
    algorithm: AlgorithmConfig
    rollout: RolloutConfig
    trainer: TrainerConfig = TrainerConfig()
    placement: PlacementConfig = PlacementConfig()
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    hooks: HooksConfig = HooksConfig()
    metrics: MetricsConfig = MetricsConfig()
    logs: LogsConfig = LogsConfig()
    record: RecordConfig = RecordConfig()
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="before")
    @classmethod
    def _prompts_and_engines_if_any(cls, given: Any) -> Any:
        """A run that generates nothing needs no `rollout` and no `data.train`."""
        if not isinstance(given, dict) or not isinstance(given.get("algorithm"), dict):
            return given
        if generates(given["algorithm"]):
            return given
        data = given.get("data") or {}
        if isinstance(data, dict):
            data = {"train": NO_PROMPTS, **data}
        return {"rollout": NO_ROLLOUT, **given, "data": data}

    @model_validator(mode="after")
    def _names_the_first_set(self) -> Recipe:
        """Writes out which evaluation set is meant where none is named."""
        first = next(iter(self.data.eval_sets), None)
        checkpoint, early = self.checkpoint, self.algorithm.early_stop
        if checkpoint.best.set is None:
            self.checkpoint = checkpoint.model_copy(
                update={"best": checkpoint.best.model_copy(update={"set": first})}
            )
        if early is not None and early.set is None:
            early.set = first
        return self

    @property
    def starts_engines(self) -> bool:
        """Whether the run generates anything."""
        return self.algorithm.generates and self.record.source is None

    @property
    def evaluates(self) -> bool:
        """Whether held-out prompts are answered: a run on a recording cannot, and one that only generates need not."""
        return bool(self.data.eval_sets) and self.starts_engines and not self.record.generate_only

    @property
    def run_folder(self) -> Path:
        """The absolute path of the run folder."""
        return Path(self.runs_dir).expanduser().absolute() / self.name

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, with every default filled in, under the same keys as in the file.

        So are the options of Megatron that decide training.
        """
        whole = self.model_dump(mode="json", by_alias=True)
        whole["algorithm"] = self.algorithm.resolved()
        if not self.algorithm.generates:
            del whole["rollout"]
            whole["data"] = {"accept_changes": self.data.accept_changes}
        whole["trainer"]["megatron"] = OPTIMIZER_DEFAULTS | whole["trainer"]["megatron"]
        return whole

    def write(self, path: Path) -> None:
        """Writes the resolved recipe to a YAML file."""
        write_atomically(path, yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True).encode())


def data_files(recipe: Recipe) -> list[Any]:
    """The sections that name a data file in their key `path`. They are the recipe's own: a change is one of it."""
    files: list[Any] = [
        file for span in recipe.algorithm.spans for file in (span.stage.data, span.stage.eval)
    ]
    if recipe.algorithm.generates:
        train = recipe.data.train
        files += [
            *(list(train.sources.values()) if train.sources else [train]),
            *recipe.data.eval_sets.values(),
        ]
    return [section for section in files if section is not None]


def reference_sections(recipe: Recipe) -> dict[str, ReferenceConfig | StageReferenceConfig]:
    """The sections that say which model a reference is, by key. They are the recipe's own: a change is one of it."""
    stages = {
        f"algorithm.stages.{number}.reference": stage.reference
        for number, stage in enumerate(recipe.algorithm.stages)
        if isinstance(stage, DpoStage)
    }
    return {"algorithm.reference": recipe.algorithm.reference, **stages}


def prompt_sections(recipe: Recipe) -> dict[str, PromptFileConfig]:
    """The files of prompts by key, complete: those of training, and the held-out ones. None if nothing generates."""
    if not recipe.algorithm.generates:
        return {}
    held_out = {recipe.data.eval_place(name): each for name, each in recipe.data.eval_sets.items()}
    return {**recipe.data.train.sections(), **held_out}


def data_paths(recipe: Recipe) -> dict[str, str]:
    """The data paths of prompts, by their keys."""
    return {f"{section}.path": source.path for section, source in prompt_sections(recipe).items()}


class Lengths(NamedTuple):
    """The most tokens of prompts and answers of one source of training prompts, and the keys that say so."""

    prompt: int
    new: int
    prompt_key: str
    new_key: str

    @property
    def told(self) -> str:
        """The sum, in words."""
        return f"{self.prompt_key} {self.prompt} + {self.new_key} {self.new} = {self.prompt + self.new}"


def training_lengths(recipe: Recipe) -> list[Lengths]:
    """The lengths of each source of `data.train`, in its order."""
    train, usual = recipe.data.train, recipe.rollout.sampling.max_new_tokens
    return [
        Lengths(
            source.max_prompt_tokens,
            source.max_new_tokens or usual,
            f"{section if _says(train, section, 'max_prompt_tokens') else 'data.train'}.max_prompt_tokens",
            f"{section}.max_new_tokens" if source.max_new_tokens else "rollout.sampling.max_new_tokens",
        )
        for section, source in train.sections().items()
    ]


def _says(train: TrainConfig, section: str, key: str) -> bool:
    """Whether the source of this section has a key of its own, or there is nowhere else that has it."""
    source = train.sources.get(section.rpartition(".")[2])
    return source is None or key in source.model_fields_set or key not in train.model_fields_set


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The classes of sections in a field's type: more than one where a key `kind` decides."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [section for argument in get_args(annotation) for section in sections_of(argument)]
    return list(dict.fromkeys(found))


def reward_parts(recipe: Recipe) -> dict[str, RewardPart]:
    """The functions of `rollout.reward`, by their keys."""
    reward = recipe.rollout.reward
    if reward is None or isinstance(reward, str):
        return {"rollout.reward": RewardPart(function=reward)} if reward is not None else {}
    return {f"rollout.reward.{place}.function": part for place, part in enumerate(reward)}


def has_reward(recipe: Recipe) -> bool:
    """Whether any function scores the answers of training. Without, a bundled generate function leaves them at 0."""
    own = recipe.rollout.agent is not None or not recipe.rollout.generate.startswith("verst.")
    sources = recipe.data.train.by_name().values()
    return bool(
        own
        or recipe.rollout.reward is not None
        or recipe.rollout.group_reward is not None
        or any(source.reward is not None for source in sources)
    )


def is_reward(place: str) -> bool:
    """Whether this key of a recipe names a reward, or a part of one."""
    return place.endswith(".reward") or place.startswith("rollout.reward.")


def hook_places(recipe: Recipe) -> dict[str, tuple[str, int | None]]:
    """The hooks that a recipe names: key -> (dotted path, number of positional arguments it is called with).

    The number is None for a hook that is not a function. docs/hooks.md has the signatures.
    """
    hooks: dict[str, tuple[str | None, int | None]] = {
        **{place: (part.function, 1) for place, part in reward_parts(recipe).items()},
        "rollout.group_reward": (recipe.rollout.group_reward, 1),
        "rollout.generate": (recipe.rollout.generate, 1),
        "rollout.agent": (recipe.rollout.agent, 1),
        "rollout.filter": (recipe.rollout.filter, 1),
        "rollout.sample_filter": (recipe.rollout.sample_filter, 1),
        **_eval_hooks(recipe),
        "algorithm.advantage": (recipe.algorithm.advantage, 1),
        "algorithm.logprob_filter": (recipe.algorithm.logprob_filter, 1),
        "algorithm.loss": (recipe.algorithm.loss, 1),
        "algorithm.loss_average": (recipe.algorithm.own_average, 1),
        "algorithm.correction": (recipe.algorithm.correction, 1),
        "algorithm.kl": (recipe.algorithm.kl, 2),
        "model.family": (recipe.model.family, None),
    }
    if not recipe.algorithm.generates:
        hooks = {"model.family": hooks["model.family"]}  # nothing calls the others
    for section, source in recipe.data.train.sections().items() if recipe.algorithm.generates else ():
        hooks[f"{section}.reward"] = source.reward, 1
        hooks[f"{section}.curriculum"] = source.curriculum, 1
    for name, told in recipe.hooks.paths().items():
        hooks[f"hooks.{name}"] = told, 1
    for place, path in data_paths(recipe).items():
        hooks[place] = path if is_own_source(path) else None, 0
    return {place: (path, arguments) for place, (path, arguments) in hooks.items() if path is not None}


def _eval_hooks(recipe: Recipe) -> dict[str, tuple[str | None, int | None]]:
    """The hooks of the evaluation sets."""
    sets = [(recipe.data.eval_place(name), each) for name, each in recipe.data.eval_sets.items()]
    return {
        f"{place}.{key}": (getattr(each, key), arguments)
        for place, each in sets
        for key, arguments in (("reward", 1), ("generate", 1), ("extract", 1))
    }
