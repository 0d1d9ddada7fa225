"""The recipe's `hooks` section: functions of a person that are told what happens in the run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# These run on each of the trainer's ranks, all others on the controller.
ON_RANKS = ("before_logprobs", "before_update", "after_update")
TOLD = ("run_start", "step_begin", "step_end", "weights_synced", "checkpoint_saved", "run_end")


class HooksConfig(BaseModel):
    """Functions that are told what happens, each a dotted path `module:function`; docs/hooks.md has what they get."""

    model_config = ConfigDict(extra="forbid")

    run_start: str | None = Field(None, description="is told when the loop begins, in each life of the run")
    step_begin: str | None = Field(None, description="is told before the trainer begins a policy step")
    step_end: str | None = Field(None, description="is told after each policy step; the run waits for it")
    before_logprobs: str | None = Field(
        None,
        description="is called on each rank of the trainer before it computes log-probabilities of a step's samples, "
        "with its part of the model",
    )
    before_update: str | None = Field(
        None,
        description="is called on each rank of the trainer before each update, with its part of the model, the "
        "optimizer and the schedule of the learning rate",
    )
    after_update: str | None = Field(None, description="the same after each update")
    weights_synced: str | None = Field(None, description="is told when engines have got new weights")
    checkpoint_saved: str | None = Field(None, description="is told when a checkpoint is complete")
    run_end: str | None = Field(None, description="is told how the run, or this life of it, ended")
    metrics: str | None = Field(
        None,
        description="gets each policy step and returns figures by name, which are reported as `own/NAME`",
    )
    timeout_s: float = Field(
        60,
        gt=0,
        description="seconds that each call on the controller may take; on the ranks `trainer.step_timeout_s` counts",
    )
    failure: Literal["fail", "warn"] = Field(
        "fail",
        description="what an error of these functions does. fail: the run ends with the reason. warn: it goes on, and "
        "an event tells",
    )

    @model_validator(mode="after")
    def _ranks_cannot_warn(self) -> HooksConfig:
        named = [name for name in ON_RANKS if getattr(self, name) is not None]
        if self.failure == "warn" and named:
            raise ValueError(
                f"failure is warn, but {', '.join(named)} works on the model itself, where an error always ends the "
                "run: set failure to fail"
            )
        return self

    def on_controller(self) -> dict[str, str | None]:
        """The functions that run on the controller, by their key."""
        return {name: getattr(self, name) for name in (*TOLD, "metrics")}

    def on_ranks(self) -> dict[str, str]:
        """The functions that run on the trainer's ranks, by their key."""
        return {name: path for name in ON_RANKS if (path := getattr(self, name)) is not None}

    def paths(self) -> dict[str, str | None]:
        """All functions by their key."""
        return self.on_controller() | self.on_ranks()
