"""Puts an exception of a user's function into words: the error, the user's own frames, and where it was raised."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path

_MAX_MESSAGE = 1000
_MAX_VALUE = 200
_HERE = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
# A frame in the output of faulthandler: `  File "/home/me/m.py", line 12 in f`.
_DUMPED = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


def shown(value: object) -> str:
    """A value for a message: its repr, of bounded length. Never raises."""
    try:
        text = repr(value)
    except Exception as error:  # a user's class, or an integer of more than 4,300 digits
        text = f"a {type(value).__name__} (its repr raised {type(error).__name__})"
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]} … ({len(text)} characters)"


def told(error: BaseException) -> str:
    """What was raised and where: "raised KeyError: 'x' (/home/me/m.py:12, in f)"."""
    return f"{_what(error)}{where(error)}"


def where(error: BaseException | None) -> str:
    """Where an exception was raised, as " (/home/me/m.py:12, in f)"; "" if it is not known."""
    return "" if error is None else _last(list(traceback.extract_tb(error.__traceback__)))


def user_frames(error: BaseException) -> str:
    """The traceback of an exception, without the frames above the user's function."""
    told = traceback.TracebackException.from_exception(error)
    stack = list(told.stack)
    while len(stack) > 1 and _is_ours(stack[0].filename):
        stack.pop(0)
    told.stack = traceback.StackSummary.from_list(stack)
    return "".join(told.format()).rstrip()


def last_dumped(dump: str) -> str:
    """Where a process was, from faulthandler's stack (innermost frame first): " (/home/me/m.py:12, in f)", or ""."""
    thread = _current_thread(dump)
    found = [traceback.FrameSummary(m["file"], int(m["line"]), m["name"]) for m in _DUMPED.finditer(thread)]
    return _last(found[::-1])


def user_stack(dump: str) -> str:
    """faulthandler's stack of the current thread down to the user's first frame; unchanged if it has none."""
    kept: list[str] = []
    for line in _current_thread(dump).splitlines():
        frame = _DUMPED.match(line)
        if frame and _is_ours(frame["file"]) and len(kept) > 1:
            break
        kept.append(line)
    return "\n".join(kept) if any(map(_DUMPED.match, kept)) else dump


def _current_thread(dump: str) -> str:
    """The part of faulthandler's output about the thread that was running, or else about the first one."""
    stacks = [block for block in dump.split("\n\n") if _DUMPED.search(block)]
    of_current = [stack for stack in stacks if "Current thread" in stack]
    return next(iter(of_current or stacks), dump)


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else shown(error.code)})"
    try:
        text = str(error)
    except Exception as second:
        text = f"(its str() raised {type(second).__name__})"
    text = text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]} …"
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


def _last(frames: list[traceback.FrameSummary]) -> str:
    """The innermost frame outside Python's library and installed packages, or of all if there is none."""
    theirs = [f for f in frames if not _is_ours(f.filename) and not f.filename.startswith("<")]
    own = [f for f in theirs if not f.filename.startswith(_LIBRARIES)] or theirs
    return f" ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})" if own else ""


def _is_ours(filename: str) -> bool:
    """Whether a frame belongs to the call of a hook and not to the hook."""
    machinery = ("asyncio", "concurrent", "threading.py", "importlib")
    return filename.startswith((_HERE, "<frozen")) or any(
        filename.startswith(os.path.join(_LIBRARIES[0], part)) for part in machinery
    )
