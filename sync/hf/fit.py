"""Whether the tensors in a model folder are those that its family reads, judged by the files' headers alone.

A tensor that nobody reads would be missing from training and from the export, and the model that is trained would be
another one than the folder holds. So it is a fault, unless it is known to be harmless (`Family.left_out`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from verst.sync.hf.headers import StoredTensor, same_bytes
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.mapping import Family, HfConfig
from verst.sync.links.gather import whole_tensors

# Plain numbers; everything else needs a format's scales.
_PLAIN = ("F64", "F32", "F16", "BF16")
_SHOWN = 20
_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def fit_faults(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    family: Family,
    config: HfConfig,
    *,
    pieces: int | None = None,
) -> list[str]:
    """The faults of a folder's tensors; empty if they are what the family reads. At most 20, and how many more.

    `config` is completed. `pieces`: where the bytes of two tensors matter, compares only so many pieces of them.
    """
    layout = Layout(family, config, ParallelSizes(), 0)
    frozen = {piece.hf: piece.hf_shape for buffer in layout.frozen for piece in buffer.pieces}
    wanted = whole_tensors(layout) | frozen
    faults = [*_misfits(stored, wanted), *_unread(folder, stored, wanted, family, config, pieces)]
    return faults[:_SHOWN] + ([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])


def _misfits(stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in wanted.items():
        tensor = stored.get(name)
        if tensor is None:
            yield f"{name} {shape} is missing"
        elif tensor.shape != shape:
            yield f"{name} is {tensor.shape}, but by config.json it should be {shape}"
        elif tensor.dtype not in _PLAIN:
            yield f"{name} is {tensor.dtype}, not one of {', '.join(_PLAIN)}: quantised weights cannot be trained"


def _unread(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    family: Family,
    config: HfConfig,
    pieces: int | None,
) -> Iterator[str]:
    for name, tensor in stored.items():
        if name in wanted or family.left_out(config, name) or 0 in tensor.shape:
            continue
        if name == _OUTPUT and config.get("tie_word_embeddings") and _EMBEDDING in stored:
            if not same_bytes(folder, tensor, stored[_EMBEDDING], pieces=pieces):
                yield (
                    f"{name} differs from {_EMBEDDING}, but tie_word_embeddings is true: transformers reads both, "
                    f"engines and trainer the embedding alone; set tie_word_embeddings to false or remove {name}"
                )
            continue
        yield f"{name} {tensor.shape} is not read by the family {family.name}: it would be lost"
