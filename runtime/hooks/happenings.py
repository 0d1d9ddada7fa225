"""What the functions of the recipe's `hooks` section get: one of these for each thing that happens in a run.

All are frozen, and are values of the controller: no weights and no samples' tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verst.runtime.messages.sample import GroupMeta


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """The trainer and the controller are ready, and the loop begins: once in each life of the run."""

    folder: Path  # the run folder
    life: int  # 0 for the first
    version: int  # of the weights: 0, or that of the checkpoint
    checkpoint: Path | None  # the one that the life resumes from


@dataclass(frozen=True, kw_only=True)
class StepBegin:
    """The groups of a policy step are there, and the trainer has not begun."""

    step: int
    groups: Sequence[GroupMeta]  # rewards, lengths, scores, sources of the step's samples


@dataclass(frozen=True, kw_only=True)
class StepEnd:
    """A policy step is done: the weights have changed."""

    step: int
    line: Mapping[str, Any]  # the step's line of metrics.jsonl
    groups: Sequence[GroupMeta]


@dataclass(frozen=True, kw_only=True)
class WeightsSynced:
    """A weight round is over."""

    version: int
    engines: Sequence[int]  # those that have the weights now
    failed: Mapping[int, str]  # those that do not, and why
    seconds: Mapping[str, float]  # by phase


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint is complete."""

    version: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The loop is over. Not told if the controller itself dies."""

    folder: Path
    ok: bool
    stopped: bool  # asked to end: it can be resumed
    reason: str
