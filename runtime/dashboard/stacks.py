"""Asks the node agents for the stack of a process, and reads their answers (`node/agent/stacks.py`).

This is the only thing that the dashboard writes: an empty file with the process's name in the run folder. It says
neither how the stack is taken nor of which process number: the agent knows its own processes.
"""

from __future__ import annotations

from typing import Any

from verst.runtime.dashboard.processes import Row
from verst.runtime.node.agent.stacks import answer_path, asked_path
from verst.runtime.run.folder import RunFolder

_MOST = 1 << 20


class CannotAsk(Exception):
    """The stack cannot be asked for; the message says why, and what to do instead."""


def ask(folder: RunFolder, row: Row) -> None:
    """Asks for the stack of a process. Raises CannotAsk."""
    if row.state in ("absent", "ended", "failed"):
        raise CannotAsk(f"{row.name} does not run ({row.state})")
    try:
        answer_path(folder, row.name).unlink(missing_ok=True)
        asked_path(folder, row.name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked_path(folder, row.name).touch(mode=0o600)
    except OSError as error:
        there = f" on {row.host}" if row.host else ""
        pid = row.pid if row.pid is not None else "PID"
        raise CannotAsk(
            f"the run folder cannot be written ({error.strerror}), so its node agent cannot be asked. "
            f"Give{there}: py-spy dump --subprocesses --pid {pid}"
        ) from error


def read(folder: RunFolder, name: str) -> dict[str, Any]:
    """The last stack of a process, None if there is none, and whether another one was asked for and is not there."""
    path = answer_path(folder, name)
    text = None
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as stream:
            text = stream.read(_MOST).decode(errors="replace")
    return {"text": text, "asked": asked_path(folder, name).exists()}
