"""A reward of an answer's form alone."""

from __future__ import annotations

import regex

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.score import Score
from verst.runtime.hooks.values import checked_name
from verst.runtime.rewards.arguments import typed

THINK_THEN_ANSWER = r"\s*(?:<think>)?(?P<thought>\S.*?)</think>\s*(?P<answer>\S.*?)\s*"
_SEARCH_S = 1.0  # for a pattern that takes for ever on a hostile text


def _check(*, pattern: str) -> None:
    try:
        compiled = regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    for name in compiled.groupindex:
        checked_name("part", name)


@typed(_check)
def format(answer: Answer, *, pattern: str = THINK_THEN_ANSWER) -> Score:
    """1 if the whole response matches the regular expression `pattern`, else 0; `.` matches line ends, too.

    Each named group, such as `(?P<answer>…)`, is a part of the score: 1 if it matched some text. A response on which
    the pattern takes longer than a second is 0.
    """
    compiled = regex.compile(pattern, regex.DOTALL)
    try:
        found = compiled.fullmatch(answer.text, timeout=_SEARCH_S)
    except TimeoutError:
        found = None
    groups = found.groupdict() if found else dict.fromkeys(compiled.groupindex)
    return Score(float(found is not None), {name: float(bool(text)) for name, text in groups.items()})
