"""Which rows a run trains on and is measured by: written to `data.json` of the run folder, and compared at a resume.

A prompt group's number stands for a row. With other rows, the numbers of a resumed run would stand for other prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.data.records import DataError
from verst.runtime.run.folder import RunFolder, write_atomically


class FileRecord(msgspec.Struct, kw_only=True):
    """One data file as the run read it."""

    path: str
    bytes: int
    rows: int  # usable ones
    too_long: int = 0  # rows that were left out because they are too long
    digest: str  # of the tokens, labels and metadata of all rows, in order
    settings: dict[str, Any] = {}  # the recipe's keys that say how the file is read


DataRecord = dict[
    str, FileRecord
]  # by the recipe's section: "data.train", "data.eval", "algorithm.stages.0.data", "algorithm.stages.0.eval"


def digest_of(rows: Iterable[Any]) -> str:
    """A digest of rows, which are anything that msgpack can hold."""
    digest, encoder = hashlib.blake2b(digest_size=16), msgspec.msgpack.Encoder(order="deterministic")
    for row in rows:
        digest.update(encoder.encode(row))
    return digest.hexdigest()


def mix_record(weights: Mapping[str, float]) -> FileRecord:
    """The record of how sources are mixed: with other weights, a group's number stands for another row."""
    return FileRecord(
        path="", bytes=0, rows=0, digest=digest_of(weights.items()), settings={"the weights": dict(weights)}
    )


def training_rows(record: DataRecord) -> str:
    """A digest of all training prompts and how they are mixed."""
    return digest_of(sorted((s, file.digest) for s, file in record.items() if s.startswith("data.train")))


def changes(before: DataRecord, now: DataRecord) -> dict[str, str]:
    """By section, what has changed in files that both know, in words; empty if their rows are the same.

    A source of training prompts that is gone is a change, too.
    """
    changed = {
        section: f"{section} has other rows than before: {_differences(before[section], now[section])}"
        for section in before
        if section in now and before[section].digest != now[section].digest
    }
    gone = [section for section in before if section not in now and section.startswith("data.train")]
    return changed | {section: f"{section} is no longer in the recipe" for section in gone}


def compare(folder: RunFolder, now: DataRecord, trained: bool, accept: bool) -> dict[str, str]:
    """What has changed since the run's record was written, as `changes` says it.

    trained: the run resumes from a checkpoint. Then raises DataError if rows have changed, unless `accept`.
    """
    changed = changes(_read(folder.data), now)
    if changed and trained and not accept:
        raise DataError(
            f"{'. '.join(changed.values())}. A resumed run would take other prompts for those it has trained on: put "
            "the data back, or set data.accept_changes: true to go on with the new rows"
        )
    return changed


def write(folder: RunFolder, now: DataRecord, changed: Mapping[str, str], dropped: int = 0) -> None:
    """Writes the new record, and tells what there is to say in the run's events and metrics.

    dropped: how many groups of the old rows were dropped. Call it after that: until the record is written, the next
    life finds the same changes.
    """
    said = [*_summary(now), *changed.values()]
    if dropped:
        said.append(
            f"{dropped} groups that were generated from the old rows and not yet trained are dropped and made anew"
        )
    folder.event("data", message=". ".join(said))
    counts = {s: {"rows": f.rows, "too_long": f.too_long} for s, f in now.items() if f.path}
    folder.metric(kind="data", **{section.replace(".", "_"): of for section, of in counts.items()})
    write_atomically(folder.data, msgspec.json.format(msgspec.json.encode(now), indent=2) + b"\n")


def _read(path: Path) -> DataRecord:
    return msgspec.json.decode(path.read_bytes(), type=DataRecord) if path.exists() else {}


def _differences(before: FileRecord, now: FileRecord) -> str:
    told = []
    if before.path != now.path:
        told.append(f"the file was {before.path}, is {now.path}")
    if before.bytes != now.bytes:
        told.append(f"its size was {before.bytes:,} bytes, is {now.bytes:,}")
    if before.rows != now.rows:
        told.append(f"usable rows were {before.rows:,}, are {now.rows:,}")
    for key in sorted(before.settings.keys() | now.settings.keys()):
        was, is_ = before.settings.get(key), now.settings.get(key)
        if was != is_:
            told.append(f"{key} was {was!r}, is {is_!r}")
    return "; ".join(told) or "as many, but with other contents, or tokenised otherwise"


def _summary(now: DataRecord) -> Iterable[str]:
    for section, file in now.items():
        if not file.path:  # no file, but how some are mixed
            continue
        of_stage = section.startswith("algorithm.stages.")
        limit = "max_tokens, or than a micro-batch holds," if of_stage else "max_prompt_tokens"
        left_out = f", {file.too_long:,} more are longer than {limit} and left out" if file.too_long else ""
        yield f"{section}: {file.rows:,} {'rows' if of_stage else 'prompts'}{left_out}"
