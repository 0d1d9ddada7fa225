"""What the functions of the recipe's `hooks` section get: one of these for each thing that happens in a run.

All are frozen. Those for the trainer's ranks hold the rank's own model. The others are values of the controller: no
weights and no samples' tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

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
class BeforeLogprobs:
    """A rank of the trainer is about to compute log-probabilities of a step's samples, without gradients."""

    step: int
    rank: int
    weights: str  # "policy", "reference" or "teacher": those that are in the model now
    model: Sequence[Module]  # the rank's chunks of the model; policy and reference share them


@dataclass(frozen=True, kw_only=True)
class AroundUpdate:
    """A rank of the trainer is about to take an update of the optimizer, or has taken it."""

    step: int
    rank: int
    update: int  # 1 for the first of the step
    updates: int  # that the step takes
    weights: str  # "policy", also in the stages before it and for a reward model, or "critic"
    model: Sequence[Module]  # the rank's chunks, wrapped in Megatron's DDP
    optimizer: Any  # Megatron's
    scheduler: Any  # Megatron's, of the learning rate


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
