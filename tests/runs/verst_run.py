"""Starts the real `verst` command on real recipes and reads what the run left in its folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


@dataclass
class VerstRun:
    """One run folder and the command that works on it."""

    recipe: str
    folder: Path
    overrides: tuple[str, ...] = ()
    printed: Path | None = None  # where what the command prints goes; None: beside the run folder

    def start(self, *more: str, resume: bool = False) -> subprocess.Popen[str]:
        """Starts `verst run` or `verst resume`; its output is appended to a file."""
        what = ["resume", str(self.folder)] if resume else ["run", self.recipe]
        changes = [] if resume else [f"runs_dir={self.folder.parent}", f"name={self.folder.name}"]
        self._output = self.printed or self.folder.parent / f"{self.folder.name}.out"
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "verst.launcher.cli", *what, *changes, *self.overrides, *more],
            cwd=ROOT,
            stdout=self._output.open("a"),
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"},
        )

    def finish(self, *more: str, resume: bool = False, timeout: float = 280) -> str:
        """Runs to the end. Raises AssertionError with the output when the exit code is not 0."""
        process = self.start(*more, resume=resume)
        self.wait(process, timeout)
        assert process.returncode == 0, f"exit code {process.returncode}:\n{self.output()}"
        return self.output()

    def wait(self, process: subprocess.Popen[str], timeout: float) -> int:
        """Waits for the command; kills it and fails when it takes longer."""
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            raise AssertionError(f"not finished after {timeout} s:\n{self.output()}") from None

    def output(self) -> str:
        """What the command printed so far, and the end of each process's log."""
        text = self._output.read_text()[-6000:]
        for log in sorted(self.folder.glob("logs/life-*/*/*/*.log")):
            text += f"\n--- {log.relative_to(self.folder)}\n{log.read_text(errors='replace')[-1500:]}"
        return text

    def printed_lines(self) -> list[str]:
        """What the command printed."""
        return self._output.read_text().splitlines()

    def lines(self, kind: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The run's metric or event lines of one kind."""
        path = self.folder / file
        if not path.exists():
            return []
        complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [record for line in complete if (record := json.loads(line))["kind"] == kind]

    def wait_for(
        self,
        process: subprocess.Popen[str],
        kind: str,
        count: int,
        timeout: float = 240,
        file: str = "metrics.jsonl",
        poll_s: float = 0.1,
    ) -> None:
        """Waits until the run has written `count` metric or event lines of a kind."""
        deadline = time.monotonic() + timeout
        while len(self.lines(kind, file)) < count:
            assert process.poll() is None, f"ended early ({process.returncode}):\n{self.output()}"
            assert time.monotonic() < deadline, f"no {count} {kind} lines after {timeout} s:\n{self.output()}"
            time.sleep(poll_s)

    def kill_and_resume(self, kind: str, count: int) -> None:
        """Kills the run, with all of its processes, once it has written `count` lines of a kind, and finishes it."""
        process = self.start()
        self.wait_for(process, kind, count)
        process.kill()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
        self.finish(resume=True)

    def processes(self) -> list[int]:
        """Pids of every live process that belongs to this run, found by its command line or environment."""
        mark = str(self.folder).encode()
        found = []
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                state = re.search(r"^State:\s+(\w)", (proc / "status").read_text(), re.MULTILINE)
                words = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if state and state[1] != "Z" and mark in words and int(proc.name) != os.getpid():
                found.append(int(proc.name))
        return found

    def pid_of(self, module: str) -> int:
        """The pid of the run's process that runs a module, e.g. "verst.runtime.rollout.worker"."""
        for pid in self.processes():
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError(f"no process of the run runs {module}")


def assert_same_stage(killed: VerstRun, whole: VerstRun) -> None:
    """Both runs of a stage with rows have the same loss in each step, and export the same weights, bit for bit."""

    def losses(of: VerstRun) -> list[tuple[int, float]]:
        return sorted({line["step"]: line["loss"] for line in of.lines("stage_step")}.items())

    assert losses(killed) == losses(whole)
    ours, theirs = (load_file(next(r.folder.glob("export/*.safetensors"))) for r in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
