"""Several sources of training prompts: each has its own passes, and inherits what it leaves out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from verst.runtime.data.config import SourceConfig, TrainConfig
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.sources import TrainingPrompts


def prompts(folder: Path, sources: dict[str, tuple[int, float]], seed: int = 3) -> TrainingPrompts:
    """Sources of so many rows and such a weight; the label of each row is its number."""
    given = {}
    for name, (rows, weight) in sources.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": name, "label": n}) + "\n" for n in range(rows)))
        given[name] = SourceConfig(path=str(path), weight=weight)
    train = TrainConfig(chat_template=False, sources=given)
    return TrainingPrompts(train, seed, character_tokenizer(), lambda source: None)


def test_each_source_has_its_share_and_passes_of_its_own(tmp_path: Path) -> None:
    training = prompts(tmp_path, {"a": (4, 3), "b": (6, 1)})
    places = [training.place(position) for position in range(24 * 4)]
    assert Counter(place.source for place in places) == {"a": 72, "b": 24}
    for name, rows in (("a", 4), ("b", 6)):
        taken = [place.row for place in places if place.source == name]
        passes = [taken[at : at + rows] for at in range(0, len(taken), rows)]
        assert all(sorted(one) == list(range(rows)) for one in passes), "each pass visits each row once"
        assert len({tuple(one) for one in passes}) > 1, "passes have orders of their own"
    first = training.at(places[0])
    assert (first.source, first.text, first.label) == (places[0].source, places[0].source, places[0].row)
    assert [training.source_of(position) for position in range(96)] == [place.source for place in places]


def test_a_source_keeps_its_order_when_others_come_and_go(tmp_path: Path) -> None:
    def order(sources: dict[str, tuple[int, float]]) -> list[int]:
        training = prompts(tmp_path, sources)
        return [place.row for position in range(300) if (place := training.place(position)).source == "a"][
            :40
        ]

    assert order({"a": (9, 1), "b": (5, 1)}) == order({"a": (9, 2), "c": (3, 1), "b": (5, 7)})


def test_a_source_inherits_what_it_leaves_out_also_after_the_recipe_was_written() -> None:
    given = {
        "system": "be brief",
        "label_key": None,
        "sources": {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl", "system": None, "weight": 2}},
    }
    train = TrainConfig.model_validate(given)
    for read in (train, TrainConfig.model_validate(train.model_dump(mode="json"))):
        a, b = read.by_name().values()
        assert (a.system, a.label_key, a.prompt_key, a.weight) == ("be brief", None, "prompt", 1)
        assert (b.system, b.label_key, b.weight) == (None, None, 2)
    changed = TrainConfig.model_validate(train.model_dump(mode="json") | {"system": "take your time"})
    assert [source.system for source in changed.by_name().values()] == ["take your time", None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give either path, for one file, or sources, for several"),
        ({"path": "a", "sources": {"a": {"path": "a"}}}, "give either path"),
        ({"sources": {"a b": {"path": "a"}}}, "'a b' is no name of a source"),
        ({"sources": {"a": {"path": "a", "weight": 0.0}}}, "greater than 0"),
        ({"sources": {"a": {"path": "a", "weight": 0.33333333}, "b": {"path": "b"}}}, "round them"),
    ],
)
def test_what_is_no_set_of_sources(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig.model_validate(given)
