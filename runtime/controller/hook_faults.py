"""Tells faults of the user's functions from other errors: the run does not try them again."""

from __future__ import annotations

from verst.runtime.actors import RemoteError
from verst.runtime.hooks.errors import HookError


def hook_fault(error: BaseException) -> str | None:
    """The message of a hook's fault, here or in another process of the run; None for any other error."""
    if isinstance(error, HookError):
        return str(error)
    if isinstance(error, RemoteError) and error.type == HookError.__qualname__:
        return error.message
    return None
