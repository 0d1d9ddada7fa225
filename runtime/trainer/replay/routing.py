"""Routing replay: the trainer's mixture-of-experts layers use experts that were chosen before.

The engine chose them (R3, arXiv:2510.11370), or the trainer itself in a pass before the step (R2,
arXiv:2507.18071).

Engine and trainer compute slightly different router logits. A token near a tie then goes to other experts,
and its log-probability differs by far more than rounding. With replay the earlier choice replaces top-k in
this rank's routers, for the tokens that they see. The gate's probabilities come from the trainer's own logits
at the given experts, so gradients reach the gate. A token whose experts are not known goes where the router
sends it, and is counted.

Megatron's routers ask a `RouterReplay` object for top-k. All of these objects in a process are in one list,
share one action, and need their indices set before each call. `ReplayedRouting` replaces that object in each
router, so models in one process share nothing. Autograd knows whether a call is a forward pass or a
recomputation. Each layer's backward passes come in the order of its forward passes, in an interleaved
pipeline schedule too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router_replay import RouterReplay
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.model.replayed_routing import FREE, PADDING, REPLAYED, ReplayedRouting
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.replay.entries import Entries, index_dtype, unpack
from verst.runtime.trainer.replay.selection import SelectionReplay
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.share.routing import Share
from verst.sync.replay.routing import UNKNOWN, entry_bytes


@dataclass
class ReplayCounts:
    """Counts over this rank's tokens and layers.

    A forward pass of one token through one layer counts once.
    """

    replayed: int = 0  # forward passes that were given experts
    recomputed: int = 0  # the same during recomputation
    wrong: int = 0  # of both, those where the layer used other experts. Anything but 0 is a defect
    would_differ: int = 0  # of `replayed`, those where the trainer's own top-k is another set
    # Forward passes of tokens whose experts are not known: at least the last token of each sample.
    free: int = 0


def moe_layer_indices(config: TransformerConfig) -> dict[int, int]:
    """Maps Megatron's layer numbers (from 1) to indices among the mixture-of-experts layers."""
    if config.num_moe_experts is None:
        return {}
    frequency = config.moe_layer_freq
    if isinstance(frequency, int):
        sparse = [i % frequency == 0 for i in range(config.num_layers)]
    else:
        sparse = [bool(x) for x in frequency]
    numbers = [i + 1 for i, is_sparse in enumerate(sparse) if is_sparse]
    return {number: place for place, number in enumerate(numbers)}


def routed_freely(replay: RoutingReplay | None) -> contextlib.AbstractContextManager[None]:
    """Inside the context, routers choose for themselves, as in `RoutingReplay.free`."""
    return replay.free() if replay is not None else contextlib.nullcontext()


class RoutingReplay:
    """The replay of one rank's model.

    Create it once. In each pass over the micro-batches call `start`, then `load` before each chunk's forward
    pass, and `finish` at the end.
    """

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        config: TransformerConfig,
        parallel: Parallel,
        multiple: int = 1,
    ) -> None:
        """Lengths of sequences are padded to multiples of `multiple`."""
        self.experts, self.topk = config.num_moe_experts or 0, config.moe_router_topk
        self.moe_layers = len(moe_layer_indices(config))
        self.entry = entry_bytes(self.experts, self.topk)
        self._parallel = parallel
        # The fields of ReplayCounts, in order.
        self._counts = torch.zeros(5, dtype=torch.int64, device=parallel.device)
        self._mode: Literal["replay", "record", "free"] = "replay"
        self._differing: dict[int, Tensor] = {}  # by `Batch.key`: bool [t], in the routers' order
        self._recorded: dict[int, dict[ReplayedRouting, Tensor]] = {}  # by `Batch.key`
        self._routers = {chunk: list(self._replace_routers(chunk, config)) for chunk in chunks}
        layers = sorted(place for routers in self._routers.values() for _, place in routers)
        self._columns = {place: column for column, place in enumerate(layers)}
        shards = parallel.tp_size if config.sequence_parallel else 1
        self.share = Share(
            tuple(layers),
            multiple,
            parallel.cp_rank,
            parallel.cp_size,
            parallel.tp_rank if shards > 1 else 0,
            shards,
            self.entry,
        )
        sparse = config.experimental_attention_variant == "dsa"
        self.selection = SelectionReplay(chunks, config, parallel, multiple) if sparse else None
        self._entries = Entries(parallel.device)

    def _replace_routers(
        self, chunk: torch.nn.Module, config: TransformerConfig
    ) -> Iterator[tuple[ReplayedRouting, int]]:
        places = moe_layer_indices(config)
        for module in chunk.modules():
            theirs = getattr(module, "router_replay", None)
            if theirs is None:
                continue
            # Megatron added it to a list of the whole process, where calls for another model would find it.
            everybody = RouterReplay.global_router_replay_instances
            everybody[:] = [one for one in everybody if one is not theirs]
            router: Any = module
            ours = ReplayedRouting(self._counts, self.experts, config.recompute_granularity is not None)
            router.router_replay = ours
            router.register_forward_hook(ours.check)
            yield ours, places[router.layer_number]

    @property
    def splits_tokens(self) -> bool:
        """Whether each tensor-parallel rank routes only a part of the tokens."""
        return self.share.tp_size > 1

    @contextlib.contextmanager
    def free(self) -> Iterator[None]:
        """Inside the context, every router chooses for itself: for another model's weights, or to measure."""
        with self._as("free"):
            yield

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside the context, every router chooses for itself; later passes replay what it chooses (R2)."""
        self._forget_recorded()
        with self._as("record"):
            yield

    @contextlib.contextmanager
    def _as(self, mode: Literal["record", "free"]) -> Iterator[None]:
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def start(self, batches: Sequence[Batch]) -> None:
        """Announces a pass's micro-batches in order, so that their entries are copied ahead of use."""
        self._entries.start(batches if self._mode == "replay" else [])

    def load(self, chunk: torch.nn.Module, batch: Batch) -> None:
        """Gives this chunk's routers the experts of the micro-batch that the chunk processes next."""
        if self.selection is not None:
            self.selection.load(chunk, batch, self._mode)
        routers = self._routers[chunk]
        if self._mode == "record":
            kept = self._recorded.setdefault(batch.key, {})
            for router, _ in routers:
                router.record(kept)
            return
        if self._mode == "replay" and batch.key in self._recorded:
            fate = self._fate(batch, unrouted=REPLAYED)
            for router, _ in routers:
                router.give(self._recorded[batch.key][router], fate, self._differs(batch))
        elif self._mode == "replay" and batch.routing is not None:
            if routers:
                self._give_entries(routers, batch, last=chunk is list(self._routers)[-1])
        else:
            for router, _ in routers:
                router.forget()

    def _give_entries(self, routers: Sequence[tuple[ReplayedRouting, int]], batch: Batch, last: bool) -> None:
        assert batch.routed is not None
        entries = self._entries.take(batch, last)
        columns = [self._columns[place] for _, place in routers]
        mine = entries if len(columns) == entries.shape[1] else entries[:, columns]
        chosen_rLK = unpack(mine, self.experts, self.topk)
        unknown_rL = (mine == UNKNOWN).all(-1)
        fate_t = self._fate(batch, unrouted=FREE)
        spread_tK = self._spread(len(fate_t))
        for at, (router, _) in enumerate(routers):
            indices_tK = spread_tK.clone()
            indices_tK[batch.routed] = chosen_rLK[:, at]
            fate = fate_t.clone()
            fate[batch.routed] = torch.where(unknown_rL[:, at], FREE, REPLAYED).to(fate.dtype)
            router.give(indices_tK, fate, self._differs(batch))

    def _fate(self, batch: Batch, unrouted: int) -> Tensor:
        """Returns each token's fate, uint8 [t]: padding, replayed, or `unrouted` for the last token of a
        sample."""
        assert batch.routed is not None
        assert batch.unrouted is not None
        tokens = batch.tokens.numel() // self.share.tp_size
        fate = torch.full((tokens,), PADDING, dtype=torch.uint8, device=self._parallel.device)
        fate[batch.routed] = REPLAYED
        fate[batch.unrouted] = unrouted
        return fate

    def _spread(self, tokens: int) -> Tensor:
        """Experts for padding [t, K], evenly spread. Nothing depends on the output there."""
        device = self._parallel.device
        spread = torch.arange(tokens, device=device)[:, None] + torch.arange(self.topk, device=device)
        return (spread % self.experts).to(index_dtype(self.experts))

    def _differs(self, batch: Batch) -> Tensor:
        if batch.key not in self._differing:
            tokens = batch.tokens.numel() // self.share.tp_size
            self._differing[batch.key] = torch.zeros(tokens, dtype=torch.bool, device=self._parallel.device)
        return self._differing[batch.key]

    def differing(self, batch: Batch) -> Tensor:
        """Returns float32 [n]: 1 where one of this rank's routers would route the token otherwise.

        There is one value for each predicted position.
        """
        tokens = batch.tokens.numel()
        part = tokens // self.share.tp_size
        whole = torch.zeros(tokens, device=self._parallel.device)
        if batch.key in self._differing:
            mine = slice(self.share.tp_rank * part, (self.share.tp_rank + 1) * part)
            whole[mine] = self._differing[batch.key].float()
        return whole[batch.positions]

    def tokens_that_differ(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Counts the tokens of this rank's routers that some layer of any stage would have routed otherwise.

        Returns that count and the number of tokens. Returns 0, 0 on all but one of the ranks that have the
        same tokens. Collective over the pipeline.
        """
        from megatron.core import parallel_state as mpu

        flags = [self._differs(batch)[batch.routed] for batch in batches if batch.routed is not None]
        if not flags:
            return 0.0, 0.0
        some = torch.cat(flags).to(torch.uint8)
        dist.all_reduce(some, op=dist.ReduceOp.MAX, group=mpu.get_pipeline_model_parallel_group())
        # Without sequence parallelism tensor-parallel ranks see the same tokens.
        counts = self._parallel.is_last_stage and (self.splits_tokens or self._parallel.tp_rank == 0)
        return (float(some.sum()), float(len(some))) if counts else (0.0, 0.0)

    def finish(self) -> None:
        """Drops the given experts after a pass.

        Without recomputation nothing takes them, and the queues would grow for ever.
        """
        for routers in self._routers.values():
            for router, _ in routers:
                router.forget()

    def _forget_recorded(self) -> None:
        self._recorded.clear()
        if self.selection is not None:
            self.selection.forget_recorded()

    def begin_step(self, probed: Sequence[Batch] = ()) -> None:
        """Resets all counts before the trained pass.

        In the `probed` micro-batches it also measures what costs extra time.
        """
        self._counts.zero_()
        self._differing.clear()
        if self.selection is not None:
            self.selection.begin_step(probed)

    def metrics(self, batches: Sequence[Batch], world_sum: Callable[[float], float]) -> dict[str, float]:
        """Returns the step's metrics of replay, equal on every rank. Collective over the world."""
        differing, tokens = self.tokens_that_differ(batches)
        counts = dataclasses.asdict(self.take_counts())
        sums = {f"routing_{name}": world_sum(count) for name, count in counts.items()}
        if self.selection is not None:
            sums |= self.selection.metrics(world_sum)
        sums["routing_would_differ"] /= max(1.0, sums["routing_replayed"])
        sums["routing_tokens_differ"] = world_sum(differing) / max(1.0, world_sum(tokens))
        return sums

    def take_counts(self) -> ReplayCounts:
        """Returns the counts of the trained pass, and drops the experts that were recorded for it."""
        self._forget_recorded()
        return ReplayCounts(*self._counts.tolist())
