"""The controller's events (what happened) and commands (what to do): the vocabulary of `state.py`."""

from __future__ import annotations

from dataclasses import dataclass

from verst.runtime.sample import GroupMeta

# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineReady:
    """An engine serves some weights and waits for a round to bring the current ones."""

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
    | EngineLost
    | PromptsWanted
    | GroupAccepted
    | GroupDropped
    | GroupFailed
    | EvalScored
    | Trained
    | Synced
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
    SendPrompts | WarmStart | Train | SyncWeights | SaveCheckpoint | Export | Discard | ReportEval | Finish
)
