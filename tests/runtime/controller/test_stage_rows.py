"""Pairs reach the trainer with their margins, and a run that goes on knows that they changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.data_record import changes
from verst.runtime.controller.stage_rows import StageRows
from verst.runtime.data.models import character_tokenizer


def rows(folder: Path, gaps: list[float], **data: Any) -> StageRows:
    path = folder / "pairs.jsonl"
    some = [
        {"prompt": "1+1=", "chosen": "2", "rejected": str(n), "gap": gap} for n, gap in enumerate(gaps, 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    stage = {"kind": "reward_model", "data": {"path": str(path), **data}, "steps": 2, "batch_size": len(gaps)}
    return StageRows(AlgorithmConfig.model_validate({"stages": [stage]}), character_tokenizer(), 999)


@pytest.mark.parametrize("data", [{}, {"margin_key": "gap"}])
def test_both_answers_of_a_pair_bring_its_margin(data: dict[str, Any], tmp_path: Path) -> None:
    groups = rows(tmp_path, [0.5, 2, 0], **data).batch(0)
    tokenizer, found = character_tokenizer(), {}
    for group in groups:
        assert group.meta(0).signals == (["margin"] if data else [])
        for sample in group.samples:
            margins = set(sample.signals.get("margin", [None]))
            found[tokenizer.decode(group.samples[1].response_ids)] = margins
    assert found == (
        {"3<|end|>": {0.5}, "4<|end|>": {2.0}, "5<|end|>": {0.0}}
        if data
        else {f"{n}<|end|>": {None} for n in (3, 4, 5)}
    )


def test_other_margins_are_other_rows(tmp_path: Path) -> None:
    before = rows(tmp_path, [0.5, 2], margin_key="gap").record()
    assert changes(before, rows(tmp_path, [0.5, 2], margin_key="gap").record()) == {}
    assert list(changes(before, rows(tmp_path, [0.5, 1], margin_key="gap").record())) == [
        "algorithm.stages.0.data"
    ]
