"""The ways in which an agent's work can end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verst.runtime.run.ending import STOPPED, RunEnd


@dataclass(frozen=True)
class Outcome:
    """Why an agent ended.

    "run_ended": the run did, and `end` says how. "fenced": a later life of the run, or another agent in this
    one's place, has taken over. "stopped": by a signal. "failed": this node alone did.
    """

    why: Literal["run_ended", "fenced", "stopped", "failed"]
    code: int  # the agent's own exit code
    end: RunEnd | None = None


FENCED = Outcome("fenced", STOPPED)
