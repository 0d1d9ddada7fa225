"""A source of one's own in place of a file: it gives rows like every other, and its faults are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verst.runtime.data import own_source
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.prompts import load_prompts
from verst.runtime.data.records import DataError, read_records

HERE = __name__


class Squares:
    """Rows that are computed."""

    def __len__(self) -> int:
        return 700

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"prompt": f"{row} * {row}", "label": row * row, "level": row}


class Broken(Squares):
    def __getitem__(self, row: int) -> Any:
        if row == 300:
            raise KeyError("no such file")
        return super().__getitem__(row)


class Strings(Squares):
    def __getitem__(self, row: int) -> Any:
        return "3 * 3"


class Hangs(Squares):
    def __len__(self) -> int:
        import time

        time.sleep(3)
        return 0


def needs_a_folder(folder: str) -> Squares:
    return Squares()


def test_its_rows_become_prompts() -> None:
    config = PromptFileConfig(path=f"{HERE}:Squares", chat_template=False)
    prompts = load_prompts(config, character_tokenizer())
    assert len(prompts) == 700
    assert (prompts[699].text, prompts[699].label, prompts[699].metadata) == (
        "699 * 699",
        699**2,
        {"level": 699},
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Broken", r":Broken: row 300: raised KeyError: 'no such file'"),
        ("Strings", r":Strings: row 0: a dict of columns is needed, not str"),
        ("Missing", r"data source '.*:Missing': "),
        ("needs_a_folder", r":needs_a_folder: raised TypeError: "),
    ],
)
def test_its_faults_are_named(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(read_records(f"{HERE}:{name}"))


def test_one_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_source, "_WAIT_S", 0.1)
    with pytest.raises(DataError, match=r":Hangs: no rows after 0\.1 s"):
        list(read_records(f"{HERE}:Hangs"))


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows:all").write_text("")
    assert not own_source.is_own_source("rows:all")
    assert own_source.is_own_source("rows:every")
    assert not own_source.is_own_source("/data/a:b")
