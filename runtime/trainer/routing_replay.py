"""Routing replay (R3): the trainer's mixture-of-experts layers use the experts that the engine chose.

The two compute slightly different router logits, so a token near a tie goes to other experts, and its
log-probability differs by far more than rounding (arXiv:2510.11370). Here the engine's choice replaces top-k in
this rank's routers, for its own tokens: the gate's probabilities are computed from the trainer's own logits at the
given experts, so gradients reach the gate.

Megatron's `RouterReplay` holds, per router, the indices of the coming forward pass and a queue of those that
recomputation will need; whether a call is a forward pass or a recomputation is a global setting, which an
interleaved pipeline schedule cannot keep right. `ReplayedRouting` asks autograd instead: inside a backward pass it
takes the oldest entry of the queue, since each layer's backward passes come in the order of its forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.moe.router_replay import RouterReplay, RouterReplayAction
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.batch import Batch
from verst.runtime.trainer.parallel import Parallel


@dataclass
class ReplayCounts:
    """Counted over this rank's tokens and layers; one token in one layer counts once for each forward pass."""

    replayed: int = 0  # forward passes with the engine's experts
    recomputed: int = 0  # the same during recomputation
    wrong: int = 0  # of both: the layer used other experts than told. Anything but 0 is a defect
    would_differ: int = 0  # of `replayed`: the trainer's own top-k is another set


def moe_layer_indices(config: TransformerConfig) -> dict[int, int]:
    """Megatron's layer number (from 1) -> place among the mixture-of-experts layers."""
    if config.num_moe_experts is None:
        return {}
    frequency = config.moe_layer_freq
    if isinstance(frequency, int):
        sparse = [i % frequency == 0 for i in range(config.num_layers)]
    else:
        sparse = [bool(x) for x in frequency]
    numbers = [i + 1 for i, is_sparse in enumerate(sparse) if is_sparse]
    return {number: place for place, number in enumerate(numbers)}


class RoutingReplay:
    """The replay of one rank: build it once, `load` before each chunk's forward pass, `finish` after each pass
    over the micro-batches."""

    def __init__(
        self, chunks: Sequence[torch.nn.Module], config: TransformerConfig, parallel: Parallel
    ) -> None:
        self._counts = torch.zeros(4, dtype=torch.int64, device=parallel.device)  # the fields of ReplayCounts
        self._tp = (parallel.tp_rank, parallel.tp_size) if config.sequence_parallel else (0, 1)
        self._watched: dict[int, Tensor] = {}  # by a batch's identity, bool [b, s]
        places = moe_layer_indices(config)
        RouterReplay.clear_global_router_replay_instances()
        self._routers: dict[torch.nn.Module, list[tuple[ReplayedRouting, int]]] = {}
        for chunk in chunks:
            self._routers[chunk] = []
            for module in chunk.modules():
                if getattr(module, "router_replay", None) is not None:
                    router: Any = module
                    router.router_replay = ReplayedRouting(self._counts)
                    router.register_forward_hook(router.router_replay.check)
                    self._routers[chunk].append((router.router_replay, places[router.layer_number]))

    @property
    def splits_tokens(self) -> bool:
        """Whether each tensor-parallel rank routes a part of the tokens."""
        return self._tp[1] > 1

    def watch(self, batches: Sequence[Batch]) -> None:
        """From now on notes for these micro-batches, token by token, where this rank's routers would differ."""
        self._watched = {id(b): torch.zeros_like(b.tokens, dtype=torch.bool) for b in batches}

    def watched(self, batch: Batch) -> Tensor:
        """float32 [n]: 1 where a router of this rank would route the token at a predicted position otherwise."""
        return self._watched[id(batch)].transpose(0, 1).flatten()[batch.positions].float()

    def load(self, chunk: torch.nn.Module, batch: Batch) -> None:
        """Gives this chunk's routers the experts of the micro-batch that it is about to process."""
        if batch.routing is None or batch.routing_known is None:
            return
        rank, size = self._tp
        share = batch.tokens.shape[1] // size
        mine = slice(rank * share, (rank + 1) * share)
        routing = batch.routing[:, mine].transpose(0, 1).flatten(0, 1)  # [s * b, L, K], as routers see tokens
        known = batch.routing_known[:, mine].transpose(0, 1).flatten()
        watched = self._watched.get(id(batch))
        for router, place in self._routers[chunk]:
            router.give(routing[:, place], known)
            router.differing = None if watched is None else watched[:, mine]

    def finish(self) -> None:
        """Forgets what was given; without recomputation the queues would grow for ever."""
        for routers in self._routers.values():
            for router, _ in routers:
                router.clear_indices()

    def take_counts(self) -> ReplayCounts:
        """The counts since the last call."""
        counts = ReplayCounts(*self._counts.tolist())
        self._counts.zero_()
        return counts


class ReplayedRouting(RouterReplay):
    """Megatron's replay of one router, with the action decided call by call, and counting."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self._counts = counts
        self._known: list[Tensor] = []  # beside Megatron's queue of indices
        self._used: tuple[Tensor, Tensor] | None = None  # indices and known of the call in progress
        # bool [b, s], a view: set where a call's own top-k is another set
        self.differing: Tensor | None = None

    def give(self, indices: Tensor, known: Tensor) -> None:
        """`indices` int64 [tokens, K], `known` bool [tokens]: where to count."""
        self.set_target_indices(indices)
        self._known.append(known)

    def clear_indices(self) -> None:
        super().clear_indices()
        self._known.clear()
        self._used = None

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Megatron's hook: scores [tokens, experts] -> their values and indices [tokens, K]."""
        assert default_compute_topk is not None
        if self.target_topk_idx is None:
            return default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        recomputing = torch._C._current_graph_task_id() != -1
        indices = self.replay_backward_list[0] if recomputing else self.target_topk_idx
        known = self._known.pop(0) if recomputing else self._known[-1]
        self._used = (indices, known)
        if recomputing:
            self._counts[1] += known.sum()
            self.set_router_replay_action(RouterReplayAction.REPLAY_BACKWARD)
        else:
            with torch.no_grad():
                free = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)[1]
                differs = (free.sort(1).values != indices.sort(1).values).any(1)
            self._counts[0] += known.sum()
            self._counts[3] += (differs & known).sum()
            if self.differing is not None:
                self.differing |= (differs & known).unflatten(0, (-1, len(self.differing))).T
            self.set_router_replay_action(RouterReplayAction.REPLAY_FORWARD)
        return super().get_replay_topk(scores, topk, num_groups, group_topk, default_compute_topk)

    def check(self, router: torch.nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        """Forward hook of the router: does the map it returns, bool [tokens, experts], name the given experts?"""
        if self._used is None:
            return
        indices, known = self._used
        chosen = output[1].flatten(0, -2)
        right = chosen.gather(1, indices).all(1) & (chosen.sum(1) == indices.shape[1])
        self._counts[2] += (~right & known).sum()
        self._used = None
