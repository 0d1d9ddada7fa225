"""Replay of sparse attention's choices in one rank's model: what `RoutingReplay` does for experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.batch import Batch
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.replayed_selection import ReplayedSelection
from verst.runtime.trainer.routing_share import zig_zag
from verst.runtime.trainer.selection_share import SelectionShare
from verst.runtime.trainer.sparse_attention import SparseAttention
from verst.sync.selection import sizes, unpack


class SelectionReplay:
    """`load` before each chunk's forward pass, `finish` after each pass over the micro-batches."""

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        config: TransformerConfig,
        parallel: Parallel,
        multiple: int,
    ) -> None:
        """`multiple`: padded lengths are multiples of it."""
        assert config.dsa_indexer_topk is not None
        self._device = parallel.device
        self._counts = torch.zeros(2, dtype=torch.int64, device=parallel.device)
        recomputes = config.recompute_granularity is not None
        self._layers: dict[torch.nn.Module, list[tuple[ReplayedSelection, int]]] = {}
        for chunk in chunks:
            self._layers[chunk] = []
            for module in chunk.modules():
                if isinstance(module, SparseAttention):
                    module.selection = ReplayedSelection(self._counts, recomputes)
                    self._layers[chunk].append((module.selection, module.layer_number - 1))
        layers = sorted(layer for mine in self._layers.values() for _, layer in mine)
        self._columns = {layer: column for column, layer in enumerate(layers)}
        self.share = SelectionShare(
            tuple(layers),
            config.num_layers,
            config.dsa_indexer_topk,
            multiple,
            parallel.cp_rank,
            parallel.cp_size,
        )
        self._recorded: dict[int, dict[ReplayedSelection, Tensor]] = {}  # by a batch's key

    def load(self, chunk: torch.nn.Module, batch: Batch, mode: Literal["replay", "record", "free"]) -> None:
        """Gives this chunk's layers the choices of the micro-batch that it is about to process."""
        recorded = self._recorded.get(batch.key)
        here = None
        if mode == "replay" and recorded is None and batch.selected is not None:
            here = batch.selected.to(self._device, non_blocking=True)
        for selection, layer in self._layers[chunk]:
            if mode == "record":
                selection.record(self._recorded.setdefault(batch.key, {}))
            elif mode == "replay" and recorded is not None:
                selection.give(partial(recorded.__getitem__, selection))
            elif here is not None:
                selection.give(partial(self._positions, batch, here, self._columns[layer]))
            else:
                selection.forget()

    def _positions(self, batch: Batch, here: Tensor, column: int) -> Tensor:
        """One layer's choices int32 [b, s, K]. Padding, and last tokens, which nothing depends on, attend to the first
        positions."""
        top_k, cp_size = self.share.top_k, self.share.cp_size
        rows, local = batch.tokens.shape
        mine = zig_zag(local * cp_size, self.share.cp_rank, cp_size)
        every = torch.arange(top_k, device=self._device, dtype=torch.int32)
        own = torch.from_numpy(mine).to(self._device)
        found = torch.where(every <= own[:, None], every, -1).repeat(rows, 1, 1)
        start = 0
        for row, length in enumerate(batch.lengths):
            known = np.flatnonzero(mine < length - 1)
            count = int(sizes(mine[known], top_k).sum())
            entries = here[start + column * count : start + (column + 1) * count]
            found[row, torch.from_numpy(known).to(self._device)] = unpack(entries, mine[known], top_k)
            start += len(self._columns) * count
        return found

    def finish(self) -> None:
        """Forgets what was given."""
        for layers in self._layers.values():
            for selection, _ in layers:
                selection.forget()

    def forget_recorded(self) -> None:
        """What was recorded is not replayed any more."""
        self._recorded.clear()

    def begin_step(self) -> None:
        """Counting starts anew."""
        self._counts.zero_()

    def counts(self) -> dict[str, int]:
        """Tokens times layers of this rank that attended to what was given, padding included."""
        replayed, recomputed = self._counts.tolist()
        return {"selection_replayed": replayed, "selection_recomputed": recomputed}
