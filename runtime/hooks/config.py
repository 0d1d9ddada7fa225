"""The recipe's `hooks` section: functions of a person that are told what happens in the run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TOLD = ("run_start", "step_begin", "step_end", "weights_synced", "checkpoint_saved", "run_end")


class HooksConfig(BaseModel):
    """Functions that are told what happens, each a dotted path `module:function`; docs/hooks.md has what they get."""

    model_config = ConfigDict(extra="forbid")

    run_start: str | None = Field(None, description="is told when the loop begins, in each life of the run")
    step_begin: str | None = Field(None, description="is told before the trainer begins a policy step")
    step_end: str | None = Field(None, description="is told after each policy step; the run waits for it")
    weights_synced: str | None = Field(None, description="is told when engines have got new weights")
    checkpoint_saved: str | None = Field(None, description="is told when a checkpoint is complete")
    run_end: str | None = Field(None, description="is told how the run, or this life of it, ended")
    metrics: str | None = Field(
        None,
        description="gets each policy step and returns figures by name, which are reported as `own/NAME`",
    )
    timeout_s: float = Field(60, gt=0, description="seconds that each call may take")
    failure: Literal["fail", "warn"] = Field(
        "fail",
        description="what an error of these functions does. fail: the run ends with the reason. warn: it goes on, and "
        "an event tells",
    )

    def paths(self) -> dict[str, str | None]:
        """The functions by their key."""
        return {name: getattr(self, name) for name in (*TOLD, "metrics")}
