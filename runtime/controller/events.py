"""The controller's events (what happened) and commands (what to do): the vocabulary of `state.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verst.runtime.messages.sample import GroupMeta

# Who has the GPUs in the colocated layout: the trainer with all that it needs to train; the engines with all that
# they need to generate; or, while weights go from one to the other, both with their weights alone.
Turn = Literal["trainer", "both", "engines"]

# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineReady:
    """An engine serves some weights and waits for a round to bring the current ones."""

    engine: int


@dataclass(frozen=True)
class EngineWaits:
    """Colocated: an engine's worker is there and asks to start it, which takes the GPUs' memory."""

    engine: int


@dataclass(frozen=True)
class EngineLost:
    """An engine is gone, or was left out of a round; it may come back with EngineReady."""

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
    """The recipe's filter rejected a finished group; another prompt takes its place."""

    id: int


@dataclass(frozen=True)
class GroupFailed:
    """A worker could not finish a group. `fatal`: trying again cannot help (the user's reward raised)."""

    id: int
    evaluation: bool
    reason: str
    fatal: bool


@dataclass(frozen=True)
class EvalScored:
    """One evaluation prompt's mean reward."""

    id: int
    score: float


@dataclass(frozen=True)
class Trained:
    """The trainer made version `version`."""

    version: int


@dataclass(frozen=True)
class Synced:
    """A weight round ended."""

    version: int
    updated: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class TurnPassed:
    """The GPUs are with `turn` now, but for what the engines in `lost` may still hold until they end."""

    turn: Turn
    lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class SaveStarted:
    """The trainer may go on: the checkpoint of `version` is complete, or being written in the background."""

    version: int


@dataclass(frozen=True)
class Saved:
    """A checkpoint of `version` is complete on disk."""

    version: int


@dataclass(frozen=True)
class Exported:
    """The Hugging Face export is complete."""


@dataclass(frozen=True)
class StopAsked:
    """Preemption or a person: stop at the next step boundary, with a checkpoint.

    `hopeless`: nothing is to be gained by resuming, as when no engine came for hours.
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
    """Answer an engine's PromptsWanted."""

    engine: int
    ids: tuple[int, ...]
    evaluation: bool


@dataclass(frozen=True)
class WarmStart:
    """Train version `version` on demonstrations, making `version + 1`."""

    version: int


@dataclass(frozen=True)
class Train:
    """Train version `version` on these groups, making `version + 1`."""

    version: int
    groups: tuple[GroupMeta, ...]


@dataclass(frozen=True)
class SyncWeights:
    """Bring version `version` to these engines."""

    version: int
    engines: tuple[int, ...]


@dataclass(frozen=True)
class PassTurn:
    """Colocated: bring the GPUs from `before` to `turn`. These engines serve; those `starting` have to give up."""

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
    """End an engine that came when it could not have the GPUs; its agent starts another, which asks first."""

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
    """Tell the store shards that these groups are in a complete checkpoint."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ReportEval:
    """An evaluation is complete."""

    version: int
    when: str  # "before" | "during" | "after"
    score: float
    prompts: int


@dataclass(frozen=True)
class Finish:
    """The run is over. `ok` False: it failed, or (`stopped`) it was asked to stop and has saved.

    `hopeless`: resuming would fail in the same way, as with a reward function that raises.
    """

    ok: bool
    reason: str
    stopped: bool = False
    hopeless: bool = False


Command = (
    SendPrompts
    | WarmStart
    | Train
    | SyncWeights
    | PassTurn
    | LetStart
    | Refuse
    | SaveCheckpoint
    | Export
    | Discard
    | ReportEval
    | Finish
)
