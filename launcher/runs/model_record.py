"""Which model a run began with: written to `model.json` of the run folder, and compared before each later life.

A checkpoint holds the policy alone. Everything else of the model is read from `model.path` in each life: config.json,
the tokenizer with its chat template, and the reference policy of `algorithm.kl_coef`. Another model in that place
would change them without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from verst.launcher.plan.model_files import config_digest, tokenizer_digest
from verst.launcher.recipe.load import load_recipe
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder, write_atomically
from verst.sync.hf.headers import StoredTensor, stored_tensors

_PIECES = 8192  # at most, over all tensors: also a very large model is read in seconds
_PIECE_BYTES = 4096


class ModelRecord(msgspec.Struct, kw_only=True):
    """A model folder as the run first read it."""

    path: str
    config: str  # digest of config.json
    tokenizer: str | None = None  # digest of the files that make prompts and read answers; None: not noted
    weights: str  # of names, types and shapes of all tensors, and of a piece of each (of very many, of some)


def record_of(folder: Path) -> ModelRecord:
    """What there is to say of a model folder. Raises ValueError or OSError if its weights cannot be read."""
    weights = hashlib.blake2b(digest_size=16)
    for part in _parts(folder):
        weights.update(part)
    return ModelRecord(
        path=str(folder),
        config=config_digest(folder),
        tokenizer=tokenizer_digest(folder),
        weights=weights.hexdigest(),
    )


def write_model_record(folder: RunFolder, model: Path) -> None:
    """Notes the model that the run begins with. A folder without readable weights is left to other checks."""
    try:
        record = record_of(model)
    except (OSError, ValueError):
        _path(folder).unlink(missing_ok=True)
        return
    write_atomically(_path(folder), msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def recorded_model(folder: RunFolder) -> ModelRecord | None:
    """The model that the run began with; None for a run that did not note it."""
    path = _path(folder)
    return msgspec.json.decode(path.read_bytes(), type=ModelRecord) if path.exists() else None


def model_faults(began: ModelRecord, model: Path, of: str = "the checkpoint") -> list[str]:
    """Why the folder `model` is not the model that the run began with; empty if it is. `of`: what that model made."""
    where = f"model.path: {model}" if began.path == str(model) else f"model.path: {began.path} -> {model}"
    try:
        differs = differences(began, model)
    except (OSError, ValueError) as error:
        return [f"{where}: it cannot be compared with the model that the run began with: {error}"]
    if not differs:
        return []
    return [
        f"{where}: {of} is of that model as it was when the run began, and other {' and '.join(differs)} "
        "would give it another reference policy or other settings; put the model back, or set model.path to a copy"
    ]


def differences(began: ModelRecord, model: Path) -> list[str]:
    """What of the folder `model` is not as it was when the run began. Raises OSError or ValueError if it cannot be
    read."""
    now = record_of(model)
    same = {
        "config.json": began.config == now.config,
        "tokenizer": began.tokenizer in (None, now.tokenizer),
        "weights": began.weights == now.weights,
    }
    return [what for what, equal in same.items() if not equal]


def fault_of_next_life(folder: RunFolder) -> str | None:
    """Why no further life of the run may begin by itself: its model is another one now. None if one may.

    The first life may begin with any model, which is noted anew. Raises OSError or ValueError if the model cannot be
    read; then the trainer cannot read it either, and says so.
    """
    began = recorded_model(folder)
    if began is None:
        return None
    model = Path(load_recipe(folder.recipe).model.path)
    if folder.life is None:
        write_model_record(folder, model)
        return None
    if not differences(began, model):
        return None
    of = "the checkpoint" if latest(folder.checkpoints) else "what was generated"
    return "; ".join(model_faults(began, model, of))


def _path(folder: RunFolder) -> Path:
    return folder.root / "model.json"


def _parts(folder: Path) -> Iterator[bytes]:
    """What the digest of the weights is made of. It does not depend on how tensors are spread over files."""
    tensors = sorted(stored_tensors(folder).items())
    step = -(-len(tensors) // _PIECES) or 1
    with ExitStack() as files:
        opened = {
            name: files.enter_context((folder / name).open("rb")) for name in {t.file for _, t in tensors}
        }
        for number, (name, tensor) in enumerate(tensors):
            yield repr((name, tensor.dtype, tensor.shape)).encode()
            if number % step == 0:
                yield _middle(opened[tensor.file], tensor)


def _middle(file: BinaryIO, tensor: StoredTensor) -> bytes:
    length = min(_PIECE_BYTES, tensor.end - tensor.begin)
    file.seek(tensor.begin + (tensor.end - tensor.begin - length) // 2)
    return file.read(length)
