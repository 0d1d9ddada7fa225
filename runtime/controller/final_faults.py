"""Tells faults that would come again from other errors: the run does not try them again."""

from __future__ import annotations

from verst.runtime.actors import RemoteError
from verst.runtime.hooks.errors import HookError
from verst.runtime.trainer.step.agreement import EngineDisagreesError

# Of the user's functions, and of engines that serve another model than the recipe's.
_FINAL = {HookError.__qualname__, EngineDisagreesError.__qualname__}


def final_fault(error: BaseException) -> str | None:
    """The message of a final fault, here or in another process of the run; None for any other error."""
    if isinstance(error, HookError):
        return str(error)
    if isinstance(error, RemoteError) and error.type in _FINAL:
        return error.message
    return None
