"""Exports a sharded model as a Hugging Face folder: safetensors shards, index, config and tokenizer.

Each trainer rank writes shards of the tensors that it owns (`sync/links/whole_share.py`). Rank 0 completes the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from verst.sync.files.durable import flush
from verst.sync.files.shard_file import ShardFile
from verst.sync.formats import Derived
from verst.sync.hf.folder import INDEX, SINGLE, HfFolder, copy_companions, name_dtype, read_config
from verst.sync.layout.binding import Bound
from verst.sync.links.gather import SOURCE, frozen_names, whole_tensors
from verst.sync.links.outcomes import attempt, of_all
from verst.sync.links.whole_share import WholeShare


@dataclass(frozen=True)
class _Shard:
    """A safetensors file that a rank has written, and the tensors in it."""

    file: str
    names: list[str]
    nbytes: int


def export(
    bound: Bound,
    bucket_bytes: int,
    dtype: torch.dtype,
    source: Path | str,
    folder: Path | str,
    shard_bytes: int = 5 << 30,
) -> None:
    """Writes the model as a Hugging Face folder that appears whole or not at all. Collective.

    `source` is the folder that the model was loaded from; its configuration and tokenizer are copied. A file is at most
    `shard_bytes` large, and only as many ranks write as there are files of that size. If a rank cannot write, raises
    RuntimeError on every rank, with the rank and the cause.
    """
    source, folder = Path(source), Path(folder)
    hidden = folder.with_name(f".{folder.name}.partial")
    share = WholeShare(
        bound, ([name] for name in whole_tensors(bound.layout)), bucket_bytes, dtype, least_bytes=shard_bytes
    )
    first = share.rank == SOURCE
    try:
        _on_first(share, partial(_begin, folder, hidden))
        frozen = frozen_names(bound.layout) if first else []
        mine = _write(share, _Shards(hidden, share.rank, shard_bytes), source, frozen)
        shards = [one for of_rank in of_all(mine, share.rank, share.world, "write") for one in of_rank]
        described = bound.layout.family.described
        _on_first(share, partial(_complete, shards, source, folder, hidden, dtype, described))
    except (OSError, ValueError) as error:
        raise RuntimeError(f"cannot export to {folder}: {error}") from error
    finally:
        if first:
            shutil.rmtree(hidden, ignore_errors=True)


def write_folder(
    tensors: Iterable[tuple[str, torch.Tensor]],
    frozen: Sequence[str],
    dtype: torch.dtype,
    source: Path | str,
    folder: Path | str,
    shard_bytes: int = 5 << 30,
    described: Mapping[str, Any] | None = None,
) -> None:
    """Writes whole tensors, in one process, as a Hugging Face folder that appears whole or not at all.

    `source` is the folder of the model: its configuration, its tokenizer and the tensors `frozen` are copied. At most
    `shard_bytes` and one tensor are in memory. `described`: what the configuration says otherwise. Raises RuntimeError
    with the cause if it cannot be written.
    """
    source, folder = Path(source), Path(folder)
    hidden = folder.with_name(f".{folder.name}.partial")
    try:
        _begin(folder, hidden)
        shards = _Shards(hidden, SOURCE, shard_bytes)
        for name, tensor in tensors:
            shards.add({name: tensor.to(dtype).contiguous()})
        if frozen:
            original = HfFolder(source)
            shards.add({name: original.whole(name) for name in frozen})
        _complete(shards.finish(), source, folder, hidden, dtype, described or {})
    except OSError as error:
        raise RuntimeError(f"cannot export to {folder}: {error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _on_first(share: WholeShare, act: partial[None]) -> None:
    """Rank 0 calls `act`, and all ranks wait for it and for its error, if any."""
    of_all(attempt(act) if share.rank == SOURCE else None, share.rank, share.world, "write")


def _begin(folder: Path, hidden: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or name another folder")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)


def _write(
    share: WholeShare, shards: _Shards, source: Path, frozen: Sequence[str]
) -> list[_Shard] | Exception:
    """Writes this rank's shards to the disk. `frozen` are the tensors that it copies from the source unchanged."""
    failure: Exception | None = None
    for names, tensors in share.buckets():
        if failure is None:  # after a failure the loop goes on, because the others need this rank's blocks
            failure = attempt(partial(shards.add, dict(zip(names, tensors, strict=True))))
    if failure is None and frozen:
        original = HfFolder(source)
        failure = attempt(lambda: shards.add({name: original.whole(name) for name in frozen}))
    return attempt(shards.finish) if failure is None else failure


class _Shards:
    """Collects one rank's tensors into files."""

    def __init__(self, folder: Path, rank: int, shard_bytes: int) -> None:
        self._folder, self._rank, self._shard_bytes = folder, rank, shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._written: list[_Shard] = []

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Adds tensors, and writes a file whenever there are enough for one."""
        for name, tensor in tensors.items():
            if self._pending and self._pending_bytes + tensor.nbytes > self._shard_bytes:
                self._write()
            self._pending[name] = tensor.cpu()
            self._pending_bytes += tensor.nbytes

    def finish(self) -> list[_Shard]:
        """Writes the remaining tensors; returns all files."""
        if self._pending:
            self._write()
        return self._written

    def _write(self) -> None:
        file = f"rank-{self._rank}-{len(self._written)}"
        described = [Derived(name, tuple(t.shape), t.dtype) for name, t in self._pending.items()]
        with ShardFile(self._folder / file, described) as shard:
            for name, tensor in self._pending.items():
                shard.write(name, tensor)
            shard.close()
        self._written.append(_Shard(file, list(self._pending), self._pending_bytes))
        self._pending, self._pending_bytes = {}, 0


def _complete(
    shards: list[_Shard],
    source: Path,
    folder: Path,
    hidden: Path,
    dtype: torch.dtype,
    described: Mapping[str, Any],
) -> None:
    """Gives the shards their final names, adds the folder's other files, and makes it visible."""
    count = len(shards)
    files = (
        [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    for shard, file in zip(shards, files, strict=True):
        (hidden / shard.file).rename(hidden / file)
    if count > 1:
        weight_map = {name: file for shard, file in zip(shards, files, strict=True) for name in shard.names}
        index = {"metadata": {"total_size": sum(s.nbytes for s in shards)}, "weight_map": weight_map}
        (hidden / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    _copy_companions(source, hidden, dtype, described)
    for path in hidden.rglob("*"):
        if path.name not in files:  # these are on the disk already
            flush(path)
    os.rename(hidden, folder)
    flush(folder.parent)


def _copy_companions(source: Path, hidden: Path, dtype: torch.dtype, described: Mapping[str, Any]) -> None:
    copy_companions(source, hidden)
    config = read_config(source)
    name_dtype(config, str(dtype).removeprefix("torch."))
    if config.get("num_nextn_predict_layers"):
        config["num_nextn_predict_layers"] = 0  # multi-token prediction is neither trained nor exported
    config |= described
    (hidden / "config.json").write_text(json.dumps(config, indent=2) + "\n")
