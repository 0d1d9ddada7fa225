"""Converts a Hugging Face folder to an engine's format, or back to BF16, in bounded memory.

The source's files are converted one after another, each tensor in blocks of rows. Only one block (`BLOCK_ELEMENTS`, by
default 4 Mi elements) and its converted tensors are in memory at a time: about 120 MB besides torch, whatever the size
of the model. NVFP4's largest values (amaxes) are computed in a separate pass before. All files are read back from
the disk and compared before the folder gets its name.

Of the tensors that are not quantised, matrices become bfloat16, and vectors (norms, biases, routers' corrections)
stay as they are.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from verst.sync.files.durable import flush
from verst.sync.files.shard_file import ShardFile, verify
from verst.sync.formats import Bf16, Derived, Format, Selection, of_config
from verst.sync.formats.selection import chosen, ignored
from verst.sync.hf.folder import INDEX, copy_companions, name_dtype, read_config
from verst.sync.hf.stored_model import StoredModel

BLOCK_ELEMENTS = 4 << 20

Progress = Callable[
    [str, int, int], None
]  # the current step, how much of it is done, how much there is in all


@dataclass(frozen=True)
class Converted:
    """The result of a conversion."""

    quantised: int  # tensors
    kept: int  # tensors that were not quantised
    files: int
    nbytes: int


def convert(
    source: Path,
    target: Path,
    format: Format,
    ignore: Sequence[str] = (),
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
) -> Converted:
    """Writes `target`, a model folder in `format`, from `source`. It appears whole or not at all.

    `ignore` names further layers to leave alone (`sync/formats/selection.py`, style "path"). Raises ValueError if the
    source is not a model folder, if tensors do not fit the format (all are named), if a tensor to be quantised holds
    an infinity or a NaN, and if the written files read back differently; OSError if they cannot be written;
    FileExistsError if the target is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; name another")
    partial = target.absolute().with_name(f".{target.name}.partial")
    job = _Conversion(StoredModel(source), format, ignore, device, progress)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        converted = job.run(partial)
        for path in partial.iterdir():
            flush(path)
        os.rename(partial, target)
        flush(target.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return converted


class _Conversion:
    def __init__(
        self, source: StoredModel, format: Format, ignore: Sequence[str], device: str, progress: Progress
    ) -> None:
        self.source, self.format, self.device, self.progress = source, format, torch.device(device), progress
        has_experts = any(".experts." in name for name in source.shapes)
        experts_only = format.covers == "experts" and has_experts
        rule = Selection(tuple(ignore), experts_only=experts_only)
        self.taken = frozenset() if isinstance(format, Bf16) else chosen(source.shapes, rule)
        self._refuse_misfits()
        if not isinstance(format, Bf16) and not self.taken:
            raise ValueError(f"{source.folder} has no linear layer to quantise if {list(ignore)} are ignored")
        self.amaxes: dict[str, torch.Tensor] = {}
        self.total = sum(math.prod(shape) for shape in source.shapes.values())
        self.done = 0

    def _refuse_misfits(self) -> None:
        faults = []
        for name in sorted(self.taken):
            try:
                self.format.check(name, self.source.shapes[name])
            except ValueError as error:
                faults.append(str(error))
        if faults:
            shown = "\n  ".join(faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else []))
            raise ValueError(f"{self.source.folder} does not fit {self.format.name}:\n  {shown}")

    def run(self, folder: Path) -> Converted:
        if self.format.two_phase:
            self._find_amaxes()
        weight_map: dict[str, str] = {}
        nbytes = 0
        sums: dict[str, dict[str, str]] = {}
        for file, names in self.source.by_file().items():
            sums[file] = self._write_file(folder / file, names)
            weight_map |= dict.fromkeys(sums[file], file)
            nbytes += (folder / file).stat().st_size
        for at, file in enumerate(sums):
            self.progress("checking", at, len(sums))
            verify(folder / file, sums[file])
        copy_companions(self.source.folder, folder)
        (folder / "hf_quant_config.json").unlink(missing_ok=True)  # it describes the source's format
        self._write_config(folder)
        if len(sums) > 1:
            index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        kept = len(self.source.shapes) - len(self.taken)
        return Converted(len(self.taken), kept, len(sums), nbytes)

    def _find_amaxes(self) -> None:
        for at, name in enumerate(sorted(self.taken)):
            self.progress("largest values", at, len(self.taken))
            group = self.format.amax_group(name)
            for block in self._blocks(name):
                amax = self.format.amax(block)
                known = self.amaxes.get(group)
                self.amaxes[group] = amax if known is None else torch.maximum(known, amax)

    def _write_file(self, path: Path, names: Sequence[str]) -> dict[str, str]:
        with ShardFile(path, [d for name in names for d in self._derived(name)]) as file:
            for name in names:
                self._write_tensor(file, name)
            return file.close()

    def _derived(self, name: str) -> tuple[Derived, ...]:
        shape = self.source.shapes[name]
        if name in self.taken:
            return self.format.derived(name, shape)
        return (Derived(name, shape, self._kept_dtype(name)),)

    def _kept_dtype(self, name: str) -> torch.dtype:
        dtype = self.source.dtype(name)
        return torch.bfloat16 if dtype.is_floating_point and len(self.source.shapes[name]) > 1 else dtype

    def _write_tensor(self, file: ShardFile, name: str) -> None:
        shape = self.source.shapes[name]
        at = 0  # row
        for block in self._blocks(name):
            if name in self.taken:
                amax = self.amaxes.get(self.format.amax_group(name))
                made = self.format.tensors(name, block, shape=(shape[0], shape[1]), amax=amax)
                cuts = self.format.cut(name, shape, 0, at, block.shape[0])
                # A value for the whole tensor comes with every block, but is written only once.
                made = {
                    output: tensor for output, tensor in made.items() if cuts[output] is not None or at == 0
                }
                at += block.shape[0]
            else:
                made = {name: block.to(self._kept_dtype(name))}
            for output, tensor in made.items():
                file.write(output, tensor)
            self.done += block.numel()
            self.progress("converting", self.done, self.total)

    def _blocks(self, name: str) -> Iterator[torch.Tensor]:
        shape = self.source.shapes[name]
        if len(shape) < 2:
            yield self.source.whole(name).to(self.device)
            return
        grain = math.lcm(self.source.row_grain, self.format.granularity()[0])
        rows = max(grain, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])) // grain * grain)
        for start in range(0, shape[0], rows):
            yield self.source.rows(name, start, min(start + rows, shape[0])).to(self.device)

    def _write_config(self, folder: Path) -> None:
        config = read_config(self.source.folder)
        for key in ("quantization_config", "compression_config"):
            config.pop(key, None)
        name_dtype(config, "bfloat16")
        quantisation = self.format.config(ignored(self.source.shapes, self.taken, self.format.ignore_style))
        if quantisation is not None:
            # An engine and a trainer must conclude from it which tensors were quantised here.
            misread = chosen(self.source.shapes, of_config(quantisation)[1]) ^ self.taken
            if misread:
                raise ValueError(
                    f"{self.source.folder}: an ignore list cannot distinguish {sorted(misread)[0]} from layers "
                    "that are treated differently; ignore both or neither"
                )
            config["quantization_config"] = quantisation
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
