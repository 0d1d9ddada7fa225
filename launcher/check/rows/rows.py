"""Checks the rows of the data files, with the model's tokenizer, in a child process (`row_program.py`).

The child loads transformers, but no torch, which a tokenizer does not need. It reads the files as a stream. A report
without faults is kept for the next check of the same rows (`kept_answers.py`). One with faults is not: a reader that
ran out of memory, or lacked a package, tells of it as it does of a faulty row.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from verst.launcher.check.asking.child import ChildFailedError, ask
from verst.launcher.check.asking.kept_answers import keep, recall, rows_question
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
    """The report: the kept one, or that of a child."""
    name = rows_question(recipe)
    kept = recall(name, RowReport) if name else None
    if kept is not None:
        return kept
    try:
        answer = ask(recipe, "reading the rows", _DEADLINE_S, "verst.launcher.check.rows.row_program")
    except ChildFailedError as error:
        return RowReport([Fault("data", str(error))])
    report = msgspec.json.decode(answer, type=RowReport)
    if name is not None and not report.faults:
        keep(name, report)
    return report
