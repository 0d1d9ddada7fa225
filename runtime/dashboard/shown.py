"""Reads the samples that a run kept for people to look at, one a line.

`shown/step-000012.jsonl` has samples of a step, `shown/eval-000012.jsonl` held-out answers of an evaluation.

The list of a step's samples has only the beginnings of their texts. Tokens and probabilities are read for one sample
at a time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.run.folder import RunFolder

KINDS = ("step", "eval")
_FILE = re.compile(r"(?:step|eval)-(\d+)\.jsonl")
_BEGINNING = 240
_LISTED = 2000


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A sample in the list of a step."""

    group: int | str = 0
    index: int = 0
    prompt: str = ""
    response: str = ""
    reward: float | None = None
    advantage: float | None = None
    when: str | None = (
        None  # of an evaluation: "before", "during" or "after" training, or "alone" of `verst eval`
    )
    set: str | None = None  # of an evaluation: the name of its set
    label: Any = None


class ShownWhole(Shown, frozen=True, kw_only=True):
    """A sample with its tokens. Each list has one entry for each token of the response, or is empty."""

    step: int = 0
    metadata: Any = None
    tokens: list[str] = []
    rollout_logprobs: list[float | None] = []
    trainer_logprobs: list[float | None] = []
    old_logprobs: list[float | None] = []
    reference_logprobs: list[float | None] | None = None  # None: the recipe has no reference
    routing_differs: list[int] | None = None


def shown_steps(folder: RunFolder, kind: str = "step") -> dict[int, Path]:
    """The steps with kept samples, or with `kind` "eval" the evaluated versions, each with its file."""
    matches = ((_FILE.fullmatch(p.name), p) for p in (folder.root / "shown").glob(f"{kind}-*.jsonl"))
    return dict(sorted((int(m[1]), p) for m, p in matches if m and not p.is_symlink()))


def list_samples(path: Path) -> list[dict[str, Any]]:
    """Lists the samples of a step, each with its line number in the file. Long texts are cut."""
    listed: list[dict[str, Any]] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            if len(listed) == _LISTED:
                break
            if (sample := _decode(line, Shown)) is None:
                continue
            listed.append(
                {
                    "line": number,
                    "group": sample.group,
                    "index": sample.index,
                    "reward": sample.reward,
                    "advantage": sample.advantage,
                    "when": sample.when,
                    "set": sample.set,
                    "label": str(sample.label)[:_BEGINNING] if sample.label is not None else None,
                    "prompt": sample.prompt[:_BEGINNING],
                    "response": sample.response[:_BEGINNING],
                }
            )
    return listed


def read_samples(path: Path) -> list[ShownWhole]:
    """Reads all samples of a step. Leaves out damaged lines."""
    with path.open("rb") as stream:
        return [sample for line in stream if (sample := _decode(line, ShownWhole)) is not None]


def read_sample(path: Path, number: int) -> ShownWhole | None:
    """Reads the sample at a line number, from 0. Returns None if there is no such line or it is damaged."""
    with path.open("rb") as stream:
        for at, line in enumerate(stream):
            if at == number:
                return _decode(line, ShownWhole)
    return None


def _decode[T: Shown](line: bytes, type_: type[T]) -> T | None:
    """Decodes a line. Returns None for a line that is incomplete or has another format."""
    try:
        return msgspec.json.decode(line, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # slower, but it accepts the NaN that a diverged run writes
        return msgspec.convert(json.loads(line, parse_constant=lambda _: None), type_)
    except (msgspec.ValidationError, ValueError):
        return None
