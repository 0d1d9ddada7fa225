"""Finds in the last lines of a failed process's log why it failed.

A process that knows the reason says it in a line of its own (`node/member_process.py`, `say`): "verst: the run
failed: …". One that dies of an exception ends with the exception's line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from verst.runtime.run.log_lines import without_stamp

_MAX = 600
_SAID = re.compile(r"^verst: (?P<reason>.+)")
_RUN = re.compile(r"^the run (failed|stopped): ")
# The line that ends a traceback: "ValueError: no such option", "torch.OutOfMemoryError: CUDA out of memory".
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Timeout|Lost)\b(?:: .*)?$")


def why_it_failed(lines: Sequence[str]) -> str | None:
    """The reason in one line, or None if the lines have none."""
    plain = [without_stamp(line).rstrip() for line in lines]
    for line in reversed(plain):
        if said := _SAID.match(line):
            return _cut(said["reason"])
    for line in reversed(plain):
        if _EXCEPTION.match(line):
            return _cut(line)
    return None


def reason_of_the_run(lines: Sequence[str]) -> str | None:
    """The reason that the controller gave for the end of the run, without "the run failed:"; None if it gave none."""
    for line in reversed(lines):
        said = _SAID.match(without_stamp(line).rstrip())
        if said and _RUN.match(said["reason"]):
            return _cut(_RUN.sub("", said["reason"]))
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX else f"{text[:_MAX]} …"
