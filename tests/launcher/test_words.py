"""A life of a run has one name in everything that people read: the guide, the help, and what Verst writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# "Generation" also means what engines do, and "attempt" a try of one request: neither comes with such a word then.
OTHER_NAME = re.compile(
    r"\b(?:earlier|previous|next|last|new|first|another|later) (?:generation|attempt)s?\b"
    r"|\bgeneration (?:\d|\{|%d|$)|--attempt",
    re.IGNORECASE,
)


def _written() -> Iterator[tuple[str, str]]:
    """Every line of the guide and every text in the code that is not a docstring, with its place."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            yield f"{page.name}:{number}", line + "."
    for room in ("launcher", "runtime", "slurm", "sync"):
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text())
            told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def test_a_life_of_a_run_is_called_a_life() -> None:
    found = [f"{place}: {text.strip()}" for place, text in _written() if OTHER_NAME.search(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("it is of an earlier generation", True),
        ("the run begins generation ", True),
        ("shows the logs of one life (--attempt)", True),
        ("generation and training overlap", False),
        ("attempt 2 of 3: the store did not answer", False),
    ],
)
def test_other_names_are_found(text: str, wrong: bool) -> None:
    assert bool(OTHER_NAME.search(text)) == wrong
