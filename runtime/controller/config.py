"""The parts of the recipe that the controller reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from verst.runtime.algorithms.config import AlgorithmConfig, EarlyStopConfig
from verst.runtime.controller.state_machine.early_stop import EarlyStopRule
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.loop_state import Settings
from verst.runtime.data.config import NO_PROMPTS, DataConfig
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.node.config import PlacementConfig
from verst.runtime.rollout.config import NO_ROLLOUT, RolloutConfig
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.config import RecordConfig
from verst.runtime.trainer.config import CheckpointConfig, TrainerConfig
from verst.sync.config import WeightsConfig


@dataclass(frozen=True)
class ControllerConfig:
    """The recipe's sections, validated."""

    model: ModelConfig
    data: DataConfig
    algorithm: AlgorithmConfig
    rollout: RolloutConfig
    trainer: TrainerConfig
    weights: WeightsConfig
    checkpoint: CheckpointConfig
    metrics: MetricsConfig
    placement: PlacementConfig
    hooks: HooksConfig = field(default_factory=HooksConfig)
    record: RecordConfig = field(default_factory=RecordConfig)

    @staticmethod
    def read(folder: RunFolder) -> ControllerConfig:
        """Reads the run's resolved recipe."""
        algorithm = folder.section("algorithm", AlgorithmConfig)
        return ControllerConfig(
            model=folder.section("model", ModelConfig),
            data=folder.section("data", DataConfig) if algorithm.generates else _no_prompts(folder),
            algorithm=algorithm,
            rollout=folder.section("rollout", RolloutConfig) if algorithm.generates else NO_ROLLOUT,
            trainer=folder.section("trainer", TrainerConfig),
            weights=folder.section("weights", WeightsConfig),
            checkpoint=folder.section("checkpoint", CheckpointConfig),
            metrics=folder.section("metrics", MetricsConfig),
            placement=folder.section("placement", PlacementConfig),
            hooks=folder.section("hooks", HooksConfig),
            record=folder.section("record", RecordConfig),
        )

    @property
    def generates(self) -> bool:
        """Whether the run has engines."""
        return self.algorithm.generates and self.record.source is None

    @property
    def evaluates(self) -> bool:
        """Whether the run answers held-out prompts, if it has any."""
        return self.generates and not self.record.generate_only

    def max_sample_tokens(self, pad_multiple: int) -> int:
        """The longest sample that fits into a micro-batch, where lengths are padded to a multiple of `pad_multiple`."""
        budget = self.trainer.max_tokens_per_microbatch
        return budget - budget % pad_multiple

    def settings(self, evals: Sequence[EvalSet], max_sample_tokens: int) -> Settings:
        """The settings of the state machine, with the evaluation sets."""
        algorithm = self.algorithm
        most_dropped = self.rollout.max_dropped_in_a_row
        if most_dropped is None:
            most_dropped = max(1000, 10 * algorithm.prompts_per_step)
        return Settings(
            steps=algorithm.policy_steps,
            prompts_per_step=algorithm.prompts_per_step,
            samples_per_prompt=algorithm.samples_per_prompt,
            staleness=algorithm.staleness,
            in_order=algorithm.mode != "fully_async",
            offline_steps=algorithm.offline_steps,
            checkpoint_interval=self.checkpoint.interval,
            evals=tuple(evals) if self.evaluates else (),
            eval_engines=self.data.eval_engines,
            early_stop=early_stop_rule(algorithm.early_stop, list(self.data.eval_sets))
            if self.evaluates
            else None,
            min_engines=self.rollout.min_engines if self.generates else 0,
            colocated=self.generates and self.placement.layout == "colocated",
            concurrency=self.rollout.concurrency,
            max_sample_tokens=max_sample_tokens,
            max_dropped_in_a_row=most_dropped,
            filter=self.rollout.filter,
            last_recorded=self.record.last_step,
            generate_only=self.record.generate_only,
        )


def early_stop_rule(config: EarlyStopConfig | None, sets: Sequence[str]) -> EarlyStopRule | None:
    """The rule of `algorithm.early_stop`; by default it is about the first of the evaluation sets."""
    if config is None:
        return None
    return EarlyStopRule(config.set or sets[0], config.metric, config.patience, config.min_delta)


def _no_prompts(folder: RunFolder) -> DataConfig:
    class Rest(BaseModel):
        accept_changes: bool = False

    return DataConfig(train=NO_PROMPTS, accept_changes=folder.section("data", Rest).accept_changes)
