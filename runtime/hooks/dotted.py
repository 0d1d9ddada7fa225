"""Loads objects that a recipe names by dotted path, `package.module:name`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any


class DottedPathError(ValueError):
    """The path is malformed, or its module or name does not exist."""


def load(path: str, what: str) -> Any:
    """Loads the object at `path`. `what` says in error messages what it is for, e.g. "reward function".

    Raises DottedPathError if the path is malformed or nothing is there. An exception raised while the module
    itself is imported passes through unchanged, because its traceback shows the cause.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise DottedPathError(f"{what} {path!r}: write it as package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but imports another one that does not
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
    """Like `load`, for a function or another callable object."""
    value = load(path, what)
    if not callable(value):
        raise DottedPathError(f"{what} {path!r}: it is a {type(value).__name__}, not a function")
    return value
