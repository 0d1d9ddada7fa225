"""The recipe's `record` section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RecordConfig(BaseModel):
    """Keeps what a run generates, or trains on what another one kept."""

    model_config = ConfigDict(extra="forbid")

    keep: bool = Field(
        False,
        description="keep all prompt groups in `samples/` of the run folder: else a group is deleted once a checkpoint "
        "covers the step that trained on it",
    )
    generate_only: bool = Field(
        False,
        description="with keep: generate, score and keep the groups of each step, and train on none of them. The "
        "trainer only holds the weights that the engines get; there are no checkpoints and no export. "
        "`verst run --rollout-only` sets it",
    )
    source: str | None = Field(
        None,
        description="the folder of a run that kept its groups: train on these, step by step, and start no engine. "
        "`verst run --train-only` sets it",
    )
    last_step: int | None = Field(
        None,
        ge=1,
        description="with source: end after this step, without a checkpoint or an export. `verst replay` sets it",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> RecordConfig:
        if self.keep and self.source:
            raise ValueError("keep has no effect with source: the groups are kept there")
        if self.generate_only and not self.keep:
            raise ValueError("generate_only needs keep: true, or nothing would be left of the run")
        if self.last_step and not self.source:
            raise ValueError("last_step has no effect without source")
        return self
