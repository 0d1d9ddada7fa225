"""Weights that a run keeps fixed beside the policy, such as the reference: they score tokens in a forward pass.

Where the policy stage comes first the reference is `model.path`, which every start of the run reads anyway. Else its
weights exist nowhere else, so checkpoints hold them (`checkpoint/`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch


class FrozenWeights:
    """A copy of this rank's parameters under a name, in the model's dtype. There is none before `take`."""

    def __init__(self, name: str, chunks: Sequence[torch.nn.Module]) -> None:
        self.name = name
        self.parameters = [p for chunk in chunks for p in chunk.parameters()]
        self.copies: list[torch.Tensor] = []  # of `parameters`, in order

    @property
    def taken(self) -> bool:
        """Whether there is a copy."""
        return bool(self.copies)

    @torch.no_grad()
    def take(self) -> None:
        """Copies the present weights, into the room of an earlier copy if there is one."""
        if not self.copies:
            self.copies = [torch.empty_like(p) for p in self.parameters]
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            copy.copy_(parameter)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the context the model has these weights; afterwards it has its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            # Parameters are views of Megatron's buffers, so their contents are swapped, not the tensors.
            held = parameter.clone()
            parameter.copy_(copy)
            copy.copy_(held)
