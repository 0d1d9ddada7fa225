"""Replays sparse attention's choices in one rank's model, as `RoutingReplay` does for experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.model.replayed_selection import Comparison, ReplayedSelection, SelectionCounts
from verst.runtime.trainer.model.sparse_attention import SparseAttention, choosing_layers
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.share.selection import SelectionShare
from verst.sync.replay.selection import sizes, unpack


class SelectionReplay:
    """The replay of sparse attention in one rank's model.

    Call `load` before each chunk's forward pass, and `forget_choices` (`model/sparse_attention.py`) after
    each pass over the micro-batches.
    """

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        config: TransformerConfig,
        parallel: Parallel,
        multiple: int,
    ) -> None:
        """Lengths of sequences are padded to multiples of `multiple`."""
        assert config.dsa_indexer_topk is not None
        self._parallel = parallel
        self._device = parallel.device
        self._counts = SelectionCounts(parallel.device)
        rows = {number: row for row, number in enumerate(choosing_layers(config))}
        self._layers: dict[torch.nn.Module, list[tuple[ReplayedSelection, int]]] = {}
        for chunk in chunks:
            self._layers[chunk] = []
            for module in chunk.modules():
                if isinstance(module, SparseAttention):
                    module.selection.counts = self._counts
                    self._layers[chunk].append((module.selection, rows[module.source_layer]))
        mine = sorted({row for layers in self._layers.values() for _, row in layers})
        self._columns = {row: column for column, row in enumerate(mine)}
        self.share = SelectionShare(
            tuple(mine), len(rows), config.dsa_indexer_topk, multiple, parallel.cp_rank, parallel.cp_size
        )
        self._recorded: dict[int, dict[ReplayedSelection, Tensor]] = {}  # by `Batch.key`
        self._compared: dict[int, Comparison] = {}  # by `Batch.key`

    def load(self, chunk: torch.nn.Module, batch: Batch, mode: Literal["replay", "record", "free"]) -> None:
        """Gives this chunk's layers the choices of the micro-batch that the chunk processes next."""
        recorded = self._recorded.get(batch.key)
        here = None
        if mode == "replay" and recorded is None and batch.selected is not None:
            here = batch.selected.to(self._device, non_blocking=True)
        for selection, row in self._layers[chunk]:
            if mode == "record":
                selection.record(self._recorded.setdefault(batch.key, {}))
            elif mode == "replay" and recorded is not None:
                selection.give(partial(recorded.__getitem__, selection))
            elif here is not None:
                positions = partial(self._positions, batch, here, self._columns[row])
                selection.give(positions, self._compared.get(batch.key))
            else:
                selection.choose()

    def _positions(self, batch: Batch, here: Tensor, column: int) -> Tensor:
        """Returns one layer's choices, int32 [1, t, K]: positions in the token's own sequence.

        Padding and the last tokens of samples attend to the first positions; nothing depends on them.
        """
        top_k = self.share.top_k
        every = torch.arange(top_k, device=self._device, dtype=torch.int32)
        found = torch.where(every <= batch.position_ids[0, :, None], every, -1)
        mine, start = self.share.tokens(batch.lengths), 0
        for row, positions in enumerate(self.share.places(batch.lengths)):
            count = int(sizes(positions, top_k).sum())
            entries = here[start + column * count : start + (column + 1) * count]
            known = np.flatnonzero((mine.rows == row) & (mine.positions < batch.lengths[row] - 1))
            found[torch.from_numpy(known).to(self._device)] = unpack(entries, positions, top_k)
            start += len(self._columns) * count
        return found[None]

    def forget_recorded(self) -> None:
        """Drops the recorded choices."""
        self._recorded.clear()

    def begin_step(self, probed: Sequence[Batch]) -> None:
        """Resets all counts. In `probed` micro-batches, given choices are compared with the indexers' own."""
        self._counts.clear()
        self._compared = {batch.key: self._comparison(batch) for batch in probed}

    def _comparison(self, batch: Batch) -> Comparison:
        mine = self.share.tokens(batch.lengths)
        last = np.array([*batch.lengths, 0])[mine.rows] - 1
        tokens = (mine.positions >= self.share.top_k) & (mine.positions < last)
        known = torch.from_numpy(tokens[None]).to(self._device)
        return Comparison(known, torch.zeros_like(known))

    def metrics(self, world_sum: Callable[[float], float]) -> dict[str, float]:
        """Returns the step's metrics of replay, equal on every rank. Collective over the world.

        `selection_replayed`, `_recomputed` and `_wrong` count tokens times layers, including padding, that
        were given a choice. `selection_would_differ` and `selection_tokens_differ` are shares of the compared
        positions and tokens; they are missing when nothing was compared.
        """
        replayed, recomputed, wrong, compared, missing = self._counts.take()
        found = {
            "selection_replayed": world_sum(replayed),
            "selection_recomputed": world_sum(recomputed),
            "selection_wrong": world_sum(wrong),
        }
        positions = world_sum(compared)
        if not positions:
            return found
        differing, tokens = self._tokens_that_differ()
        return found | {
            "selection_would_differ": world_sum(missing) / positions,
            "selection_tokens_differ": world_sum(differing) / world_sum(tokens),
        }

    def _tokens_that_differ(self) -> tuple[float, float]:
        """Counts the compared tokens for which some layer of any stage would have chosen another set.

        Returns that count and the number of compared tokens. Returns 0, 0 on all but one of the ranks that
        have the same tokens. Collective over the pipeline.
        """
        from megatron.core import parallel_state as mpu

        differs = torch.cat([one.differs.flatten() for one in self._compared.values()]).to(torch.uint8)
        dist.all_reduce(differs, op=dist.ReduceOp.MAX, group=mpu.get_pipeline_model_parallel_group())
        if not self._parallel.is_last_stage or self._parallel.tp_rank:
            return 0.0, 0.0
        return float(differs.sum()), float(sum(one.tokens.sum() for one in self._compared.values()))
