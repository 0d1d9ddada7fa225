"""Turns an exception that a method raised into a message for its caller."""

from __future__ import annotations

import traceback

from verst.runtime.actors.wire import Fault

MAX_TEXT = 65_536  # characters, of a Fault's message and of its traceback each


def fault_of(error: Exception) -> Fault:
    """Describes an exception in text that can always be sent: of bounded length, without lone surrogates."""
    try:
        message = str(error)
    except Exception as second:
        message = f"(no message: str() of the exception raised {type(second).__qualname__})"
    text = "".join(traceback.format_exception(error))
    return Fault("raised", _sendable(type(error).__qualname__), _sendable(message), _sendable(text))


def _sendable(text: str) -> str:
    """Cuts out the middle of a text that is too long."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"
    return text.encode(errors="backslashreplace").decode()
