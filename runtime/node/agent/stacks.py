"""Takes the stack of one of the node's processes when the dashboard asks for it.

The dashboard puts a file with the process's name into `stacks/asked/` in the run folder. The agent of the process's
node answers with `stacks/NAME.txt`. py-spy takes the stack if it is installed and may look into the process, with the
processes below it (SGLang's, for an engine). Otherwise SIGUSR1 makes the process write the stacks of its own threads
to its log by faulthandler, which needs no lock of the interpreter (`MemberProcess`); the agent copies them from there.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from verst.runtime.node import supervise
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import Watched
from verst.runtime.node.supervise import Child
from verst.runtime.run.folder import RunFolder, write_atomically

_EVERY_S = 2.0
_PY_SPY_S = 20.0
_FAULTHANDLER_S = 1.0  # it writes in milliseconds, unless the process is stopped
_MOST = 1 << 20  # bytes of an answer


def asked_path(folder: RunFolder, process: str) -> Path:
    """The file by which the stack of a process is asked for."""
    return folder.root / "stacks" / "asked" / process


def answer_path(folder: RunFolder, process: str) -> Path:
    """The file with the last stack of a process."""
    return folder.root / "stacks" / f"{process}.txt"


@dataclass
class _Taking:
    """A stack that is being taken, by py-spy (`child`) or by faulthandler (the log from `offset` on)."""

    pid: int
    until: float  # monotonic
    child: Child | None = None
    offset: int = 0


class Stacks:
    """Answers the requests for the processes of this node. `look` never waits."""

    def __init__(self, here: ThisNode) -> None:
        self._here = here
        self._next = 0.0
        self._taking: dict[str, _Taking] = {}

    def look(self, now: float) -> None:
        """Begins what is asked for, and answers what is done. `now` is monotonic."""
        try:
            for watched in self._here.watched:
                if watched.process.name in self._taking:
                    self._go_on(watched, now)
            if now >= self._next:
                self._next = now + _EVERY_S
                self._begin_asked(now)
        except (
            OSError
        ) as error:  # a full disk, or a passing fault of the file system: no stack, and nothing else
            self._here.say(f"a stack cannot be taken: {error}")
            self._taking.clear()

    def _begin_asked(self, now: float) -> None:
        try:
            asked = set(os.listdir(self._here.folder.root / "stacks" / "asked"))
        except FileNotFoundError:
            return
        for watched in self._here.watched:
            name = watched.process.name
            if name in asked and name not in self._taking:
                asked_path(self._here.folder, name).unlink(missing_ok=True)
                self._begin(watched, now)

    def _begin(self, watched: Watched, now: float) -> None:
        name, child = watched.process.name, watched.child
        if child is None or child.code is not None:
            return self._answer(name, f"{name} does not run at present.\n")
        pid = child.popen.pid
        if (program := py_spy()) is None:
            return self._signal(watched, pid, now)
        part = self._part(name)
        part.unlink(missing_ok=True)
        argv = [program, "dump", "--subprocesses", "--pid", str(pid)]
        self._taking[name] = _Taking(pid, now + _PY_SPY_S, supervise.start(name, argv, os.environ, part))

    def _signal(self, watched: Watched, pid: int, now: float) -> None:
        name = watched.process.name
        if not _catches(pid, signal.SIGUSR1):
            why = "it is not a Python process of Verst's, or it is still starting"
            return self._answer(name, f"No stack of {name}: {why}. Install py-spy to see any process.\n")
        size = watched.log.stat().st_size
        self._taking[name] = _Taking(pid, now + _FAULTHANDLER_S, offset=size)
        os.kill(pid, signal.SIGUSR1)

    def _go_on(self, watched: Watched, now: float) -> None:
        name = watched.process.name
        taking = self._taking[name]
        if taking.child is None:
            if now >= taking.until:
                self._answer(name, self._head(taking, "faulthandler") + self._from_log(watched, taking))
            return
        if now < taking.until and taking.child.popen.poll() is None:  # type: ignore[attr-defined]
            return
        if taking.child.popen.poll() is None:  # type: ignore[attr-defined]
            taking.child.popen.send_signal(signal.SIGKILL)
        part = self._part(name)
        text = part.read_bytes()[:_MOST].decode(errors="replace")
        part.unlink(missing_ok=True)
        if "Thread " in text:
            return self._answer(name, self._head(taking, "py-spy") + text)
        self._here.say(f"py-spy could not look into {name}: {text.strip() or 'no answer'}")
        del self._taking[name]
        if watched.child is not None and watched.child.code is None and watched.child.popen.pid == taking.pid:
            self._signal(watched, taking.pid, now)

    def _from_log(self, watched: Watched, taking: _Taking) -> str:
        with watched.log.open("rb") as stream:
            stream.seek(taking.offset if taking.offset <= os.fstat(stream.fileno()).st_size else 0)
            text = stream.read(_MOST).decode(errors="replace")
        return (
            text
            or "Nothing: the process takes no signals at present. It is stopped, or waits in the kernel.\n"
        )

    def _head(self, taking: _Taking, by: str) -> str:
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        return f"process {taking.pid} on {os.uname().nodename}, {at}, by {by}\n\n"

    def _answer(self, name: str, text: str) -> None:
        self._taking.pop(name, None)
        path = answer_path(self._here.folder, name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, text.encode(errors="replace"), durable=False)

    def _part(self, name: str) -> Path:
        return self._here.folder.root / "stacks" / f".{name}.part"


def py_spy() -> str | None:
    """The program py-spy of this Python's environment, or of PATH; None if there is none."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
