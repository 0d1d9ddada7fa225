"""Rewards that compare values of mathematics, by math-verify."""

from __future__ import annotations

import logging
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.limits import limited
from verst.runtime.rewards.final import finished_thought, last_boxed
from verst.runtime.rewards.labels import checks_labels, text_or_number
from verst.runtime.rewards.plain import NUMBER

_CPU_S = 5.0  # for one answer; most take milliseconds


def _value(label: Any, metadata: dict[str, Any]) -> list[Any]:
    """The label, parsed."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no deadline of its own
    text = text_or_number(label, metadata)
    # math-verify's own deadlines use a signal's timer; the limit below is stricter.
    gold = parse(f"${text}$", parsing_timeout=None)
    if not gold:
        raise LabelError(f"math-verify finds no value in the label {label!r}")
    return gold


def _check(label: Any, metadata: dict[str, Any]) -> None:
    """Like `_value`, but quick for plain numbers."""
    if isinstance(label, bool) or NUMBER.fullmatch(str(label).strip()) is None:
        _value(label, metadata)


@limited(cpu_s=_CPU_S, lost=0.0, imports=("math_verify",))
@checks_labels(_check)
def math(answer: Answer) -> float:
    """1 if the response's final answer equals the label (LaTeX or plain) according to math-verify, else 0.

    An answer that takes more than 5 s of CPU time, or more memory than there is, is 0: a model can write
    `9^{9^{9}}`.
    """
    return _equal(answer, answer.text)


@limited(cpu_s=_CPU_S, lost=0.0, imports=("math_verify",))
@checks_labels(_check)
def boxed(answer: Answer) -> float:
    r"""Like `math`, but only what stands in the last `\boxed{}` counts: 0 for a response without one."""
    return _boxed(answer, answer.text)


@limited(cpu_s=_CPU_S, lost=0.0, imports=("math_verify",))
@checks_labels(_check)
def deepscaler(answer: Answer) -> float:
    r"""Like `boxed`, but only what follows the last `</think>` counts: 0 for a thought that was never ended.

    DeepScaleR's rule for the form. It compares the values with two programs of its own, this with math-verify.
    """
    return _boxed(answer, finished_thought(answer.text))


def _boxed(answer: Answer, text: str | None) -> float:
    found = last_boxed(text) if text else None
    if found is None:
        _value(answer.label, answer.metadata)  # a label of no use is told with any answer
        return 0.0
    return _equal(answer, f"\\boxed{{{found}}}")


def _equal(answer: Answer, text: str) -> float:
    from math_verify import parse, verify

    gold = _value(answer.label, answer.metadata)
    try:
        return float(verify(gold, parse(text, parsing_timeout=None), timeout_seconds=None))
    except Exception:  # whatever a model's text makes math-verify raise, it is no right answer
        return 0.0
