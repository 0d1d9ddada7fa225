"""Rewards of short answers in words: exact match and F1, as SQuAD computes them (arXiv:1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.rewards.final import after_thought
from verst.runtime.rewards.labels import checks_labels

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OPEN, _CLOSE = "<answer>", "</answer>"


def _labels(label: Any, metadata: dict[str, Any]) -> list[str]:
    """The right answers: the label, or each of its entries."""
    texts = label if isinstance(label, list) else [label]
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, str | int | float) or not str(text).strip():
            raise LabelError(f"the label {label!r} is neither a text nor a list of texts")
    if not texts:
        raise LabelError("the label is an empty list")
    return [str(text) for text in texts]


@checks_labels(_labels)
def exact_match(answer: Answer) -> float:
    """1 if the response is the label, or one of its entries, in SQuAD's normalisation, else 0.

    Case, punctuation, articles and white space do not count. The response is what stands after `</think>`, and of that
    the last `<answer>…</answer>` if there is one.
    """
    found = normalised(_said(answer.text))
    return float(any(found == normalised(label) for label in _labels(answer.label, answer.metadata)))


@checks_labels(_labels)
def f1(answer: Answer) -> float:
    """The F1 of the response's words against those of the label, or of its best entry: SQuAD's F1, 0 to 1.

    Precision and recall count words of the normalised texts, each as often as it occurs.
    """
    found = normalised(_said(answer.text)).split()
    return max(_f1(found, normalised(label).split()) for label in _labels(answer.label, answer.metadata))


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def _said(text: str) -> str:
    text = after_thought(text)
    before, close, _ = text.rpartition(_CLOSE)
    _, opened, inside = before.rpartition(_OPEN)
    return inside if close and opened else text
