"""Writes a Hugging Face folder from a sharded model: safetensors shards, index, config and tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from verst.sync.durable import flush
from verst.sync.gather import SOURCE, Gather
from verst.sync.hf_folder import INDEX, SINGLE, HfFolder, copy_companions, read_config


def export(gather: Gather, source: Path | str, folder: Path | str, shard_bytes: int = 5 << 30) -> None:
    """Writes the model as a Hugging Face folder that appears whole or not at all. Collective.

    `source` is the folder the model came from; its configuration and tokenizer are copied. Raises
    RuntimeError on every rank when rank 0 cannot write, naming the cause there.
    """
    writer = (
        _Writer(Path(source), Path(folder), gather.dtype, shard_bytes, gather.frozen)
        if gather.rank == SOURCE
        else None
    )
    error: Exception | None = None
    for names, tensors in gather.buckets():
        # After a failure the other ranks still send; the rest of their buckets is dropped.
        if writer is not None and tensors is not None and error is None:
            try:
                writer.add(dict(zip(names, tensors, strict=True)))
            except (OSError, ValueError) as caught:
                error = caught
    if writer is not None:
        try:
            if error is None:
                writer.finish()
        except (OSError, ValueError) as caught:
            error = caught
        writer.clean()
    if not _all_well(gather, error is None):
        where = f"cannot export to {folder}: "
        raise RuntimeError(where + (str(error) if error else "see trainer rank 0")) from error


def _all_well(gather: Gather, mine: bool) -> bool:
    """Whether rank 0 succeeded, told to every rank."""
    if not dist.is_initialized():
        return mine
    flag = torch.tensor([mine], dtype=torch.uint8, device=gather.device)
    dist.broadcast(flag, SOURCE, gather.group)
    return bool(flag.item())


class _Writer:
    """Collects tensors into shards of at most `shard_bytes` in a hidden folder beside the final one."""

    def __init__(
        self, source: Path, folder: Path, dtype: torch.dtype, shard_bytes: int, frozen: list[str]
    ) -> None:
        self.source, self.folder, self.dtype, self.shard_bytes = source, folder, dtype, shard_bytes
        self.frozen = frozen
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.pending: dict[str, torch.Tensor] = {}
        self.pending_bytes = 0
        self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        if not self.shards and not self.pending:
            self._begin()
        for name, tensor in tensors.items():
            if self.pending and self.pending_bytes + tensor.nbytes > self.shard_bytes:
                self._write_shard()
            self.pending[name] = tensor.cpu()
            self.pending_bytes += tensor.nbytes

    def _begin(self) -> None:
        if self.folder.exists():
            raise FileExistsError(f"{self.folder} exists already; remove it or name another folder")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def _write_shard(self) -> None:
        save_file(self.pending, self.partial / f"shard-{len(self.shards)}", metadata={"format": "pt"})
        self.shards.append(list(self.pending))
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0

    def finish(self) -> None:
        if self.frozen:
            original = HfFolder(self.source)
            self.add({name: original.whole(name) for name in self.frozen})
        self._write_shard()
        count = len(self.shards)
        names = (
            [SINGLE]
            if count == 1
            else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        )
        for i, name in enumerate(names):
            (self.partial / f"shard-{i}").rename(self.partial / name)
        if count > 1:
            weight_map = {
                tensor: name for name, shard in zip(names, self.shards, strict=True) for tensor in shard
            }
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self.partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        self._copy_companions()
        for path in self.partial.iterdir():
            flush(path)
        os.rename(self.partial, self.folder)
        flush(self.folder.parent)

    def _copy_companions(self) -> None:
        copy_companions(self.source, self.partial)
        config = read_config(self.source)
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(self.dtype).removeprefix("torch.")
        if config.get("num_nextn_predict_layers"):
            config["num_nextn_predict_layers"] = 0  # multi-token prediction is neither trained nor exported
        (self.partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def clean(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
