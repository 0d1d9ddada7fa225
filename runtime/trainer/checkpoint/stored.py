"""Reads single tensors out of a checkpoint, on any machine: no Megatron, no process group, one tensor in memory.

A checkpoint is in PyTorch's distributed format. Each tensor is stored whole, in chunks of any sizes. The tensors of
equal layers and of experts are stacked: `decoder.layers.mlp.experts.experts.linear_fc2.weight` is [layer, expert, …].
If the layers of a model differ, each has its own: `decoder.layers.3.…`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from verst.sync.layout.mapping import Family, HfConfig, Rule, merged_shape


class StoredTensors:
    """The tensors of one checkpoint. Raises ValueError if the folder holds none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._metadata = FileSystemReader(folder).read_metadata()
        except (OSError, EOFError) as error:
            raise ValueError(f"{folder} holds no tensors of a checkpoint: {error}") from error
        self._tensors = {
            key: about
            for key, about in self._metadata.state_dict_metadata.items()
            if isinstance(about, TensorStorageMetadata)
        }

    def parameter(self, rule: Rule, layer: int | None) -> torch.Tensor:
        """A whole Megatron parameter, as its rule describes it: of a layer, or (None) of embedding and head.

        Raises ValueError if the checkpoint does not have it, or in another shape.
        """
        key, index = self._find(rule, layer)
        found = self._read(key, index)
        expected = merged_shape(rule.view, rule.ndim)
        fits = found.shape == expected or (
            rule.padded and found.shape[1:] == expected[1:] and found.shape[0] >= expected[0]
        )
        if not fits:
            raise ValueError(f"{self._folder}: {key} is {tuple(found.shape)}, the model needs {expected}")
        return found

    def _find(self, rule: Rule, layer: int | None) -> tuple[str, tuple[int, ...]]:
        """The key of a parameter, and its place in the stacked tensor."""
        expert = () if rule.expert is None else (rule.expert,)
        tried = []
        for name in rule.names:
            # Megatron stores the experts of all its expert layers under one name.
            plain = name.replace("local_experts.{expert}.", "experts.").replace("weight{expert}", "weight")
            if rule.expert is not None and ".experts.experts." not in plain:
                plain = plain.replace(".experts.", ".experts.experts.")
            places = [(plain, expert)] if layer is None else [
                (f"decoder.layers.{plain}", (layer, *expert)), (f"decoder.layers.{layer}.{plain}", expert)
            ]  # fmt: skip
            for key, index in places:
                if key in self._tensors:
                    return key, index
                tried.append(key)
        raise ValueError(f"{self._folder} has none of {', '.join(dict.fromkeys(tried))}")

    def _read(self, key: str, index: tuple[int, ...]) -> torch.Tensor:
        """The part of a stored tensor at `index` in its first dimensions. Raises ValueError if it is not whole."""
        about = self._tensors[key]
        shape = tuple(about.size)[len(index) :]
        found = torch.empty(shape, dtype=about.properties.dtype)
        missing = found.numel()
        for chunk in about.chunks:
            begin, size = tuple(chunk.offsets), tuple(chunk.sizes)
            inside = [at - low for at, low in zip(index, begin, strict=False)]
            if any(not 0 <= at < width for at, width in zip(inside, size, strict=False)):
                continue
            target = found
            for dim, (low, width) in enumerate(zip(begin[len(index) :], size[len(index) :], strict=True)):
                target = target.narrow(dim, low, width)
            target.copy_(self._chunk(key, chunk)[tuple(inside)])
            missing -= target.numel()
        if missing:
            raise ValueError(f"{self._folder}: {missing} elements of {key} at {index} are missing")
        return found

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        place = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        with (self._folder / place.relative_path).open("rb") as stream:
            stream.seek(place.offset)
            data = stream.read(place.length)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def model_tensors(
    stored: StoredTensors, family: Family, config: HfConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every trained Hugging Face tensor of the model by name, in the model's order."""
    seen: set[str] = set()
    stages: list[tuple[int | None, list[Rule]]] = [(None, list(family.embedding(config)))]
    layers = ((i, list(family.layer(config, i))) for i in range(family.num_layers(config)))
    for layer, rules in (*stages, *layers, (None, list(family.head(config)))):
        for rule in rules:
            if rule.parts[0].hf in seen:  # a head that is tied to the embedding
                continue
            parameter = stored.parameter(rule, layer)
            view = (parameter.shape[0], *rule.view[1:]) if rule.padded else rule.view
            for part in rule.parts:
                seen.add(part.hf)
                piece = parameter.view(view).narrow(rule.axis, part.start, part.length)
                yield part.hf, piece.reshape(part.shape)
