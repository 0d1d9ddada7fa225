"""Implements `verst logs`: prints the logs of all processes of a run, each line after the name of its process."""

from __future__ import annotations

import re
import time
from pathlib import Path

from verst.launcher.recipe.faults import UserError, nearest
from verst.launcher.runs.open import open_run
from verst.launcher.watch.log_files import GrowingLog, log_files

_POLL_S = 0.5
_LIST_S = 5.0  # between two searches for new files
_REST = 10  # a pause is this many times as long as the poll before it, so many files are polled less often


def print_logs(
    run_dir: Path, follow: bool, grep: str | None, process: str | None, attempt: int | None
) -> int:
    """Prints the existing log lines and, with `follow`, new ones until Ctrl-C. Returns the exit code."""
    folder = open_run(run_dir, or_app=True)
    try:
        wanted = re.compile(grep or "")
    except re.error as error:
        raise UserError(f"--grep {grep!r} is not a regular expression: {error}") from error
    names = log_files(folder, attempt)
    if process is not None and process not in names.values() and not follow:
        shown = folder.generation if attempt is None else attempt
        raise UserError(f"no process {process!r} in attempt {shown}.{nearest(process, set(names.values()))}")
    logs: dict[Path, GrowingLog] = {}
    listed = time.monotonic()
    while True:
        began = time.monotonic()
        if began - listed >= _LIST_S:
            names, listed = names | log_files(folder, attempt), began
        for path, name in names.items():
            if process is not None and name != process:
                continue
            for line in logs.setdefault(path, GrowingLog(path)).lines():
                if wanted.search(line):
                    print(f"{name} | {line}", flush=follow)
        if not follow:
            return 0
        try:
            time.sleep(max(_POLL_S, _REST * (time.monotonic() - began)))
        except KeyboardInterrupt:
            return 0
