"""Instructions about a text's length: words, sentences, paragraphs."""

from __future__ import annotations

import re

from verst.runtime.rewards.ifeval.relation import Relation, holds
from verst.runtime.rewards.ifeval.words import sentences, words

_DIVIDER = re.compile(r"\s?\*\*\*\s?")


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    """The text has so many sentences."""
    return holds(len(sentences(text)), relation, num_sentences)


def number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    """The text has so many words."""
    return holds(len(words(text)), relation, num_words)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, none empty, are divided by `***`."""
    parts = split(text, _DIVIDER)
    return parts is not None and len(parts) == num_paragraphs


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs are divided by empty lines, and one of them begins with the word."""
    parts = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if filled != num_paragraphs or nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    first = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", first, maxsplit=1)[0].lower() == first_word.lower()


def split(text: str, divider: re.Pattern[str]) -> list[str] | None:
    """The parts between dividers; None if one is empty that is neither the first nor the last."""
    parts = divider.split(text)
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part for part in parts if part.strip()]
