"""Connects a rank's layout to its real Megatron model, and checks that every parameter and every persistent
buffer of the model is covered exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from verst.sync.layout.layout import Layout, LocalParameter, Piece

_LAYER = re.compile(r"decoder\.layers\.\d+")


class Bound:
    """A layout together with the real tensors of this rank: its parameters, and the buffers that keep the
    checkpoint's values (`frozen`)."""

    def __init__(
        self,
        layout: Layout,
        parameters: list[tuple[LocalParameter, torch.nn.Parameter]],
        frozen: list[tuple[LocalParameter, torch.Tensor]],
    ) -> None:
        self.layout = layout
        self.parameters = parameters
        self.frozen = frozen

    def pieces(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Every block of this rank's parameters with the parameter that holds it, in the order of the model."""
        for local, parameter in self.parameters:
            for piece in local.pieces:
                yield piece, parameter


def bind(layout: Layout, chunks: Sequence[torch.nn.Module]) -> Bound:
    """Finds the layout's parameters in the model chunks of this rank (bare or wrapped in DDP).

    Raises ValueError that names every parameter missing from the layout, every parameter missing from the model,
    every shape that differs, and every chunk whose decoder layers are not those of the layout.
    """
    if len(chunks) != layout.parallel.vpp:
        raise ValueError(f"the model has {len(chunks)} chunks, but the layout has {layout.parallel.vpp}")
    faults = _layer_faults(layout, [bare(chunk) for chunk in chunks])
    parameters = _tie(layout.parameters, [dict(bare(chunk).named_parameters()) for chunk in chunks], faults)
    frozen = _tie(layout.frozen, [_buffers(bare(chunk)) for chunk in chunks], faults)
    if faults:
        shown = "\n  ".join(faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else []))
        raise ValueError(
            f"family {layout.family.name} does not fit the model on rank {layout.rank}:\n  {shown}"
        )
    return Bound(layout, parameters, frozen)


def _tie[T: torch.Tensor](
    wanted: Sequence[LocalParameter], real: Sequence[dict[str, T]], faults: list[str]
) -> list[tuple[LocalParameter, T]]:
    """Pairs each wanted parameter with its tensor in `real` (for each chunk, tensors by name).

    Everything that does not fit is added to `faults`.
    """
    found = []
    for local in wanted:
        name = next((n for n in local.names if n in real[local.chunk]), None)
        if name is None:
            faults.append(f"the model has no {' or '.join(local.names)} in chunk {local.chunk}")
            continue
        tensor = real[local.chunk].pop(name)
        if tuple(tensor.shape) != local.shape:
            faults.append(f"{name} is {tuple(tensor.shape)} in the model, {local.shape} in the table")
        found.append((local, tensor))
    for chunk, left in enumerate(real):
        faults += [f"no rule covers {name} {tuple(p.shape)} of chunk {chunk}" for name, p in left.items()]
    return found


def _buffers(chunk: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that belong into a checkpoint, by name, without Transformer Engine's own `_extra_state`."""
    kept = chunk.state_dict(keep_vars=True)
    return {
        name: tensor
        for name, tensor in chunk.named_buffers()
        if name in kept and not name.endswith("_extra_state")
    }


def bare(module: torch.nn.Module) -> torch.nn.Module:
    """The model inside Megatron's DDP and mixed-precision wrappers; each wrapper holds it as `module`."""
    while isinstance(inner := getattr(module, "module", None), torch.nn.Module):
        module = inner
    return module


def _layer_faults(layout: Layout, chunks: Sequence[torch.nn.Module]) -> list[str]:
    expected = layout.parallel.stage_layers(layout.family.num_layers(layout.config))[layout.place.pp]
    faults = []
    for number, (chunk, indices) in enumerate(zip(chunks, expected, strict=True)):
        layers = (module for name, module in chunk.named_modules() if _LAYER.fullmatch(name))
        actual = [int(layer.layer_number) - 1 for layer in layers if hasattr(layer, "layer_number")]
        if actual and actual != list(indices):
            faults.append(f"chunk {number} holds decoder layers {actual}, the layout says {list(indices)}")
    return faults
