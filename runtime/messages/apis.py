"""The actor interfaces of a run's members: the calls that each answers, with their wire types.

Callers import this module instead of the implementations, so a caller of the trainer never imports torch.
"""

from __future__ import annotations

import msgspec

from verst.runtime.actors import Actor
from verst.runtime.messages.jobs import EngineInfo, EvalResult, Hold, HoldReport, PromptJob, RolloutStats
from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.messages.step_plan import SampleScore, StepPlan, StepReport
from verst.runtime.messages.weight_round import (
    Bucket,
    EngineLink,
    FolderVersion,
    RoundReport,
    Taken,
    WeightRound,
)

# The role of a rollout worker while its engine starts. It is not "rollout", because a member that has just
# called "rollout-0" may still look for it at the port that it had a second ago.
STARTING = "starting"


class TrainerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller must know about the trainer's world to plan steps for it."""

    rank: int
    dp_rank: int
    dp_size: int
    pad_multiple: int  # sequences are padded to a multiple of it
    microbatch_multiple: int  # the number of micro-batches is a multiple of it
    parameters: int  # of the whole model
    version: int  # of the loaded weights


class TrainerApi(Actor):
    """The calls of a trainer rank. Every call is collective: the controller makes it on all ranks at once."""

    async def setup(self, checkpoint: str | None) -> TrainerInfo:
        """Forms the world, builds the model and loads `checkpoint`, or the Hugging Face weights."""
        raise NotImplementedError

    async def score(self, plan: StepPlan) -> list[SampleScore]:
        """Scores a step's samples before it is trained. The `train` that follows must have the same micro-batches.

        One rank of each data-parallel replica returns the scores of its samples, the others nothing.
        """
        raise NotImplementedError

    async def train(self, plan: StepPlan) -> StepReport:
        """Trains one step."""
        raise NotImplementedError

    async def evaluate(self, plan: StepPlan) -> StepReport:
        """Measures the objective of a plan, and changes nothing."""
        raise NotImplementedError

    async def sync_weights(self, request: WeightRound) -> RoundReport:
        """Sends the current weights to the engines. Rank 0's report counts."""
        raise NotImplementedError

    async def save(self, path: str, version: int, controller: bytes) -> None:
        """Writes a checkpoint, or only starts to if checkpoints are asynchronous."""
        raise NotImplementedError

    async def saved(self, wait: bool) -> bool:
        """Whether the checkpoint that `save` started is complete. With `wait`, waits until it is."""
        raise NotImplementedError

    async def export(self, path: str) -> None:
        """Writes the model as a Hugging Face folder."""
        raise NotImplementedError

    async def hold(self, what: Hold) -> HoldReport:
        """Keeps "all", only "weights" or "nothing" on the device. The rest waits in host memory."""
        raise NotImplementedError


class StoreApi(Actor):
    """The calls of one store shard."""

    async def push(self, group: Group) -> GroupMeta:
        """Journals a finished group and returns when it is on disk.

        A second push of the same id changes nothing and returns the metadata of the first one.
        """
        raise NotImplementedError

    async def fetch(self, ids: list[int]) -> list[Group]:
        """Reads groups, in the order of `ids`."""
        raise NotImplementedError

    async def inventory(self) -> list[GroupMeta]:
        """The metadata of every group that is journalled and not discarded."""
        raise NotImplementedError

    async def recording(self) -> list[GroupMeta]:
        """The metadata of the groups of another run that this shard serves (`record.source`)."""
        raise NotImplementedError

    async def discard(self, ids: list[int]) -> None:
        """Forgets groups. Ids that this shard does not have are ignored."""
        raise NotImplementedError


class RolloutApi(Actor):
    """The calls of one rollout worker and its engine. The trainer's source rank makes the weight calls."""

    async def open_link(self, link: EngineLink) -> None:
        """Joins a process group with trainer ranks, and leaves an earlier one for the same kind of data."""
        raise NotImplementedError

    async def pause(self, mode: str) -> None:
        """Stops generating at a token boundary. Requests in flight are kept."""
        raise NotImplementedError

    async def receive(self, bucket: Bucket) -> None:
        """Takes part in the bucket's broadcast and loads its tensors."""
        raise NotImplementedError

    async def receive_blocks(self, version: int, mode: str, timeout_s: float, go_on: bool) -> Taken:
        """Pauses, receives a whole version from all trainer ranks as planned, and with `go_on` resumes."""
        raise NotImplementedError

    async def load_version(self, version: FolderVersion) -> Taken:
        """Reads a published version, pauses, loads it, and with `go_on` resumes."""
        raise NotImplementedError

    async def compare(self, bucket: Bucket) -> int:
        """Takes part in the bucket's broadcast, and compares instead of loading.

        Returns the number of equal tensors. Raises ValueError naming the tensors that differ, and after the
        last bucket those that were never compared.
        """
        raise NotImplementedError

    async def resume(self, version: int) -> None:
        """Goes on generating, with weight version `version`."""
        raise NotImplementedError

    async def abandon(self, reason: str) -> None:
        """Ends the worker, because its engine's weights cannot be trusted. Its node agent starts another."""
        raise NotImplementedError

    async def hold(self, what: Hold) -> None:
        """Keeps "all", only "weights" or "nothing" of the engine's memory on the device.

        With "weights", a weight round must bring their contents. Requests in flight are ended and forgotten.
        """
        raise NotImplementedError


class ControllerApi(Actor):
    """The calls by which rollout workers ask the controller for work and report to it."""

    async def may_start(self, info: EngineInfo) -> bool:
        """Whether an engine that shares its GPUs with the trainer may start. Waits a few seconds for that."""
        raise NotImplementedError

    async def engine_ready(self, info: EngineInfo) -> None:
        """Reports that the engine serves and waits for its first weight round."""
        raise NotImplementedError

    async def take(self, engine: int, room: int) -> list[PromptJob]:
        """Takes prompts for up to `room` samples. Empty if there were none for a few seconds."""
        raise NotImplementedError

    async def accepted(self, engine: int, meta: GroupMeta, stats: RolloutStats) -> None:
        """Reports that a store shard has journalled a group."""
        raise NotImplementedError

    async def dropped(self, engine: int, group: int, reason: str, detail: str, reward: float | None) -> None:
        """Reports that a finished group is not pushed. `reward` is its mean reward, None if it was not scored.

        `reason` is a word under which it is counted: "filter", "too_long". `detail` says more to people, or nothing.
        """
        raise NotImplementedError

    async def failed(
        self, engine: int, id: int, evaluation: bool, reason: str, fatal: bool, version: int | None
    ) -> None:
        """Reports that a prompt could not be answered or scored. `version` is that of its job."""
        raise NotImplementedError

    async def scored(self, engine: int, result: EvalResult) -> None:
        """Reports that an evaluation prompt was answered and scored."""
        raise NotImplementedError

    async def stop(self, reason: str) -> None:
        """Asks the run to stop at the next step boundary, with a checkpoint."""
        raise NotImplementedError

    async def stop_for_good(self, reason: str) -> None:
        """Like `stop`, for a fault of the recipe: the run fails with this reason and is not tried again."""
        raise NotImplementedError
