"""The trainer's weights in a quantised engine's format, each tensor on one rank: the source of that engine's blocks.

Each rank converts the whole tensors that it owns (`whole_share.py`), bit for bit as `verst convert` does. Tensors that
are not quantised stay where they are.

Each rank needs memory for its share of the engine's quantised tensors, and during the conversion for a bucket of whole
tensors.
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
    """One rank's share. Construction and `convert` are collective over `group`, whose ranks are the trainer's."""

    def __init__(
        self,
        bound: Bound,
        format: EngineFormat,
        bucket_bytes: int,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`dtype` is the model's: the dtype of whole tensors before they are converted.

        Raises ValueError if a tensor does not fit the format.
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
        """Bytes of memory for the converted tensors."""
        return sum(tensor.nbytes for tensor in self._made.values())

    def convert(self) -> None:
        """Converts the trainer's current weights into the engine's format, into `parameters`.

        Raises ValueError that names the tensor if it holds an infinity or a NaN.
        """
        for names, whole in self._whole.buckets():
            made, tensors = self._format.start().feed(names, whole)
            torch._foreach_copy_([self._made[name] for name in made], tensors)
        if self._whole.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the links send from threads that use other streams

    def _make_room(self) -> tuple[Blocks, list[torch.Tensor]]:
        """Allocates memory for the tensors that this rank makes. Returns their table and the memory, one tensor for
        each dtype."""
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
