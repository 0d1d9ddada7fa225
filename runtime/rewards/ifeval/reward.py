"""The reward of verifiable instructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.limits import limited
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.arguments import typed
from verst.runtime.rewards.final import after_thought
from verst.runtime.rewards.ifeval.registry import INSTRUCTIONS, arguments_of
from verst.runtime.rewards.labels import checks_labels, decoded

_CPU_S = 5.0


def _instructions(label: Any, metadata: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The instructions of a row: those of its label, or else of its columns."""
    row = metadata if label is None or label == "" else decoded(label)
    if not isinstance(row, Mapping) or "instruction_id_list" not in row:
        raise LabelError(
            "neither the label nor the row has `instruction_id_list` and `kwargs`, as rows of google/IFEval have"
        )
    names, arguments = row["instruction_id_list"], row.get("kwargs")
    if not isinstance(names, list) or not names:
        raise LabelError(f"instruction_id_list is {names!r}, not a list of names")
    arguments = [None] * len(names) if arguments is None else arguments
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise LabelError(f"kwargs must be a list of {len(names)} objects, one for each instruction")
    try:
        return [(name, arguments_of(name, given)) for name, given in zip(names, arguments, strict=True)]
    except (ValueError, TypeError, AttributeError) as error:
        raise LabelError(str(error)) from None


@limited(cpu_s=_CPU_S, lost=0.0)
@typed()
@checks_labels(_instructions)
def ifeval(answer: Answer, *, loose: bool = False, share: bool = False) -> Score:
    """1 if the response follows all of the row's verifiable instructions, else 0 (IFEval). Part: `followed`, the share.

    The label, or the row's columns, have `instruction_id_list` and `kwargs`, as in google/IFEval. What stands before
    `</think>` does not count. An empty response follows none.

    Args:
        answer: the answer.
        loose: also count an instruction as followed if it is so without the first line, the last line, both, or the
            stars of Markdown (IFEval's loose accuracy).
        share: the value is the share of instructions that were followed.
    """
    instructions = _instructions(answer.label, answer.metadata)
    text = after_thought(answer.text)
    texts = _variants(text) if loose else [text]
    followed = [
        any(variant.strip() and INSTRUCTIONS[name](variant, **arguments) for variant in texts)
        for name, arguments in instructions
    ]
    part = sum(followed) / len(followed)
    return Score(part if share else float(all(followed)), {"followed": part})


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cuts = [text, *("\n".join(cut).strip() for cut in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]
