"""What can go wrong with a call, as the caller sees it."""

from __future__ import annotations


class ActorError(Exception):
    """A call did not give its result. The subclass says why."""


class CallTimeout(ActorError, TimeoutError):
    """The deadline passed. The member may have executed the call; its task there was cancelled."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} gave no result within {seconds:.4g} s")
        self.what = what
        self.seconds = seconds


class MemberLost(ActorError):
    """The member is not there, or went away during the call, which it may or may not have executed."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{member} is lost: {reason}")
        self.member = member
        self.reason = reason


class RemoteError(ActorError):
    """The method raised at the member. The message ends with the traceback from there."""

    def __init__(self, what: str, type_: str, message: str, traceback: str) -> None:
        super().__init__(f"{what} raised {type_}: {message}\n\nRemote traceback:\n{traceback}")
        self.what = what
        self.type = type_
        self.message = message
        self.traceback = traceback


class CallRefused(ActorError):
    """The member did not execute the call: no such method, arguments of other types, a message too large."""


class StaleGeneration(ActorError):
    """One side belongs to an earlier life of the run; the call was not executed."""
