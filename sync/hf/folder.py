"""Reads a Hugging Face folder: config.json, and slices of tensors from its safetensors files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from verst.sync.hf.fit import fit_faults
from verst.sync.hf.headers import INDEX, SINGLE, stored_tensors, weight_files, weight_map
from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Piece

# The other files of a model folder: configurations, tokenizer and remote code.
_COMPANIONS = {".json", ".txt", ".jinja", ".model", ".tiktoken", ".py"}
_TEMPLATES = "additional_chat_templates"


def read_config(folder: Path | str) -> dict[str, Any]:
    """Reads config.json of a model folder. Raises ValueError if it is missing or not a JSON object."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: not a Hugging Face model folder")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def copy_companions(source: Path, folder: Path) -> None:
    """Copies the files of a model folder that are not weights, config.json included, but no index of weights.

    Transformers keeps further chat templates (for tools, for example) in a folder of their own.
    """
    for path in source.iterdir():
        if path.is_file() and path.suffix in _COMPANIONS and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES, copy_function=shutil.copyfile)


def name_dtype(config: dict[str, Any], dtype: str) -> None:
    """Names the number format wherever a config.json does: under its two names, and in nested configurations."""
    named = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    config.update(dict.fromkeys(named, dtype))
    for nested in config.values():
        if isinstance(nested, dict) and nested.keys() & {"dtype", "torch_dtype"}:
            name_dtype(nested, dtype)


class HfFolder:
    """The tensors of a model folder by name. Each file is memory-mapped when it is first used."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self.files = self._locate()

    def _locate(self) -> dict[str, str]:
        """The name of each tensor's file."""
        files = weight_files(self.folder)
        if files == [SINGLE] and not (self.folder / INDEX).is_file():
            return dict.fromkeys(self._file(SINGLE).keys(), SINGLE)
        return weight_map(self.folder)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        return self._open[name]

    def _slice(self, name: str) -> Any:
        file = self.files[name]
        try:
            return self._file(file).get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{self.folder / file} lacks {name}, which {INDEX} places there") from error

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, or None if the folder has no tensor of that name."""
        return tuple(self._slice(name).get_shape()) if name in self.files else None

    def whole(self, name: str) -> torch.Tensor:
        """Reads a whole tensor, of any number of dimensions."""
        self._slice(name)  # raises a clear error if the index is wrong
        return self._file(self.files[name]).get_tensor(name)

    def dtype(self, name: str) -> str:
        """A tensor's dtype in safetensors' spelling: BF16, F8_E4M3, …"""
        return str(self._slice(name).get_dtype())

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Reads rows of a tensor of at least one dimension, and nothing else from the disk."""
        return self._slice(name)[start:stop]

    def block(self, piece: Piece) -> torch.Tensor:
        """Reads the block that a piece describes, and nothing else from the disk."""
        cut = [slice(None)] * len(piece.hf_shape)
        cut[piece.dim] = slice(piece.start, piece.start + piece.length)
        return self._slice(piece.hf)[tuple(cut)]


@torch.no_grad()
def import_weights(folder: Path | str, bound: Bound) -> None:
    """Fills this rank's parameters and frozen buffers from a Hugging Face folder, reading only this rank's slices.

    Values are converted to each parameter's dtype; padding rows become zero. If an optimizer exists already, it must
    copy its fp32 masters again (`optimizer.reload_model_params()`). Raises ValueError that lists every tensor which is
    missing, has another shape or would not be read, and for a NaN or an infinity.
    """
    folder, layout = Path(folder), bound.layout
    faults = fit_faults(folder, stored_tensors(folder), layout.family, layout.config)
    if faults:
        shown = "\n  ".join(faults)
        raise ValueError(f"the weights in {folder} do not fit its config.json:\n  {shown}")
    source = HfFolder(folder)
    for local, parameter in [*bound.parameters, *bound.frozen]:
        if local.padding:
            parameter.zero_()
        for piece in local.pieces:
            block = source.block(piece)
            _require_finite(folder, piece.hf, block)
            piece.write(parameter, block)


def _require_finite(folder: Path, name: str, block: torch.Tensor) -> None:
    """Raises ValueError for a NaN or an infinity, which would end the engines without a word of why."""
    # A sum is not finite if a value is not, and needs no second tensor.
    if block.sum(dtype=torch.float64).isfinite():
        return
    count = int((~block.isfinite()).sum())
    if count:
        raise ValueError(
            f"{folder}: {name} has {count} values that are NaN or infinite: the checkpoint is damaged, or its training "
            "diverged"
        )
