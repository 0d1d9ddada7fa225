"""Finds the final answer in what a model wrote. All functions take time in proportion to the text."""

from __future__ import annotations

_END_OF_THOUGHT = "</think>"
_BOXES = ("\\boxed{", "\\fbox{")


def after_thought(text: str) -> str:
    """The text after the last `</think>`; the whole text if there is none."""
    return text.rpartition(_END_OF_THOUGHT)[2]


def finished_thought(text: str) -> str | None:
    """The text after the last `</think>`; None if the thought was never ended."""
    _, end, answer = text.rpartition(_END_OF_THOUGHT)
    return answer if end else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` or `\fbox{…}`; None if there is none or its brace is never closed."""
    start, box = max((text.rfind(box), box) for box in _BOXES)
    if start < 0:
        return None
    start += len(box)
    depth = 1
    for place in range(start, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if not depth:
                return text[start:place]
    return None
