"""Looks at the labels of a file as a whole. Whether a reward can use each of them is the check of hooks."""

from __future__ import annotations

from typing import Any


class WholeFloats:
    """Looks whether all labels are floats without a fraction: what pandas makes of integers with a gap."""

    def __init__(self) -> None:
        self.example: float | None = None
        self._others = False

    def look(self, label: Any) -> None:
        """Looks at a label."""
        if isinstance(label, float) and label.is_integer():
            self.example = label
        else:
            self._others = True

    @property
    def found(self) -> bool:
        """Whether there were labels, and all were such floats."""
        return self.example is not None and not self._others
