"""The times in front of log lines, by which the logs of all processes are merged, and the time that `--since` names.

A time is its text, "2026-05-01 12:00:00.123", in the local time of the node, so that texts compare as times do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator

from verst.launcher.recipe.faults import UserError

# Verst's own, and SGLang's: "[2026-05-01 12:00:00 TP0] …", "[2026-05-01T12:00:00,123] …".
_STAMP = re.compile(r"^\[?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?")
_AGO = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOMENTS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
_CLOCKS = ("%H:%M:%S", "%H:%M")
_HELD = 2000  # lines without a time at the beginning of a log that wait for the first time


def stamp_of(line: str) -> str | None:
    """The time in front of a line; None if it has none."""
    found = _STAMP.match(line)
    if found is None:
        return None
    day, clock, fraction = found.groups()
    return f"{day} {clock}.{(fraction or '').ljust(3, '0')[:3]}"


def timed(lines: Iterable[str], first: str = "") -> Iterator[tuple[str, str]]:
    """Yields each line with its time. A line without one has that of the line before it.

    Lines at the beginning have the first time that follows, or `first`.
    """
    held: list[str] = []
    last: str | None = None
    for line in lines:
        stamp = stamp_of(line)
        if last is None and stamp is None and len(held) < _HELD:
            held.append(line)
            continue
        if last is None:
            last = stamp or first
            yield from ((last, early) for early in held)
            held = []
        last = stamp or last
        yield last, line
    if last is None:
        yield from ((first, line) for line in held)


def parse_since(text: str) -> str:
    """The time that `--since` names: "10m" (ago; also s, h, d), "12:30" (today) or "2026-05-01 12:30".

    Raises UserError for anything else.
    """
    if (ago := _AGO.match(text)) is not None:
        return _text(time.time() - float(ago[1]) * _SECONDS[ago[2]])
    for form in _MOMENTS:
        try:
            return _text(time.mktime(time.strptime(text, form)))
        except ValueError:
            continue
    for form in _CLOCKS:
        try:
            clock = time.strptime(text, form)
        except ValueError:
            continue
        return f"{time.strftime('%Y-%m-%d')} {time.strftime('%H:%M:%S', clock)}.000"
    raise UserError(
        f"--since {text!r} must be a time ago (30s, 10m, 2h, 1d), a time of today (12:30) or a day and a time "
        "(2026-05-01 12:30)"
    )


def moment(text: str) -> float:
    """A time's seconds since 1970."""
    return time.mktime(time.strptime(text[:19], "%Y-%m-%d %H:%M:%S"))


def _text(at: float) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"
