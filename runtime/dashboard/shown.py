"""Samples that were kept to be looked at: `shown/step-000012.jsonl`, one sample a line.

A list of a step's samples has their beginnings; tokens and probabilities come for one sample at a time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.run.folder import RunFolder

_FILE = re.compile(r"step-(\d+)\.jsonl")
_BEGINNING = 240
_LISTED = 2000


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A sample as it is listed."""

    group: int | str = 0
    index: int = 0
    prompt: str = ""
    response: str = ""
    reward: float | None = None
    advantage: float | None = None


class ShownWhole(Shown, frozen=True, kw_only=True):
    """A sample with what is known of its tokens. The lists have the response's length, or are empty."""

    step: int = 0
    tokens: list[str] = []
    rollout_logprobs: list[float | None] = []
    trainer_logprobs: list[float | None] = []
    routing_differs: list[int] | None = None


def shown_steps(folder: RunFolder) -> dict[int, Path]:
    """The steps of which samples were kept."""
    matches = ((_FILE.fullmatch(p.name), p) for p in (folder.root / "shown").glob("step-*.jsonl"))
    return dict(sorted((int(m[1]), p) for m, p in matches if m and not p.is_symlink()))


def list_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of a step by their line in the file, long texts cut."""
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
                    "prompt": sample.prompt[:_BEGINNING],
                    "response": sample.response[:_BEGINNING],
                }
            )
    return listed


def read_sample(path: Path, number: int) -> ShownWhole | None:
    """One sample, by its line in the file; None when there is no such line."""
    with path.open("rb") as stream:
        for at, line in enumerate(stream):
            if at == number:
                return _decode(line, ShownWhole)
    return None


def _decode[T: Shown](line: bytes, type_: type[T]) -> T | None:
    """A line as a sample; None for one that is torn or of another make."""
    try:
        return msgspec.json.decode(line, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # slower, but it knows the NaN that a diverged run wrote
        return msgspec.convert(json.loads(line, parse_constant=lambda _: None), type_)
    except (msgspec.ValidationError, ValueError):
        return None
