"""The controller's events (what has happened) and commands (what to do): the interface of `state.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from verst.runtime.messages.jobs import EvalAnswers
from verst.runtime.messages.sample import GroupMeta

# Who has the GPUs in the colocated layout: the trainer, with all that it needs to train; the engines, with all that
# they need to generate; or both, each with nothing but its weights, while the trainer sends weights to the engines.
Turn = Literal["trainer", "both", "engines"]

# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineReady:
    """An engine serves, and waits for a weight round to bring it the current weights."""

    engine: int


@dataclass(frozen=True)
class EngineWaits:
    """Colocated: an engine's worker asks to start its engine, which takes the memory of the GPUs."""

    engine: int


@dataclass(frozen=True)
class EngineLost:
    """An engine is gone, or was left out of a weight round. It may come back with EngineReady."""

    engine: int
    reason: str


@dataclass(frozen=True)
class PromptsWanted:
    """An engine has room for `room` more samples."""

    engine: int
    room: int


@dataclass(frozen=True)
class GroupAccepted:
    """A store shard has journalled a finished group."""

    meta: GroupMeta


@dataclass(frozen=True)
class GroupDropped:
    """A worker dropped a finished group instead of pushing it. Another prompt takes its place.

    `reason` is a word that is counted ("filter", "too_long"), `detail` more of it for people.
    """

    id: int
    reason: str = "filter"
    detail: str = ""


@dataclass(frozen=True)
class GroupFailed:
    """A worker could not finish a group. `fatal`: another attempt would fail, too (the user's reward raised)."""

    id: int
    evaluation: bool
    reason: str
    fatal: bool
    version: int | None = None  # of an evaluation


@dataclass(frozen=True)
class EvalScored:
    """An evaluation prompt is answered and scored."""

    id: int
    answers: EvalAnswers
    version: int  # that was evaluated


@dataclass(frozen=True)
class Trained:
    """The trainer has made weight version `version`."""

    version: int


@dataclass(frozen=True)
class Kept:
    """The groups of a step are noted (`KeepGroups`)."""


@dataclass(frozen=True)
class Synced:
    """A weight round has ended. `failed` has the engines that missed the weights, each with the reason."""

    version: int
    updated: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class TurnPassed:
    """The GPUs have been passed to `turn`, except for memory that the engines in `lost` hold until they end."""

    turn: Turn
    lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class SaveStarted:
    """The trainer may go on: the checkpoint of `version` is complete or is written in the background."""

    version: int


@dataclass(frozen=True)
class Saved:
    """The checkpoint of `version` is complete on disk."""

    version: int


@dataclass(frozen=True)
class Exported:
    """The Hugging Face export is complete."""


@dataclass(frozen=True)
class StopAsked:
    """The run has to stop at the next step boundary and save a checkpoint: it is preempted, or a person asked.

    `hopeless`: resuming would not help, for instance because no engine came for hours.
    """

    reason: str
    hopeless: bool = False


Event = (
    EngineReady
    | EngineWaits
    | EngineLost
    | PromptsWanted
    | GroupAccepted
    | GroupDropped
    | GroupFailed
    | EvalScored
    | Trained
    | Kept
    | Synced
    | TurnPassed
    | SaveStarted
    | Saved
    | Exported
    | StopAsked
)

# --- commands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SendPrompts:
    """Send these prompts to an engine, in answer to its PromptsWanted."""

    engine: int
    ids: tuple[int, ...]
    evaluation: bool
    version: int | None = None  # of an evaluation: the weights that it scores


@dataclass(frozen=True)
class TrainOffline:
    """Train version `version` on rows of a data file, which makes `version + 1`."""

    version: int


@dataclass(frozen=True)
class Train:
    """Train version `version` on these groups, which makes `version + 1`."""

    version: int
    groups: tuple[GroupMeta, ...]


@dataclass(frozen=True)
class KeepGroups:
    """Note the groups of step `step`, which are complete, and report them; nothing is trained. `Kept` follows."""

    step: int
    groups: tuple[GroupMeta, ...]


@dataclass(frozen=True)
class SyncWeights:
    """Send weight version `version` to these engines."""

    version: int
    engines: tuple[int, ...]


@dataclass(frozen=True)
class PassTurn:
    """Colocated: pass the GPUs from `before` to `turn`.

    `engines` serve. The engines in `starting` have to give up their start.
    """

    turn: Turn
    before: Turn
    engines: tuple[int, ...]
    starting: tuple[int, ...] = ()


@dataclass(frozen=True)
class LetStart:
    """Colocated: this engine may start now."""

    engine: int


@dataclass(frozen=True)
class Refuse:
    """End an engine that came without permission to use the GPUs. Its agent starts another, which asks first."""

    engine: int


@dataclass(frozen=True)
class SaveCheckpoint:
    """Write a checkpoint of `version`."""

    version: int


@dataclass(frozen=True)
class Export:
    """Write the Hugging Face export."""


@dataclass(frozen=True)
class Discard:
    """Tell the store shards to forget these groups, which a complete checkpoint covers."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ReportDropped:
    """A group was dropped, for `reason`. `reissued`: its prompt is issued again."""

    id: int
    reason: str
    detail: str
    reissued: bool


@dataclass(frozen=True)
class WarnDropped:
    """So many groups in a row were dropped that the run may soon end."""

    message: str


@dataclass(frozen=True)
class ReportEval:
    """A set of an evaluation is complete, with these figures (`algorithms/evaluation.py`)."""

    version: int
    when: str  # "before" | "during" | "after" training | "alone": there is none
    set: str
    figures: Mapping[str, float]
    prompts: int


@dataclass(frozen=True)
class EvalEnded:
    """All sets of an evaluation are complete; or `lost`: the last engine with its weights is gone, it has no result."""

    version: int
    when: str
    lost: bool = False


@dataclass(frozen=True)
class StopEarly:
    """The run ends with the version that the trainer has now, for this reason of `algorithm.early_stop`."""

    version: int
    reason: str


@dataclass(frozen=True)
class Finish:
    """The run is over. If not `ok`, it has failed, or (`stopped`) it was asked to stop and has saved.

    `hopeless`: resuming would fail in the same way, for instance because the reward function raises.
    """

    ok: bool
    reason: str
    stopped: bool = False
    hopeless: bool = False


Command = (
    SendPrompts
    | TrainOffline
    | Train
    | KeepGroups
    | SyncWeights
    | PassTurn
    | LetStart
    | Refuse
    | SaveCheckpoint
    | Export
    | Discard
    | ReportDropped
    | WarnDropped
    | ReportEval
    | EvalEnded
    | StopEarly
    | Finish
)
