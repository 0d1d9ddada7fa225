"""The exceptions that a call can raise in its caller."""

from __future__ import annotations


class ActorError(Exception):
    """A call gave no result. The subclass says why."""


class CallTimeout(ActorError, TimeoutError):
    """The deadline passed. The member may have executed the call, whose task there is cancelled."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} gave no result within {seconds:.4g} s")
        self.what = what
        self.seconds = seconds


class MemberLost(ActorError):
    """The member is not present, or went away during the call, which it may or may not have executed."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{member} is lost: {reason}")
        self.member = member
        self.reason = reason


class RemoteError(ActorError):
    """The method raised an exception at the member. The message ends with the traceback from there."""

    def __init__(self, what: str, type_: str, message: str, traceback: str) -> None:
        super().__init__(f"{what} raised {type_}: {message}\n\nRemote traceback:\n{traceback}")
        self.what = what
        self.type = type_
        self.message = message
        self.traceback = traceback


class CallRefused(ActorError):
    """The member did not execute the call: unknown method, wrong types, message too large, too many calls."""


class StaleGeneration(ActorError):
    """One side belongs to an earlier life of the run. The call was not executed."""
