"""The reward of multiple choice, as in GPQA."""

from __future__ import annotations

import re
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.rewards.final import after_thought, last_boxed
from verst.runtime.rewards.labels import checks_labels

_TAIL = 2000  # characters at the end in which the choice is looked for
_LETTER = re.compile(r"\(?([A-Z])\)?")
_BOXED_LETTER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{\s*\(?([A-Z])\)?\s*\}")
# "the answer is (C)", "Answer: **C**", "correct choice is C". A word that begins with the letter is no choice.
# Nothing is given back (`*+`, `?+`): a long run of spaces could be shared out in too many ways.
_SAID = re.compile(
    r"(?i:answer|choice|option)(?i:\s+is)?\s*+:?+\s*+(?:\*\*|__)?+\s*+:?+\s*+\(?+\s*+\$?+\s*+([A-Z])\b(?!['’])",
    re.ASCII,
)
_ALONE = re.compile(r"^\W*([A-Z])\W*$", re.MULTILINE | re.ASCII)


def _label(label: Any, metadata: dict[str, Any]) -> str:
    found = _LETTER.fullmatch(label.strip().upper()) if isinstance(label, str) else None
    if found is None:
        raise LabelError(f"the label {label!r} is no letter of a choice, such as C")
    return found[1]


@checks_labels(_label)
def choice(answer: Answer) -> float:
    r"""1 if the response chooses the label's letter, else 0: multiple choice, as in GPQA.

    The choice is what stands in the last `\boxed{}`; or else what the last "answer is C" or "Answer: C" says; or else
    the last line with a letter alone. What stands before `</think>` does not count.
    """
    return float(_chosen(after_thought(answer.text)[-_TAIL:]) == _label(answer.label, answer.metadata))


def _chosen(text: str) -> str | None:
    boxed = last_boxed(text)
    if boxed is not None:
        found = _LETTER.fullmatch(boxed.strip()) or _BOXED_LETTER.fullmatch(boxed.strip())
        return found[1] if found else None
    said = _SAID.findall(text) or _ALONE.findall(text)
    return said[-1] if said else None
