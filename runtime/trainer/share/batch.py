"""Collates a micro-batch's samples into one row of packed sequences, this context-parallel rank's share of them.

Sequences stand one after another (`packing.py`). The loss's inputs are flat: they have one entry for each position
whose next token counts, and logits are computed at those positions alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verst.runtime.messages.sample import Sample
from verst.runtime.trainer.share.packing import Packed, pack, padded
from verst.runtime.trainer.share.routing import Share

_KEYS = itertools.count()


@dataclass(frozen=True)
class Weighting:
    """The step plan's decisions about one sample."""

    advantage: float
    weights: Sequence[float]  # of each trained token, in each term of the step
    tempered: bool = True  # predicted at the temperatures of its sampling, not at 1
    common_version: int | None = None  # tokens of later versions are of weights that this run no longer has


@dataclass(frozen=True)
class Batch:
    """Packed sequences with t tokens in all on this context-parallel rank, and n >= 1 positions at which to predict.

    A rank without any such position predicts at position 0 with weight 0, because the model must run on every
    rank.
    """

    tokens: Tensor  # int64 [1, t]
    position_ids: Tensor  # int64 [1, t], within the token's own sequence
    padding: Tensor  # bool [1, t]
    padded_lengths: tuple[int, ...]  # of the sequences, over all context-parallel ranks
    positions: Tensor  # int64 [n], indices into the t tokens
    # int64 [n], the token after each position; of a sample's last token itself, if that is scored.
    labels: Tensor
    weights: (
        Tensor  # float32 [terms, n], the token's weight in each term of the step; 0 where it takes no part
    )
    advantages: Tensor  # float32 [n]
    versions: Tensor  # int64 [n], the weight version that generated the label; -1: one of an abandoned life
    # float32 [n] each. "rollout_logprobs": log-probability of the label under the rollout policy. "temperature": what
    # the label was sampled at; 1 where the policy did not sample it. Scoring adds more (`step/scoring.py`).
    signals: Mapping[str, Tensor]
    tempered: bool  # whether any temperature is not 1
    places: np.ndarray  # int64 [n, 2]: the sample's row, the response token; -1 for the stand-in
    real_tokens: int  # over all context-parallel ranks, without padding
    names: tuple[tuple[int, int], ...] = ()  # (group, index) of each sample
    routing: Tensor | None = None  # uint8 [r, layers, entry] in host memory: the engine's experts
    # Indices into the tokens that this rank's routers see: the r tokens with entries, and the last token of
    # each sample, which the engine never routes. All others are padding.
    routed: Tensor | None = None  # int64 [r]
    unrouted: Tensor | None = None  # int64 [u]
    # uint8 [bytes] in host memory: the engine's choices of sparse attention (`share/selection.py`)
    selected: Tensor | None = None
    lengths: tuple[int, ...] = ()  # of the samples
    key: int = -1  # unique for each micro-batch; copies with more signals keep it

    @property
    def trained(self) -> Tensor:
        """Which tokens take part in any term, bool [n]."""
        return (self.weights > 0).any(0)

    def with_signal(self, name: str, values: Tensor) -> Batch:
        """A copy with one more signal, float32 [n]."""
        return dataclasses.replace(self, signals={**self.signals, name: values})

    def without_signals(self, names: Sequence[str]) -> Batch:
        """A copy without these signals."""
        return dataclasses.replace(self, signals={k: v for k, v in self.signals.items() if k not in names})

    def with_scores_of(self, scored: Batch) -> Batch:
        """A copy with all signals of the same micro-batch, which was scored under another plan's weights."""
        if self.names != scored.names:
            raise ValueError(f"the micro-batch of {self.names} was scored as {scored.names}")
        # A sample that no longer takes part is predicted at its temperatures nevertheless.
        return dataclasses.replace(self, signals=scored.signals, tempered=scored.tempered, key=scored.key)

    @property
    def temperature(self) -> Tensor | None:
        """What logits are divided by, float32 [n]; None where it is 1 throughout, which costs nothing."""
        return self.signals["temperature"] if self.tempered else None


@dataclass(frozen=True)
class Collator:
    """Turns samples into this rank's `Batch`."""

    cp_rank: int
    cp_size: int
    multiple: int  # lengths of sequences are padded to multiples of this
    device: torch.device
    share: Share | None = None  # the share of this rank's routers, where routing is replayed

    def __call__(
        self,
        samples: Sequence[Sample],
        weightings: Sequence[Weighting] | None,
        routing: Tensor | None = None,
        selected: Tensor | None = None,
        terms: int = 1,
        signals: Sequence[str] = (),
        scored: bool = False,
    ) -> Batch:
        """Collates the samples. With `weightings` the batch predicts the trained tokens, without them every
        response token. `terms`: the number of terms of the step. `signals`: those of the samples to take along.
        `scored`: the batch has one position for each sample, its last token, at which a reward model scores it.

        `routing` has the entries of this rank's share of the samples, `selected` its share of their sparse
        attention's choices.
        """
        lengths = [sample.length for sample in samples]
        widths = padded(lengths, self.multiple)
        starts = np.cumsum([0, *widths])
        tokens = np.zeros(starts[-1], np.int64)
        chosen = [_Chosen.none(terms, len(signals))]
        for row, sample in enumerate(samples):
            whole = np.concatenate([sample.prompt_ids, sample.response_ids])
            tokens[starts[row] : starts[row] + sample.length] = whole
            one = _choose(row, sample, weightings[row] if weightings else None, terms, signals, scored)
            chosen.append(one)
        mine = pack(lengths, self.multiple, self.cp_rank, self.cp_size)
        places = starts[mine.rows] + mine.positions  # of this rank's tokens among all
        flat = self._keep_mine(chosen, places, starts)
        routed, unrouted = self._routed(lengths) if self.share else (None, None)
        return Batch(
            tokens=self._tensor(tokens[places][None]),
            position_ids=self._tensor(mine.positions[None]),
            padding=self._tensor(_is_padding(mine, lengths)[None]),
            padded_lengths=tuple(widths),
            positions=self._tensor(flat.position),
            labels=self._tensor(flat.label),
            weights=self._tensor(flat.weights.T),
            advantages=self._tensor(flat.advantage),
            versions=self._tensor(flat.version),
            signals={
                "rollout_logprobs": self._tensor(flat.rollout_logprob),
                "temperature": self._tensor(flat.temperature),
                **{name: self._tensor(flat.signals[:, i]) for i, name in enumerate(signals)},
            },
            tempered=bool((flat.temperature != 1).any()),
            places=flat.place,
            real_tokens=sum(s.length for s in samples),
            names=tuple((s.group, s.index) for s in samples),
            routing=routing,
            routed=routed,
            unrouted=unrouted,
            selected=selected,
            lengths=tuple(s.length for s in samples),
            key=next(_KEYS),
        )

    def _keep_mine(self, chosen: list[_Chosen], places: np.ndarray, starts: np.ndarray) -> _Chosen:
        """Keeps the positions that this rank holds, and renumbers them in its own order."""
        local = np.full(starts[-1], -1, np.int64)
        local[places] = np.arange(len(places))
        merged = _Chosen.join(chosen)
        here = local[starts[merged.place[:, 0]] + merged.position]
        merged = merged.where(here >= 0)
        if not len(merged.position):
            return _Chosen.stand_in(merged.weights.shape[1], merged.signals.shape[1])
        merged.position = here[here >= 0]
        return merged

    def _routed(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns `Batch.routed` and `Batch.unrouted`, indices into the tokens that this rank's routers see."""
        assert self.share is not None
        seen = self.share.tokens(lengths)
        last = np.array([*lengths, 0])[seen.rows] - 1
        return (
            self._tensor(np.flatnonzero(seen.positions < last)),
            self._tensor(np.flatnonzero(seen.positions == last)),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)


@dataclass
class _Chosen:
    """Positions at which to predict, and what the loss needs there, as columns of equal length."""

    position: np.ndarray  # in its own sequence, until `_keep_mine` renumbers it
    label: np.ndarray
    weights: np.ndarray  # [positions, terms]
    advantage: np.ndarray
    rollout_logprob: np.ndarray
    version: np.ndarray
    temperature: np.ndarray
    place: np.ndarray
    signals: np.ndarray  # [positions, signals]

    @classmethod
    def join(cls, parts: list[_Chosen]) -> _Chosen:
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def stand_in(cls, terms: int, signals: int) -> _Chosen:
        zero, none = np.zeros(1, np.int64), np.zeros(1, np.float32)
        return cls(
            position=zero,
            label=zero,
            weights=np.zeros((1, terms), np.float32),
            advantage=none,
            rollout_logprob=none,
            version=zero,
            temperature=none + 1,
            place=np.full((1, 2), -1, np.int64),
            signals=np.zeros((1, signals), np.float32),
        )

    @classmethod
    def none(cls, terms: int, signals: int) -> _Chosen:
        return cls.stand_in(terms, signals).where(np.zeros(1, bool))

    def where(self, mask: np.ndarray) -> _Chosen:
        return _Chosen(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


def _choose(
    row: int, sample: Sample, weighting: Weighting | None, terms: int, signals: Sequence[str], scored: bool
) -> _Chosen:
    """Chooses a sample's positions: response token i is predicted at position P - 1 + i, and stands itself at P + i."""
    temperature = np.ones(len(sample.response_ids), np.float32)
    tempered = weighting is None or weighting.tempered
    if tempered and "temperature" in sample.signals:
        given = sample.signals["temperature"]
        temperature = np.where(given > 0, given, temperature)  # 0: text of others, predicted at 1
    response = np.arange(len(sample.response_ids))
    if scored:
        response = response[-1:]
    elif weighting is not None:
        response = response[sample.loss_mask.astype(bool)]
    n = len(response)
    version = sample.weight_versions[response].astype(np.int64)
    if weighting is not None and weighting.common_version is not None:
        version[version > weighting.common_version] = -1
    return _Chosen(
        position=len(sample.prompt_ids) - (0 if scored else 1) + response,
        label=sample.response_ids[response].astype(np.int64),
        weights=np.full((n, terms), weighting.weights if weighting else 0.0, np.float32),
        advantage=np.full(n, weighting.advantage if weighting else 0.0, np.float32),
        rollout_logprob=sample.logprobs[response],
        version=version,
        temperature=temperature[response],
        place=np.stack([np.full(n, row, np.int64), response], axis=1),
        signals=np.array([sample.signals[name][response] for name in signals], np.float32)
        .reshape(len(signals), n)
        .T,
    )


def _is_padding(tokens: Packed, lengths: Sequence[int]) -> np.ndarray:
    return tokens.positions >= np.array([*lengths, 0])[tokens.rows]
