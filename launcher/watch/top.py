"""Implements `verst top`: shows a run live in the terminal. Reads only the run folder."""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from verst.launcher.runs.open import open_run
from verst.launcher.watch.progress import ProgressReader
from verst.launcher.watch.view import draw, lines_of
from verst.runtime.dashboard.bottleneck import find_bottleneck
from verst.runtime.dashboard.processes import Processes, Row
from verst.runtime.dashboard.run_state import RunState, StateReader
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder

_EVERY_S = 1.0
_RECENT = 20  # the bottleneck is that of the last so many steps
_LISTED = 12  # most processes shown one by one
_NARROW = 110  # with fewer columns the table of processes leaves out their last events
_WIDE = 150  # from this many columns on, the processes are beside the rest
_STYLES = {
    "serving": "green", "live": "green", "running": "green", "finished": "blue", "ended": "blue",
    "restarting": "yellow", "comes back": "yellow", "stopped": "yellow",
    "silent": "red", "lost": "red", "failed": "red", "cancelled": "red",
}  # fmt: skip
_TROUBLE = ("failed", "lost", "silent", "restarting")


def show_top(run_dir: Path, once: bool) -> int:
    """Shows the run until q or Ctrl-C. Returns the exit code.

    With `once`, or without a terminal, it prints one frame.
    """
    top = Top(open_run(run_dir))
    console = Console()
    if once or not console.is_terminal:
        top.update()
        console.print(top.frame(console.width))
        return 0
    try:
        with _single_keys(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                top.update()
                live.update(top.frame(console.width, console.height), refresh=True)
                if _pressed(_EVERY_S) in ("q", "Q"):
                    return 0
    except KeyboardInterrupt:
        return 0


class Top:
    """The state of a run as `verst top` shows it. `update` reads it, `frame` draws it."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._reader = ProgressReader(folder)
        self._processes = Processes(folder)
        self._states = StateReader(folder)
        self._state = RunState("not started")
        self._generation = 0

    def update(self) -> None:
        """Reads the changes in the run folder."""
        _, events = self._reader.update()
        for event in events:
            self._processes.apply_event(event)
        self._generation = self._folder.generation
        self._processes.update(self._generation, read_end(self._folder, self._generation))
        self._state = self._states.read(self._processes.alive)

    def frame(self, width: int, height: int | None = None) -> RenderableType:
        """Draws the whole screen, `width` columns wide and at most `height` lines high; None: as high as it needs."""
        progress = self._reader.progress
        first, last = progress.first_time, progress.last_time
        running = self._state.word == "running"
        now = time.time() if running else last
        elapsed = 0.0 if first is None or now is None else max(0.0, now - first)
        wide = width >= _WIDE
        headline = self._headline()
        room = None if height is None else height - lines_of(headline, width)
        at = now if running else None
        processes = process_table(self._processes.rows, narrow=width < _NARROW)
        if not wide:
            return Group(headline, draw(progress, elapsed, min(width, 100), room, processes, at))
        run = draw(progress, elapsed, 100, room, now=at)
        grid = Table.grid(padding=(0, 4))
        grid.add_column(width=100)
        grid.add_row(run, processes)
        return Group(headline, grid)

    def _headline(self) -> Group:
        text = Text()  # a long reason goes over several lines
        text.append(self._state.word, style=f"bold {_STYLES.get(self._state.word, 'dim')}")
        if self._generation:
            text.append(f"  life {self._generation}")
        if self._state.why:
            failed = self._state.word == "failed"
            text.append(f"  {self._state.why}", style="bold red" if failed else "dim")
        steps = self._reader.progress.steps
        found = find_bottleneck(steps[step] for step in sorted(steps)[-_RECENT:])
        return Group(text) if found is None else Group(text, Text(f"bottleneck: {found.words}"))


def process_table(rows: list[Row], narrow: bool = False) -> RenderableType:
    """A table of processes. `narrow`: without the last event of each, which does not fit then.

    It lists all processes if they are few. Otherwise it counts each role's processes by state and lists only
    those in trouble.
    """
    with_gpus = any(row.gpu_total for row in rows)
    columns = [
        "process",
        "state",
        "where",
        *(["GPU memory", "busy"] if with_gpus else []),
        "restarts",
        *([] if narrow else ["last event"]),
    ]
    table = Table(*columns, box=None, padding=(0, 2))
    empty = [""] * (len(columns) - 2)
    roles: dict[str, Counter[str]] = {}
    for row in rows:
        roles.setdefault(row.role, Counter())[row.state] += 1
    if len(rows) > _LISTED:
        for role, states in roles.items():
            text = Text("  ").join(Text(f"{n} {s}", style=_STYLES.get(s, "dim")) for s, n in states.items())
            table.add_row(role, text, *empty)
    troubled = [row for row in rows if row.state in _TROUBLE]
    shown = rows if len(rows) <= _LISTED else troubled[:_LISTED]
    for row in shown:
        node = "" if row.node is None else f"{row.group}/{row.node} {row.host}"
        state = Text(row.state, style=_STYLES.get(row.state, "dim"))
        gpus = _gpu_words(row) if with_gpus else ()
        last = (str(row.restarts or ""), *(() if narrow else (Text(row.note, style="dim"),)))
        table.add_row(Text(row.name), state, Text(node), *gpus, *last)
    if len(rows) > _LISTED and len(troubled) > _LISTED:
        table.add_row(f"and {len(troubled) - _LISTED} more in trouble", "", *empty)
    return table


def _gpu_words(row: Row) -> tuple[str, str]:
    """A process's GPU memory and load, as "61.2 / 79.6 GiB" and "97 %"; empty for a process without GPUs."""
    if row.gpu_used is None or row.gpu_total is None or row.gpu_busy is None:
        return "", ""
    return f"{row.gpu_used / 2**30:.1f} / {row.gpu_total / 2**30:.1f} GiB", f"{100 * row.gpu_busy:.0f} %"


@contextmanager
def _single_keys() -> Iterator[None]:
    """Context manager that makes the terminal deliver each key when it is pressed. Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> str:
    """Waits up to `seconds` for a key and returns it, or "" if none was pressed."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return ""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""
