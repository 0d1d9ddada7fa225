"""Reads logs in small parts: the end, the lines added since, and a search backwards."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import regex

from verst.runtime.run.folder import RunFolder

TAIL = 64 << 10
_NEWS = 256 << 10
_SEARCHED = 8 << 20  # bytes searched for one answer
_FOUND = 400  # lines found for one answer
_LINE = 4000  # characters of a line that are shown
_MATCH_S = 2.0  # for one answer: a pattern that backtracks endlessly must not block the server
_LOG = regex.compile(r"[^.].*\.log(\.\d+)?")  # with a number: set aside because it had grown long
_ESCAPES = regex.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BadPattern(ValueError):
    """The regular expression of a search is invalid or too slow; the message says which."""


def log_paths(folder: RunFolder) -> dict[str, Path]:
    """All logs of all lives, by name ("life-0/trainer/0/trainer-0.log"). Symbolic links are left out."""
    found = sorted(folder.logs.glob("life-*/*/*/*.log*"))
    return {
        path.relative_to(folder.logs).as_posix(): path
        for path in found
        if path.parts[-3] != "agents" and _LOG.fullmatch(path.name) and _is_plain_file(path)
    }


def read_tail(path: Path, before: int | None = None) -> dict[str, Any]:
    """Returns the last lines before byte `before`, by default the end of the file. `start` is their first byte."""
    with _open(path) as stream:
        status = os.fstat(stream.fileno())
        end = status.st_size if before is None else min(max(before, 0), status.st_size)
        start = max(0, end - TAIL)
        stream.seek(start)
        data = stream.read(end - start)
    if start:  # the first line is incomplete: leave it to the part before
        cut = data.find(b"\n") + 1
        start, data = start + cut, data[cut:]
    if before is None:  # read_news returns the last line once it is complete
        data = data[: data.rfind(b"\n") + 1] or data
    return {"start": start, "end": start + len(data), "inode": status.st_ino, "lines": _lines(data)}


def read_news(path: Path, since: int, inode: int) -> dict[str, Any]:
    """Returns the complete lines after byte `since`.

    If there are too many, returns the last of them. If the file was replaced (another `inode`), begins at its start.
    """
    with _open(path) as stream:
        status = os.fstat(stream.fileno())
        size = status.st_size
        start = since if 0 <= since <= size and inode == status.st_ino else 0
        skipped = max(0, size - start - _NEWS)
        start += skipped
        stream.seek(start)
        data = stream.read(_NEWS)
    if skipped:
        cut = data.find(b"\n") + 1
        start, data = start + cut, data[cut:]
    data = data[: data.rfind(b"\n") + 1]
    return {
        "start": start,
        "end": start + len(data),
        "inode": status.st_ino,
        "size": size,
        "skipped": skipped,
        "lines": _lines(data),
    }


def search(path: Path, pattern: str, before: int | None = None) -> dict[str, Any]:
    """Returns the matching lines, newest last, in the part of the file that ends at byte `before`.

    The search goes on with `start` as the next `before`. Raises BadPattern.
    """
    try:
        wanted = regex.compile(pattern, regex.IGNORECASE if pattern.islower() else 0)
    except regex.error as error:
        raise BadPattern(f"not a regular expression: {error}") from error
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        end = size if before is None else min(max(before, 0), size)
        start = max(0, end - _SEARCHED)
        stream.seek(start)
        data = stream.read(end - start)
    if start and (cut := data.find(b"\n") + 1):
        start, data = start + cut, data[cut:]
    found: list[str] = []
    deadline = time.monotonic() + _MATCH_S
    try:
        for line in reversed(_lines(data)):
            if wanted.search(line, timeout=max(0.001, deadline - time.monotonic())):
                found.append(line)
                if len(found) == _FOUND:
                    break
    except TimeoutError as error:
        raise BadPattern("this pattern takes too long: use a simpler one") from error
    return {
        "start": start,
        "size": size,
        "cut": len(found) == _FOUND,
        "lines": found[::-1],
    }


def _lines(data: bytes) -> list[str]:
    text = _ESCAPES.sub("", data.decode("utf-8", errors="replace"))
    return [line[:_LINE] for line in text.splitlines()]


def _is_plain_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:  # it is being set aside
        return False


def _open(path: Path) -> Any:
    """Opens a log for reading. Fails if a symbolic link has taken its place since it was listed."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
