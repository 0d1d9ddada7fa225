"""Splits a text into words and sentences."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
_SPELLED = re.compile(r"\w+(?:['’.-]\w+)*")
_SHORT_FORMS = (
    "mr mrs ms dr prof sr jr st vs etc e.g i.e fig no inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov dec "
    "u.s u.k a.m p.m ph.d"
)
_SHORT = frozenset(_SHORT_FORMS.split())
_LONGEST = 20  # characters before a point that are looked at
_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+|\n{2,}")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as IFEval counts words."""
    return _WORD.findall(text)


def spelled_words(text: str) -> list[str]:
    """Words with what joins their parts: "don't", "well-known", "U.S" are one each."""
    return _SPELLED.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text. A point after a known short form, an initial or a list's number ends none."""
    found, start = [], 0
    for end in _END.finditer(text):
        if end[0] == "." and _is_short(text[max(start, end.start() - _LONGEST) : end.start()]):
            continue
        found.append(text[start : end.end()])
        start = end.end()
    found.append(text[start:])
    return [sentence.strip() for sentence in found if _WORD.search(sentence)]


def _is_short(before: str) -> bool:
    last = before.split()[-1].lstrip("(\"'“") if before.split() else ""
    initial = len(last) == 1 and last.isupper() and last != "I"
    number = last.isdigit() and before.strip() == last
    return last.lower() in _SHORT or initial or number
