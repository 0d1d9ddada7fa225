"""The reward functions that come with Verst."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.limits import limited
from verst.runtime.messages.exact_numbers import restored

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_CPU_S = 5.0  # for one answer; most take milliseconds


def checks_labels[F: Callable[..., Any]](check: Callable[[Any, dict[str, Any]], object]) -> Callable[[F], F]:
    """Decorator that gives a reward its check of labels, which `verst plan` calls for the rows, for 20 s a file.

    `check(label, metadata)` raises LabelError for a label that the reward cannot use.
    """

    def mark(function: F) -> F:
        function.check_label = check  # type: ignore[attr-defined]
        return function

    return mark


def exact(answer: Answer) -> float:
    """1 if the response equals the label, apart from white space around them, else 0."""
    return float(answer.text.strip() == str(answer.label).strip())


def _number_label(label: Any, metadata: dict[str, Any]) -> Decimal:
    """The label of `number` as a number."""
    written = str(label).replace(",", "").strip()
    try:
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            raise InvalidOperation
        value = Decimal(written)
        if not value.is_finite():
            raise InvalidOperation
    except InvalidOperation:
        raise LabelError(
            f"the label {label!r} is not a number such as 18, -0.5 or 1,000; rewards:math compares other values"
        ) from None
    return value


@checks_labels(_number_label)
def number(answer: Answer) -> float:
    """1 if the last number in the response equals the label, else 0. "3 + 4 = 7" gives 7; `1,000` is a thousand."""
    wanted = _number_label(answer.label, answer.metadata)
    found = _NUMBER.findall(answer.text)
    return float(bool(found) and Decimal(found[-1].replace(",", "")) == wanted)


def _math_label(label: Any, metadata: dict[str, Any]) -> list[Any]:
    """The label of `math`, parsed."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no deadline of its own
    if isinstance(label, bool) or not isinstance(label, str | int | float) or not str(label).strip():
        raise LabelError(f"the label {label!r} is neither a text nor a number")
    # math-verify's own deadlines use a signal's timer; the limit below is stricter.
    gold = parse(f"${label}$", parsing_timeout=None)
    if not gold:
        raise LabelError(f"math-verify finds no value in the label {label!r}")
    return gold


def _check_math_label(label: Any, metadata: dict[str, Any]) -> None:
    """Like `_math_label`, but quick for plain numbers."""
    if isinstance(label, bool) or _NUMBER.fullmatch(str(label).strip()) is None:
        _math_label(label, metadata)


@limited(cpu_s=_CPU_S, lost=0.0, imports=("math_verify",))
@checks_labels(_check_math_label)
def math(answer: Answer) -> float:
    """1 if the response's final answer equals the label (LaTeX or plain) according to math-verify, else 0.

    An answer that takes more than 5 s of CPU time, or more memory than there is, is 0: a model can write
    `9^{9^{9}}`.
    """
    from math_verify import parse, verify

    gold = _math_label(answer.label, answer.metadata)
    try:
        found = parse(answer.text, parsing_timeout=None)
        return float(verify(gold, found, timeout_seconds=None))
    except Exception:  # whatever a model's text makes math-verify raise, it is no right answer
        return 0.0


@limited(cpu_s=_CPU_S, lost=0.0, imports=("reasoning_gym",))
def reasoning_gym(answer: Answer) -> float:
    """The score, 0 to 1, that the reasoning-gym task `answer.metadata["source_dataset"]` gives the response.

    A response that makes the task's own scoring raise, or use more than 5 s of CPU time, is 0.
    """
    import reasoning_gym as gym

    score = gym.get_score_answer_fn(answer.metadata["source_dataset"])
    metadata = restored(answer.metadata)
    entry = {"question": metadata.get("question", ""), "answer": restored(answer.label), "metadata": metadata}
    try:
        return float(score(answer.text.strip(), entry))
    except Exception:  # tasks parse the response, some with eval
        score(str(entry["answer"]), entry)  # raises if the entry is at fault and not the response
        return 0.0
