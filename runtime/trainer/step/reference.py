"""The reference policy: the initial weights, swapped with the trained ones for a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch


class ReferenceWeights:
    """A copy of the parameters, taken when this is created, in the model's dtype."""

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        self._parameters = [p for chunk in chunks for p in chunk.parameters()]
        self.copies = [p.detach().clone() for p in self._parameters]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the context the model has the reference weights; afterwards it has its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, copy in zip(self._parameters, self.copies, strict=True):
            # Parameters are views of Megatron's buffers, so their contents are swapped, not the tensors.
            held = parameter.clone()
            parameter.copy_(copy)
            copy.copy_(held)
