"""Writes the model of a checkpoint as a Hugging Face folder, on any machine, tensor by tensor.

A run's own export comes from its ranks' memory (`runtime/trainer/weights/`). This one needs neither them nor Megatron,
and holds no more than one file of the folder in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.run.checkpoints import read_manifest
from verst.runtime.trainer.checkpoint.stored import StoredTensors, model_tensors
from verst.sync.hf.export import write_folder
from verst.sync.hf.folder import read_config
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.mapping import family_for
from verst.sync.layout.scalar_head import with_score_head
from verst.sync.links.gather import frozen_names, whole_tensors


def export_checkpoint(
    checkpoint: Path,
    model: ModelConfig,
    folder: Path,
    show: Callable[[str, int, int], None] = lambda name, done, total: None,
    shard_bytes: int = 2 << 30,
    scores: bool = False,
) -> int:
    """Writes the folder, which appears whole or not at all. Returns the number of tensors.

    `show` is called with the name of each tensor, how many are written and how many there are. `scores`: the model is a
    reward model. Raises ValueError if the checkpoint is not of this model, and RuntimeError if the folder cannot be
    written.
    """
    config = read_config(model.path)
    family = family_for(config, model.family)
    layout = Layout(with_score_head(family) if scores else family, config, ParallelSizes(), 0)
    shapes = whole_tensors(layout)
    if read_manifest(checkpoint).model != model_digest(layout):
        raise ValueError(
            f"{checkpoint} holds another model than {model.path}: names or shapes of tensors differ"
        )
    count = 0

    def tensors():
        nonlocal count
        for name, tensor in model_tensors(StoredTensors(checkpoint), layout.family, config):
            show(name, count, len(shapes))
            yield name, tensor
            count += 1

    frozen = frozen_names(layout)
    described = layout.family.described
    write_folder(tensors(), frozen, getattr(torch, model.dtype), model.path, folder, shard_bytes, described)
    return count + len(frozen)


def model_digest(layout: Layout) -> str:
    """A digest of the names and shapes of a model's tensors, by which a checkpoint knows its model."""
    return hashlib.sha256(repr(sorted(whole_tensors(layout).items())).encode()).hexdigest()
