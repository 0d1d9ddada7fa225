"""Checks every row of the data files, with the model's tokenizer, in a child process (`row_program.py`).

The child loads transformers, but no torch, which a tokenizer does not need. It reads the files as a stream.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import yaml

from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

_DEADLINE_S = 300.0


class RowReport(msgspec.Struct):
    """The faults of rows, and in words what else a person should know of the files."""

    faults: list[Fault] = []
    said: list[str] = []


def start_row_check(recipe: Recipe) -> Callable[[], RowReport]:
    """Starts the child. Returns a function that waits for its report."""
    pool = ThreadPoolExecutor(max_workers=1)
    report = pool.submit(row_report, recipe)
    pool.shutdown(wait=False)
    return report.result


def row_report(recipe: Recipe) -> RowReport:
    """Runs the child and returns its report."""
    command = [sys.executable, "-m", "verst.launcher.check.row_program"]
    try:
        done = subprocess.run(
            command,
            input=yaml.safe_dump(recipe.resolved()),
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        return RowReport(
            [
                Fault(
                    "data.train.path",
                    f"could not be checked: reading the rows took more than {_DEADLINE_S:.0f} s",
                )
            ]
        )
    if done.returncode != 0:
        last = "\n    ".join(done.stderr.strip().splitlines()[-8:])
        return RowReport(
            [Fault("data.train.path", f"could not be checked: reading the rows failed:\n    {last}")]
        )
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=RowReport)
