"""The names of IFEval's instructions, and the check of the arguments in a data file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args

from verst.runtime.rewards.ifeval import counts, forms, keywords, language
from verst.runtime.rewards.ifeval.relation import Relation

INSTRUCTIONS: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": keywords.existence,
    "keywords:frequency": keywords.frequency,
    "keywords:forbidden_words": keywords.forbidden_words,
    "keywords:letter_frequency": keywords.letter_frequency,
    "language:response_language": language.response_language,
    "length_constraints:number_sentences": counts.number_sentences,
    "length_constraints:number_paragraphs": counts.number_paragraphs,
    "length_constraints:number_words": counts.number_words,
    "length_constraints:nth_paragraph_first_word": counts.nth_paragraph_first_word,
    "detectable_content:number_placeholders": forms.number_placeholders,
    "detectable_content:postscript": forms.postscript,
    "detectable_format:number_bullet_lists": forms.number_bullet_lists,
    "detectable_format:constrained_response": forms.constrained_response,
    "detectable_format:number_highlighted_sections": forms.number_highlighted_sections,
    "detectable_format:multiple_sections": forms.multiple_sections,
    "detectable_format:json_format": forms.json_format,
    "detectable_format:title": forms.title,
    "combination:two_responses": forms.two_responses,
    "combination:repeat_prompt": forms.repeat_prompt,
    "startend:end_checker": forms.end_checker,
    "startend:quotation": forms.quotation,
    "change_case:capital_word_frequency": keywords.capital_word_frequency,
    "change_case:english_capital": language.english_capital,
    "change_case:english_lowercase": language.english_lowercase,
    "punctuation:no_comma": forms.no_comma,
}


def arguments_of(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of an instruction's check. Arguments that are None are left out: tables have all columns.

    Raises ValueError if there is no such instruction, or an argument is missing or of a wrong type.
    """
    if name not in INSTRUCTIONS:
        raise ValueError(f"there is no instruction {name!r} among IFEval's")
    wanted = _wanted(name)
    found = {key: value for key, value in (given or {}).items() if value is not None}
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ValueError(f"{name} has no argument {unknown[0]!r}; it takes {', '.join(wanted) or 'none'}")
    for key, type_ in wanted.items():
        if key not in found:
            raise ValueError(f"{name} needs the argument {key!r}")
        found[key] = _checked(name, key, type_, found[key])
    return found


def _checked(name: str, key: str, type_: str, value: Any) -> Any:
    if type_ == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes floats of a column of integers with gaps
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "str": isinstance(value, str) and bool(value),
        "Sequence[str]": isinstance(value, list) and all(isinstance(word, str) and word for word in value),
        "Relation": isinstance(value, str) and value in get_args(Relation),
    }[type_]
    if fits and key == "language":
        fits = value in language.LANGUAGES
    if fits and key == "nth_paragraph":
        fits = value >= 1
    if not fits:
        raise ValueError(f"{name}: {key} is {value!r}, which it cannot use")
    return value


@cache
def _wanted(name: str) -> dict[str, str]:
    parameters = inspect.signature(INSTRUCTIONS[name]).parameters.values()
    return {p.name: str(p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY}
