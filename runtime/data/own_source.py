"""A source of rows that a person writes: a class or function named by its dotted path in place of a file.

```python
class Squares:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"prompt": f"{row} * {row}", "label": str(row * row)}
```

`path: my_rows:Squares` reads it. It is called without arguments, and must give the same rows each time: a prompt is
remembered by its row's number.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.frames import told
from verst.runtime.hooks.hook import Hook

_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_ROWS_AT_ONCE = 256
_WAIT_S = 120.0  # for so many rows


class DataSource(Protocol):
    """Rows by number, 0 <= row < len. A row is a dict of columns, of what JSON can hold."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> dict[str, Any]: ...


class OwnSourceError(Exception):
    """The source failed, or returned something else than rows. The message names it and the row."""


def is_own_source(path: Path | str) -> bool:
    """Whether a data path is a dotted path, and no file has that name."""
    return _DOTTED.fullmatch(str(path)) is not None and not Path(path).exists()


def own_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields place ("my_rows:Squares: row 3", counting from 0) and columns of each row. Raises OwnSourceError.

    The source runs in a thread of its own, so that one that hangs is noticed.
    """
    made: queue.Queue[list[tuple[str, dict[str, Any]]] | BaseException | None] = queue.Queue(maxsize=2)
    given_up = threading.Event()

    def work() -> None:
        try:
            for some in _batches(path):
                made.put(some)
                if given_up.is_set():
                    return
            made.put(None)
        except BaseException as error:  # a user's function may raise anything
            made.put(error)

    threading.Thread(target=work, name=f"rows of {path}", daemon=True).start()
    try:
        while True:
            try:
                some = made.get(timeout=_WAIT_S)
            except queue.Empty:
                raise OwnSourceError(f"{path}: no rows after {_WAIT_S:g} s") from None
            if some is None:
                return
            if isinstance(some, BaseException):
                raise some
            yield from some
    finally:
        given_up.set()
        while not made.empty():
            made.get_nowait()


def _batches(path: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    try:
        source = Hook("data source", path).function()
        count = len(source)
    except HookError as error:
        raise OwnSourceError(str(error)) from error
    except BaseException as error:
        raise OwnSourceError(f"{path}: {told(error)}") from error
    for first in range(0, count, _ROWS_AT_ONCE):
        yield [_row(path, source, number) for number in range(first, min(first + _ROWS_AT_ONCE, count))]


def _row(path: str, source: Any, number: int) -> tuple[str, dict[str, Any]]:
    where = f"{path}: row {number}"
    try:
        row = source[number]
    except BaseException as error:
        raise OwnSourceError(f"{where}: {told(error)}") from error
    if not isinstance(row, dict):
        raise OwnSourceError(f"{where}: a dict of columns is needed, not {type(row).__name__}")
    return where, row
