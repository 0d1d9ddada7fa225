"""What a method raised, as it crosses the wire."""

from __future__ import annotations

import traceback

from verst.runtime.actors.wire import Fault

MAX_TEXT = 65_536  # characters of a Fault's message and of its traceback


def fault_of(error: Exception) -> Fault:
    """Text that can cross whatever was raised: bounded, and without lone surrogates."""
    try:
        message = str(error)
    except Exception as second:
        message = f"its message cannot be told: {type(second).__qualname__}"
    text = "".join(traceback.format_exception(error))
    return Fault("raised", _sendable(type(error).__qualname__), _sendable(message), _sendable(text))


def _sendable(text: str) -> str:
    """A text too long keeps its two ends."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"
    return text.encode(errors="backslashreplace").decode()
