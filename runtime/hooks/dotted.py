"""Loads what a recipe names by dotted path: `package.module:name`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any


class DottedPathError(ValueError):
    """The path is malformed, or its module or name does not exist."""


def load(path: str, what: str) -> Any:
    """The object at `path`; `what` says in errors what it was wanted for, e.g. "reward function".

    An exception while the module itself is imported passes through unchanged: its traceback is the answer.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise DottedPathError(f"{what} {path!r}: write it as package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists and imports something that does not
        raise DottedPathError(
            f"{what} {path!r}: there is no module {error.name!r} (is its folder on PYTHONPATH?)"
        ) from error
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in dir(value) if not n.startswith("_")]
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise DottedPathError(f"{what} {path!r}: {module_name} has no {part!r}{hint}")
        value = getattr(value, part)
    return value


def load_function(path: str, what: str) -> Any:
    """As `load`, for something that can be called."""
    value = load(path, what)
    if not callable(value):
        raise DottedPathError(f"{what} {path!r}: it is a {type(value).__name__}, not a function")
    return value
