"""A trainer's weights in an engine's format, each tensor on one rank: what blocks for such an engine are cut from.

Each rank converts the whole tensors that it owns (`whole_share`), bit for bit as `verst convert` does. What is not
quantised stays where it is.

Takes memory on each rank: its share of the engine's quantised tensors, and while it converts a bucket of whole ones.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist

from verst.sync.layout.binding import Bound
from verst.sync.layout.blocks import Blocks, BlockWriter, held_blocks, joined
from verst.sync.links.engine_format import EngineFormat
from verst.sync.links.gather import whole_tensors
from verst.sync.links.whole_share import WholeShare


class ConvertedShare:
    """One rank's part. Construction and `convert` are collective over `group`, whose ranks are the trainer's."""

    def __init__(
        self,
        bound: Bound,
        format: EngineFormat,
        bucket_bytes: int,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`dtype` is the model's, which whole tensors have before they are converted.

        Raises ValueError when a tensor cannot be had in the format.
        """
        self._format = format
        taken = [name for name in whole_tensors(bound.layout) if name in format.taken]
        self._whole = WholeShare(bound, format.grouped(taken), bucket_bytes, dtype, group)
        kept, parameters = held_blocks(bound.parameters, but=format.taken)
        self._made: dict[str, torch.Tensor] = {}
        made, memory = self._make_room()
        self.blocks: Blocks = joined(kept, made)
        self.parameters: list[torch.Tensor] = parameters + memory

    @property
    def nbytes(self) -> int:
        """Of memory for what is converted."""
        return sum(tensor.nbytes for tensor in self._made.values())

    def convert(self) -> None:
        """Fills `parameters` with what the trainer's weights are in the engine's format now.

        Raises ValueError for an infinity or a NaN, naming the tensor.
        """
        for names, whole in self._whole.buckets():
            made, tensors = self._format.start().feed(names, whole)
            torch._foreach_copy_([self._made[name] for name in made], tensors)
        if self._whole.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # links send from threads with streams of their own

    def _make_room(self) -> tuple[Blocks, list[torch.Tensor]]:
        """The table of the tensors that this rank makes, and their memory: one tensor for each dtype."""
        derived = [
            made
            for name, shape in self._whole.shapes.items()
            for made in self._format.format.derived(name, shape)
        ]
        sizes: dict[torch.dtype, int] = defaultdict(int)
        for made in derived:
            sizes[made.dtype] += torch.Size(made.shape).numel()
        device = self._whole.device
        memory = {dtype: torch.zeros(n, dtype=dtype, device=device) for dtype, n in sizes.items()}
        number = {dtype: i for i, dtype in enumerate(memory)}
        writer, used = BlockWriter(), dict.fromkeys(memory, 0)
        for made in derived:
            length = torch.Size(made.shape).numel()
            view = memory[made.dtype].narrow(0, used[made.dtype], length).view(made.shape)
            used[made.dtype] += length
            self._made[made.name] = view
            writer.add(made.name, made.shape, (0,) * len(made.shape), number[made.dtype], view)
        return writer.blocks(list(memory)), list(memory.values())
