"""The error of a hook: a fault in the user's code, told with the hook, the place and the value."""

from __future__ import annotations

from typing import Literal

# "raised": it raised, or returned a wrong value. "label": it cannot use the label of the row. "late": no value within
# the deadline. "died": its process ended. "load": it cannot be imported.
Kind = Literal["raised", "label", "late", "died", "load"]


class HookError(RuntimeError):
    """A hook failed. Another try with the same input would fail, too, unless the hook depends on something else.

    The message is one or a few lines: "reward function 'm:f', sample 3 of group 41: raised KeyError: 'x'
    (/home/me/m.py:12, in f)". `frames` is the traceback from the user's first frame on, or the stack of a process
    that was ended; "" if there is none.
    """

    def __init__(self, message: str, frames: str = "", kind: Kind = "raised") -> None:
        super().__init__(message)
        self.frames = frames
        self.kind: Kind = kind


class LabelError(ValueError):
    """A reward cannot use a row's label. Raise it in a reward, or in its check of labels (docs/your-reward.md)."""
