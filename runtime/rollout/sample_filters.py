"""Sample filters: `fn(group) -> [what becomes of each sample]`, after the group filter and before the group is pushed.

| of a sample | its tokens | its reward |
|---|---|---|
| "keep", or True | are trained | counts in the advantages of its group |
| "mask", or False | are not trained: its loss mask becomes 0 | counts |
| "drop" | are not trained | does not count: the group goes on without the sample |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from verst.runtime.hooks.frames import shown
from verst.runtime.messages.sample import Group

Fate = Literal["keep", "mask", "drop"]


def mask_truncated(group: Group) -> list[Fate]:
    """Masks answers that were cut off at a limit of length: overlong filtering (DAPO, arXiv:2503.14476, 3.4)."""
    return ["mask" if sample.finish == "length" else "keep" for sample in group.samples]


def drop_truncated(group: Group) -> list[Fate]:
    """Drops answers that were cut off at a limit of length: their rewards change no advantage."""
    return ["drop" if sample.finish == "length" else "keep" for sample in group.samples]


def fates_of(group: Group) -> Callable[[Any], list[Fate]]:
    """The check of a sample filter's value: one fate for each sample of the group."""

    def check(value: Any) -> list[Fate]:
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            raise ValueError(f"returned {shown(value)}, not a list with an entry for each sample")
        if len(value) != len(group.samples):
            raise ValueError(
                f"returned {len(value)} entries for {len(group.samples)} samples: {shown(value)}"
            )
        return [_fate(entry) for entry in value]

    return check


def sifted(group: Group, fates: Sequence[Fate]) -> tuple[Group | None, Counter[Fate]]:
    """The group that is left, None if no sample is; and how many samples had which fate."""
    samples = [
        sample
        if fate == "keep"
        else msgspec.structs.replace(sample, loss_mask=np.zeros_like(sample.loss_mask))
        for sample, fate in zip(group.samples, fates, strict=True)
        if fate != "drop"
    ]
    counted = Counter(fates)
    if not samples:
        return None, counted
    numbered = [msgspec.structs.replace(sample, index=place) for place, sample in enumerate(samples)]
    return msgspec.structs.replace(group, samples=numbered), counted


def _fate(entry: Any) -> Fate:
    if isinstance(entry, bool | np.bool_):
        return "keep" if entry else "mask"
    if isinstance(entry, str) and entry in ("keep", "mask", "drop"):
        return entry  # type: ignore[return-value]
    raise ValueError(
        f'returned {shown(entry)} for a sample; it must be "keep", "mask" or "drop", True or False'
    )
