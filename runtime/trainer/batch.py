"""A micro-batch's samples as padded tensors: this context-parallel rank's share of them.

Sequences are padded on the right to one length. With context parallelism the length is cut into 2c chunks and
rank r gets chunks r and 2c-1-r (see `attention.py`). What the loss needs is flat: one entry for each position
whose next token counts, so that logits are computed there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verst.runtime.sample import Sample


@dataclass(frozen=True)
class Weighting:
    """What the step plan decided about one sample."""

    advantage: float
    token_weight: float


@dataclass(frozen=True)
class Batch:
    """b sequences of s tokens on this context-parallel rank, and n >= 1 positions at which to predict.

    A rank without such a position predicts at position 0 with weight 0: the model must run all the same.
    """

    tokens: Tensor  # int64 [b, s]
    position_ids: Tensor  # int64 [b, s], within the sequence
    positions: Tensor  # int64 [n], into [s, b] flattened
    labels: Tensor  # int64 [n], the token after each position
    weights: Tensor  # float32 [n], of the token's loss; 0 where there is nothing to train
    advantages: Tensor  # float32 [n]
    rollout_logprobs: Tensor  # float32 [n], of the label under the rollout policy
    versions: Tensor  # int64 [n], the weight version that generated the label
    places: np.ndarray  # int64 [n, 2]: which sample, which of its response tokens; -1 for the stand-in
    real_tokens: int  # over all context-parallel ranks, without padding
    names: tuple[tuple[int, int], ...] = ()  # (group, index) of each of the b sequences
    routing: Tensor | None = None  # int64 [b, s, L, K], every token routed somewhere
    routing_known: Tensor | None = None  # bool [b, s], where the engine's choice is known
    old_logprobs: Tensor | None = None  # float32 [n]
    reference_logprobs: Tensor | None = None  # float32 [n]


@dataclass(frozen=True)
class Collator:
    """Turns samples into this rank's `Batch`."""

    cp_rank: int
    cp_size: int
    multiple: int  # padded lengths are multiples of it
    device: torch.device
    moe_layers: int = 0
    num_experts: int = 0
    topk: int = 0

    def __call__(
        self,
        samples: Sequence[Sample],
        weightings: Sequence[Weighting] | None,
        padded_length: int,
        *,
        replay: bool = False,
    ) -> Batch:
        """With `weightings` the trained tokens are predicted, without them every response token.

        Raises ValueError when a sample is longer than `padded_length`, or `replay` is asked for and a sample
        has no routing or one of another shape than the model's.
        """
        length = -(-padded_length // self.multiple) * self.multiple
        rows = max(1, len(samples))
        tokens = np.zeros((rows, length), np.int64)
        chosen: list[_Chosen] = []
        for row, sample in enumerate(samples):
            if sample.length > length:
                raise ValueError(
                    f"{_name(sample)} has {sample.length} tokens, its micro-batch is {length} wide"
                )
            tokens[row, : sample.length] = np.concatenate([sample.prompt_ids, sample.response_ids])
            chosen.append(_choose(row, sample, weightings[row] if weightings else None))
        mine = self._mine(length)
        flat = self._keep_mine(chosen, mine, rows, length)
        routing, known = self._routing(samples, rows, length, mine) if replay else (None, None)
        positions = np.broadcast_to(mine, (rows, len(mine)))
        return Batch(
            tokens=self._tensor(tokens[:, mine]),
            position_ids=self._tensor(positions),
            positions=self._tensor(flat.position),
            labels=self._tensor(flat.label),
            weights=self._tensor(flat.weight),
            advantages=self._tensor(flat.advantage),
            rollout_logprobs=self._tensor(flat.rollout_logprob),
            versions=self._tensor(flat.version),
            places=flat.place,
            real_tokens=sum(s.length for s in samples),
            names=tuple((s.group, s.index) for s in samples),
            routing=routing,
            routing_known=known,
        )

    def _mine(self, length: int) -> np.ndarray:
        """The positions of a sequence that this context-parallel rank holds, in its order."""
        chunks = np.arange(length).reshape(2 * self.cp_size, -1) if self.cp_size > 1 else None
        if chunks is None:
            return np.arange(length)
        return np.concatenate([chunks[self.cp_rank], chunks[2 * self.cp_size - 1 - self.cp_rank]])

    def _keep_mine(self, chosen: list[_Chosen], mine: np.ndarray, rows: int, length: int) -> _Chosen:
        """This rank's choices, with positions in its own [s, b] order."""
        local = np.full(length, -1, np.int64)
        local[mine] = np.arange(len(mine))
        merged = _Chosen.join(chosen)
        held = local[merged.position] >= 0
        merged = merged.where(held)
        if not len(merged.position):
            return _Chosen.stand_in()
        merged.position = local[merged.position] * rows + merged.place[:, 0]
        return merged

    def _routing(
        self, samples: Sequence[Sample], rows: int, length: int, mine: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Padding and last tokens go to some experts, evenly: nothing depends on what comes out there."""
        spread = np.arange(length)[:, None] + np.arange(self.topk)
        routing = np.broadcast_to(
            (spread % self.num_experts)[None, :, None, :], (rows, length, self.moe_layers, self.topk)
        ).astype(np.int64)
        known = np.zeros((rows, length), bool)
        for row, sample in enumerate(samples):
            if sample.routing is None:
                raise ValueError(f"{_name(sample)} carries no routing, and algorithm.routing_replay is on")
            if sample.routing.shape[1:] != (self.moe_layers, self.topk):
                raise ValueError(
                    f"{_name(sample)} carries routing of {sample.routing.shape[1:]} layers and experts per "
                    f"token; the model has {(self.moe_layers, self.topk)}"
                )
            routing[row, : sample.length - 1] = sample.routing
            known[row, : sample.length - 1] = True
        return self._tensor(routing[:, mine]), self._tensor(known[:, mine])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)


@dataclass
class _Chosen:
    """Positions to predict at, column by column."""

    position: np.ndarray  # in the whole sequence
    label: np.ndarray
    weight: np.ndarray
    advantage: np.ndarray
    rollout_logprob: np.ndarray
    version: np.ndarray
    place: np.ndarray

    @classmethod
    def join(cls, parts: list[_Chosen]) -> _Chosen:
        if not parts:
            return cls.stand_in().where(np.zeros(1, bool))
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def stand_in(cls) -> _Chosen:
        zero, none = np.zeros(1, np.int64), np.zeros(1, np.float32)
        return cls(zero, zero, none, none, none, zero, np.full((1, 2), -1, np.int64))

    def where(self, mask: np.ndarray) -> _Chosen:
        return _Chosen(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


def _choose(row: int, sample: Sample, weighting: Weighting | None) -> _Chosen:
    """Response token i is predicted at position P - 1 + i."""
    response = np.arange(len(sample.response_ids))
    if weighting is not None:
        response = response[sample.loss_mask.astype(bool)]
    n = len(response)
    return _Chosen(
        position=len(sample.prompt_ids) - 1 + response,
        label=sample.response_ids[response].astype(np.int64),
        weight=np.full(n, weighting.token_weight if weighting else 0.0, np.float32),
        advantage=np.full(n, weighting.advantage if weighting else 0.0, np.float32),
        rollout_logprob=sample.logprobs[response],
        version=sample.weight_versions[response].astype(np.int64),
        place=np.stack([np.full(n, row, np.int64), response], axis=1),
    )


def _name(sample: Sample) -> str:
    return f"sample {sample.index} of group {sample.group}"
