"""DAPO's rewards: the answer after "Answer:", and the soft punishment of overlong answers (arXiv:2503.14476).

Answers are compared as texts, after the normalisation of Minerva (arXiv:2206.14858, appendix D.1), which DAPO's recipe
takes over. The two tables below are that normalisation's, in its order.
"""

from __future__ import annotations

import re
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.rewards.arguments import typed
from verst.runtime.rewards.final import last_boxed
from verst.runtime.rewards.labels import checks_labels, text_or_number

_TAIL = 300  # characters at the end in which the answer is looked for, as in DAPO's recipe
_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3",
    "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
)  # fmt: skip
_REWRITTEN = (
    (re.compile(r".*?\$(.*?)\$.*"), r"$\1$"),  # only what is between the first two dollar signs
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


def _label(label: Any, metadata: dict[str, Any]) -> str:
    text = text_or_number(label, metadata)
    wanted = normalised(last_boxed(text) or text)
    if not wanted:
        raise LabelError(f"nothing is left of the label {label!r} after normalisation")
    return wanted


@checks_labels(_label)
def dapo_math(answer: Answer) -> float:
    """1 if the last "Answer: …" of the response is the label after Minerva's normalisation, else -1 (DAPO).

    Only the last 300 characters count, and of them the last line with "Answer:".
    """
    found = _ANSWER.findall(answer.text[-_TAIL:])
    right = bool(found) and normalised(found[-1]) == _label(answer.label, answer.metadata)
    return 1.0 if right else -1.0


def normalised(text: str) -> str:
    """A final answer in the form in which DAPO compares answers. For short texts: it is quadratic in their length."""
    text = text.rpartition("=")[2]
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for word in _REMOVED:
        text = text.replace(word, "")
    for pattern, new in _REWRITTEN:
        text = pattern.sub(new, text)
    text = text.replace("$", "")
    if text.replace(",", "").isdigit():
        text = text.replace(",", "")
    return text.strip()


def _check_overlong(*, limit: int, buffer: int) -> None:
    if not 0 < buffer <= limit:
        raise ValueError(f"buffer must be between 1 and limit, {limit}; it is {buffer}")


@typed(_check_overlong)
def overlong(answer: Answer, *, limit: int, buffer: int) -> float:
    """0 for an answer that keeps to its length, down to -1 for one of `limit` tokens (DAPO, equation 13).

    It falls in a straight line over the last `buffer` tokens before `limit`. For the sum of `rollout.reward` with a
    reward of correctness.

    Args:
        answer: the answer.
        limit: the length in tokens that is punished with -1: L_max.
        buffer: tokens before it in which the punishment grows: L_cache.
    """
    over = len(answer.ids) - (limit - buffer)
    return -min(1.0, max(0, over) / buffer)
