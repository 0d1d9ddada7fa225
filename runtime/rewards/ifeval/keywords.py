"""Instructions about words and letters that a text must have or lack."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verst.runtime.rewards.ifeval.relation import Relation, holds
from verst.runtime.rewards.ifeval.words import spelled_words


def existence(text: str, *, keywords: Sequence[str]) -> bool:
    """Each keyword occurs, in any case, also as part of a word."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword occurs so often, in any case, also as part of words."""
    return holds(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of the words occurs, in any case, as a whole word."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The letter, or another sign, occurs so often, in any case."""
    return holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words have capital letters only."""
    found = sum(word.isupper() for word in spelled_words(text))
    return holds(found, capital_relation, capital_frequency)
