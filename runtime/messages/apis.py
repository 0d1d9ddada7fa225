"""The actor interfaces of a run's members: what each can be asked, with the wire types.

Callers import this module and not the implementations, so a caller of the trainer never imports torch.
"""

from __future__ import annotations

import msgspec

from verst.runtime.actors import Actor
from verst.runtime.messages.jobs import EngineInfo, EvalResult, Hold, HoldReport, PromptJob, RolloutStats
from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.messages.step_plan import StepPlan, StepReport
from verst.runtime.messages.weight_round import (
    Bucket,
    EngineLink,
    FolderVersion,
    RoundReport,
    Taken,
    WeightRound,
)

# The role of a rollout worker whose engine starts. Its own: who has just called "rollout-0" may still look for it
# at the port that it had a second ago.
STARTING = "starting"


class TrainerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller needs to know of the trainer's world to plan steps for it."""

    rank: int
    dp_rank: int
    dp_size: int
    pad_multiple: int  # sequences are padded to a multiple of it
    microbatch_multiple: int  # the number of micro-batches is a multiple of it
    parameters: int  # of the whole model
    version: int  # of the loaded weights


class TrainerApi(Actor):
    """One trainer rank. Every call is collective: the controller makes it on all ranks at once."""

    async def setup(self, checkpoint: str | None) -> TrainerInfo:
        """Forms the world, builds the model and loads `checkpoint`, or the Hugging Face weights."""
        raise NotImplementedError

    async def train(self, plan: StepPlan) -> StepReport:
        """Trains one step."""
        raise NotImplementedError

    async def sync_weights(self, request: WeightRound) -> RoundReport:
        """Sends the current weights to the engines. Rank 0's report counts."""
        raise NotImplementedError

    async def save(self, path: str, version: int, controller: bytes) -> None:
        """Writes a checkpoint, or starts to when checkpoints are asynchronous."""
        raise NotImplementedError

    async def saved(self, wait: bool) -> bool:
        """Whether the checkpoint that `save` started is complete; waits for it when asked to."""
        raise NotImplementedError

    async def export(self, path: str) -> None:
        """Writes a Hugging Face folder."""
        raise NotImplementedError

    async def hold(self, what: Hold) -> HoldReport:
        """Keeps "all" on the device, "weights" alone, or "nothing"; the rest waits on the host."""
        raise NotImplementedError


class StoreApi(Actor):
    """One store shard."""

    async def push(self, group: Group) -> GroupMeta:
        """Journals a finished group and returns when it is on disk.

        A second push of an id changes nothing and returns what the first one was.
        """
        raise NotImplementedError

    async def fetch(self, ids: list[int]) -> list[Group]:
        """The groups, in the order asked for."""
        raise NotImplementedError

    async def inventory(self) -> list[GroupMeta]:
        """Every group that is journalled and not discarded."""
        raise NotImplementedError

    async def discard(self, ids: list[int]) -> None:
        """Forgets groups; ids that are not here are ignored."""
        raise NotImplementedError


class RolloutApi(Actor):
    """One rollout worker and its engine. The trainer's source rank drives the weight calls."""

    async def open_link(self, link: EngineLink) -> None:
        """Joins a process group with trainer ranks, and leaves an earlier one that carried the same."""
        raise NotImplementedError

    async def pause(self, mode: str) -> None:
        """Stops generating at a token boundary; requests in flight stay."""
        raise NotImplementedError

    async def receive(self, bucket: Bucket) -> None:
        """Takes part in the bucket's broadcast and loads its tensors."""
        raise NotImplementedError

    async def receive_blocks(self, version: int, mode: str, timeout_s: float, go_on: bool) -> Taken:
        """Pauses, takes a whole version from all trainer ranks as planned, and with `go_on` resumes."""
        raise NotImplementedError

    async def load_version(self, version: FolderVersion) -> Taken:
        """Reads a published version, then pauses, loads it and with `go_on` resumes."""
        raise NotImplementedError

    async def compare(self, bucket: Bucket) -> int:
        """Takes part in the broadcast and compares instead of loading. Returns the tensors found equal.

        Raises ValueError naming the tensors that differ, and after the last bucket what was never compared.
        """
        raise NotImplementedError

    async def resume(self, version: int) -> None:
        """Goes on generating, under weight version `version`."""
        raise NotImplementedError

    async def abandon(self, reason: str) -> None:
        """The engine's weights cannot be trusted: the worker ends and its node agent starts another."""
        raise NotImplementedError

    async def hold(self, what: Hold) -> None:
        """Keeps "all" of the engine's memory, "weights" alone, whose contents a round must bring, or "nothing".

        Requests in flight are ended and forgotten.
        """
        raise NotImplementedError


class ControllerApi(Actor):
    """What rollout workers tell and ask the controller."""

    async def may_start(self, info: EngineInfo) -> bool:
        """Whether an engine that shares its GPUs with the trainer may start now; waits some seconds for it."""
        raise NotImplementedError

    async def engine_ready(self, info: EngineInfo) -> None:
        """The engine serves and waits for its first weight round."""
        raise NotImplementedError

    async def take(self, engine: int, room: int) -> list[PromptJob]:
        """Prompts for up to `room` samples; empty after some seconds without any."""
        raise NotImplementedError

    async def accepted(self, engine: int, meta: GroupMeta, stats: RolloutStats) -> None:
        """A store shard has journalled the group."""
        raise NotImplementedError

    async def dropped(self, engine: int, group: int) -> None:
        """The filter rejected the group."""
        raise NotImplementedError

    async def failed(self, engine: int, id: int, evaluation: bool, reason: str, fatal: bool) -> None:
        """The prompt could not be answered or scored."""
        raise NotImplementedError

    async def scored(self, engine: int, result: EvalResult) -> None:
        """An evaluation prompt is answered and scored."""
        raise NotImplementedError

    async def stop(self, reason: str) -> None:
        """Stop at the next step boundary, with a checkpoint."""
        raise NotImplementedError
