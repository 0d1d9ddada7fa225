"""Reads a model folder in any known format as plain tensors, restoring the quantised ones."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from verst.sync.files.shard_file import TORCH
from verst.sync.formats import Bf16, of_config
from verst.sync.hf.folder import HfFolder, read_config


class StoredModel:
    """The plain tensors of a model folder, by name: as they are stored, or restored to bfloat16 if quantised.

    `shapes` has the shape of each. Rows must be read in multiples of `row_grain`.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if the folder is not a model folder or its format is not known."""
        self.folder = folder
        config = read_config(folder)
        try:
            self.format, _ = of_config(config.get("quantization_config") or config.get("compression_config"))
        except ValueError as error:
            raise ValueError(f"{folder}/config.json: {error}") from error
        self._stored = HfFolder(folder)
        self.row_grain = self.format.granularity()[0]
        self._quantised: dict[str, tuple[int, ...]] = {}
        parts: set[str] = set()
        if not isinstance(self.format, Bf16):
            parts = self._find_quantised()
        self.shapes: dict[str, tuple[int, ...]] = dict(self._quantised)
        for name in self._stored.files:
            if name not in parts:
                shape = self._stored.shape(name)
                assert shape is not None
                self.shapes[name] = shape

    def _find_quantised(self) -> set[str]:
        """Fills `_quantised` and returns the names of all derived tensors. A weight is quantised if it has scales."""
        first, scales = self.format.outputs[0], self.format.outputs[1].suffix
        parts: set[str] = set()
        for stored in self._stored.files:
            if not stored.endswith("." + scales):
                continue
            name = stored.removesuffix(scales) + "weight"
            for output in self.format.outputs:
                part = self.format.name_of(name, output.suffix)
                # A checkpoint may lack tensors that `restore` does not read (input_scale).
                if part in self._stored.files:
                    parts.add(part)
            shape = self._stored.shape(self.format.name_of(name, first.suffix))
            if shape is None:
                raise ValueError(
                    f"{self.folder} has {stored}, but no {self.format.name_of(name, first.suffix)}"
                )
            assert first.step is not None
            self._quantised[name] = shape[0] * first.step[0], shape[1] * first.step[1]
        return parts

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor has when it is read from here."""
        if name in self._quantised:
            return torch.bfloat16
        stored = self._stored.dtype(name)
        if stored not in TORCH:
            raise ValueError(
                f"{self.folder}: {name} has the unknown dtype {stored}; known are {', '.join(TORCH)}"
            )
        return TORCH[stored]

    def by_file(self) -> dict[str, list[str]]:
        """The tensors of each file. A quantised tensor belongs to the file of its first derived tensor."""
        files: dict[str, list[str]] = {}
        for name in sorted(self.shapes):
            stored = (
                self.format.name_of(name, self.format.outputs[0].suffix) if name in self._quantised else name
            )
            files.setdefault(self._stored.files[stored], []).append(name)
        return dict(sorted(files.items()))

    def whole(self, name: str) -> torch.Tensor:
        """Reads a whole tensor."""
        if name in self._quantised:
            return self.rows(name, 0, self.shapes[name][0])
        return self._stored.whole(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Reads rows of a tensor; `start` and `stop` must be multiples of `row_grain`, or `stop` the tensor's end."""
        if name not in self._quantised:
            return self._stored.rows(name, start, stop)
        parts = {}
        for output in self.format.outputs:
            part = self.format.name_of(name, output.suffix)
            if part not in self._stored.files:
                continue
            if output.step is None:
                parts[output.suffix] = self._stored.whole(part)
            else:
                step = output.step[0]
                parts[output.suffix] = self._stored.rows(part, start // step, math.ceil(stop / step))
        return self.format.restore(parts)
