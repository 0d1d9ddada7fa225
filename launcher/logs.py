"""`verst logs`: the logs of all processes of a run, each line after its process's name."""

from __future__ import annotations

import re
import time
from pathlib import Path

from verst.launcher.commands import open_run
from verst.launcher.faults import UserError, nearest
from verst.launcher.progress import LineFollower
from verst.runtime.run_folder import RunFolder

_POLL_S = 0.5


def print_logs(
    run_dir: Path, follow: bool, grep: str | None, process: str | None, attempt: int | None
) -> int:
    """Prints what there is and, with `follow`, what comes, until Ctrl-C."""
    folder = open_run(run_dir)
    try:
        wanted = re.compile(grep or "")
    except re.error as error:
        raise UserError(f"--grep {grep!r} is not a regular expression: {error}") from error
    attempt = folder.generation if attempt is None else attempt
    names = log_files(folder, attempt)
    if process is not None and process not in names.values() and not follow:
        raise UserError(
            f"no process {process!r} in attempt {attempt}.{nearest(process, set(names.values()))}"
        )
    followers: dict[Path, LineFollower] = {}
    while True:
        for path, name in log_files(folder, attempt).items():
            if process is not None and name != process:
                continue
            for line in followers.setdefault(path, LineFollower(path)).new_lines():
                if wanted.search(line):
                    print(f"{name} | {line}", flush=follow)
        if not follow:
            return 0
        try:
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            return 0


def log_files(folder: RunFolder, attempt: int) -> dict[Path, str]:
    """The log files of one life of the run and the process each belongs to."""
    root = folder.logs / f"attempt-{attempt}"
    return {path: path.stem for path in sorted(root.glob("*/*/*.log")) if path.parts[-3] != "agents"}
