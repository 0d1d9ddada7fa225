"""Instructions about a text's form: lists, sections, titles, quotes, JSON, beginning and end."""

from __future__ import annotations

import json
import re

from verst.runtime.rewards.ifeval.counts import split

_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_BULLET = re.compile(r"^[^\S\n]*(?:\*[^*\n]|-).*$", re.MULTILINE)
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_HIGHLIGHT = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")
_MARKERS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_STARS = re.compile(r"\*\*\*\*\*\*")


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders stand in square brackets, such as [address]."""
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """The text has the marker of a postscript; P.S. and P.P.S also with spaces between their letters."""
    pattern = _MARKERS.get(postscript_marker, re.escape(postscript_marker.strip().lower()))
    return re.search(pattern, text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines begin with `* ` or `-`."""
    return len(_BULLET.findall(text)) == num_bullets


def constrained_response(text: str) -> bool:
    """The text has one of the answers "My answer is yes.", "… no." and "… maybe."."""
    return any(answer in text for answer in _ANSWERS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many sections are highlighted with *stars*."""
    found = [*_HIGHLIGHT.findall(text), *_DOUBLE_HIGHLIGHT.findall(text)]
    return sum(bool(section.strip()) for section in found) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections begin with the word and a number, such as "Section 1"."""
    begins = re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)
    return len(begins) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is JSON, with or without a Markdown fence around it."""
    inside = text.strip()
    if found := _FENCE.match(inside):
        inside = inside[found.end() :].strip().removesuffix("```")
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """The text has a title in double angular brackets, such as <<poem of joy>>."""
    return any(_titled(line) for line in text.splitlines())


def two_responses(text: str) -> bool:
    """Two different answers are divided by `******`."""
    parts = split(text, _STARS)
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The text begins with the given request, word for word; case does not count."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    """The text ends with the phrase; case and a last quotation mark do not count."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str) -> bool:
    """The text has no comma."""
    return "," not in text


def _titled(line: str) -> bool:
    _, opened, rest = line.partition("<<")
    inside, closed, _ = rest.rpartition(">>")
    return bool(opened and closed and inside.strip("<> \t"))
