"""Imports the module of a recipe's hooks and looks at each hook. A program of its own, which `hooks.py` starts.

Importing a user's module may import torch, print, exit or crash, none of which the `verst` command should do. The
hooks come as JSON on stdin: {"algorithm": the recipe's section, "unscored": {key of a function that must score itself:
key of the reward that is missing}, "hooks": [[key of the recipe, dotted path, number of arguments or null, [[key,
prompt file, label column or null], …], keyword arguments], …]}. The answers go to the file descriptor in the first
argument, a line for each hook: null, or [key, fault].
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from typing import Any

from verst.launcher.check.asking.said import SAID
from verst.launcher.check.hooks.signatures import (
    NO_REWARD,
    NOT_ASYNC,
    has_replaced_arguments,
    wrong_signature,
)
from verst.runtime.data.records import DataError, column, read_records
from verst.runtime.hooks.dotted import DottedPathError, load
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.frames import told
from verst.runtime.hooks.hook import is_async
from verst.runtime.hooks.preparation import argument_fault
from verst.runtime.hooks.score import does_score_itself

_LABELS_S = 20.0  # for the labels of one file


def main() -> None:
    """Looks at the hooks on stdin, one after the other."""
    with open(int(sys.argv[1]), "w", buffering=1) as answers:
        asked = json.load(sys.stdin)
        for key, dotted, arguments, files, keywords in asked["hooks"]:
            fault = _fault(key, dotted, arguments, files, keywords, asked["algorithm"], asked["unscored"])
            print(json.dumps(fault), file=answers, flush=True)


def _fault(
    key: str,
    dotted: str,
    arguments: int | None,
    files: list[list[Any]],
    keywords: dict[str, Any],
    algorithm: dict[str, Any],
    unscored: dict[str, str],
) -> list[str] | None:
    """[the key of the faulty prompt file or "", what is wrong], or None."""
    try:
        found = load(dotted, "hook")
    except DottedPathError as error:
        return ["", str(error).partition(": ")[2]]
    except BaseException as error:  # a module may do anything while it is imported
        return ["", f"importing it failed: {told(error)}"]
    if arguments is None:
        return None
    if not callable(found):
        return ["", f"it is a {type(found).__name__}, not a function"]
    if keywords:
        if fault := argument_fault(found, keywords):
            return ["", f"its arguments: {fault}"]
    elif fault := _signature_fault(key, dotted, found, arguments):
        return ["", fault]
    if fault := _dry_call_fault(key, dotted, algorithm):
        return ["", fault]
    if key == "rollout.agent" and not is_async(found):
        return ["", NOT_ASYNC]
    if key in unscored and not does_score_itself(found):
        return [unscored[key], NO_REWARD]
    check = getattr(found, "check_label", None)
    for file_key, path, label_key in files if check is not None else []:
        if fault := _label_fault(check, path, label_key):
            return [file_key, fault]
    return None


def _dry_call_fault(key: str, dotted: str, algorithm: dict[str, Any]) -> str | None:
    if key.startswith("rollout.") or key.endswith(".reward"):  # they are not called
        return None
    from verst.launcher.check.hooks.dry_call import dry_call_fault  # imports the recipe's schema: a second

    return dry_call_fault(key, dotted, algorithm)


def _signature_fault(key: str, dotted: str, function: Any, arguments: int) -> str | None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function of C without a signature
        return None
    try:
        signature.bind(*[None] * arguments)
        if not has_replaced_arguments(key, list(signature.parameters)):
            return None
    except TypeError:
        pass
    name = getattr(function, "__name__", dotted)
    return wrong_signature(key, arguments, name, str(signature).partition("(")[2].rpartition(")")[0])


def _label_fault(check: Any, path: str, label_key: str | None) -> str | None:
    """The first label of a prompt file that the reward cannot use, with file and line."""
    until = time.monotonic() + _LABELS_S
    try:
        for record in read_records(path):
            label = column(record, label_key) if label_key else None
            if label is None and label_key:
                continue  # the check of the rows tells that it is missing
            try:
                check(label, record[1])
            except LabelError as error:
                return f"{record[0]}: {error}"
            if time.monotonic() > until:
                print(
                    f"{SAID}{record[0]}: the labels after this row were not checked, which would take more than "
                    f"{_LABELS_S:.0f} s",
                    file=sys.stderr,
                )
                break
    except (DataError, OSError):  # another check tells
        return None
    return None


if __name__ == "__main__":
    main()
