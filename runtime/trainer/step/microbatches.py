"""Collates this rank's micro-batches, those of a step plan or those of samples to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef, StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.replay.routing import RoutingReplay
from verst.runtime.trainer.share.batch import Batch, Collator, Weighting
from verst.runtime.trainer.share.packing import padded
from verst.runtime.trainer.share.routing import entries_of, require_routing
from verst.runtime.trainer.share.selection import selected_of


class MicroBatches:
    """Makes micro-batches, with the engine's choices where they replay them."""

    def __init__(
        self, parallel: Parallel, pad_multiple: int, microbatch_multiple: int, replay: RoutingReplay | None
    ) -> None:
        """Lengths of sequences are padded to multiples of `pad_multiple`.

        The number of micro-batches is a multiple of `microbatch_multiple`.
        """
        self._parallel = parallel
        self._pad_multiple = pad_multiple
        self._microbatch_multiple = microbatch_multiple
        self._replay = replay
        self._collate = Collator(
            cp_rank=parallel.cp_rank,
            cp_size=parallel.cp_size,
            multiple=pad_multiple,
            device=parallel.device,
            share=replay.share if replay is not None else None,
        )

    def of_plan(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None,
        selected: Sequence[torch.Tensor] | None,
        replays_engine: bool,
    ) -> list[Batch]:
        """The plan's micro-batches of this data-parallel rank.

        `samples` are by (group, index). `routing` and `selected` have one element for each micro-batch; they
        are used only when the step `replays_engine`. Raises ValueError when it does and they are missing, or
        when a sample's routing is missing or fits another model.
        """
        if replays_engine:
            self._require_choices(plan.step, list(samples.values()), routing, selected)
        batches = []
        for i, microbatch in enumerate(plan.microbatches[self._parallel.dp_rank]):
            if {"dpo", "reward_model"} & set(plan.terms):
                _require_pairs(microbatch)
            chosen = [samples[ref.group, ref.index] for ref in microbatch.samples]
            weightings = [_weighting(ref, plan) for ref in microbatch.samples]
            entries = routing[i] if routing is not None and replays_engine else None
            choices = selected[i] if selected is not None and replays_engine else None
            batch = self._collate(
                chosen,
                weightings,
                entries,
                choices,
                terms=len(plan.terms),
                signals=plan.signals,
                scored="reward_model" in plan.terms,
            )
            batches.append(batch)
        return batches

    def of_samples(self, samples: Sequence[Sample], max_tokens: int) -> list[Batch]:
        """Micro-batches of at most `max_tokens` tokens that predict every response token of `samples`, in order.

        A longer sample is alone in its micro-batch. Collective over the world: all ranks make the same number of
        micro-batches, some of them empty if need be.
        """
        cuts: list[list[Sample]] = []
        room = 0
        for sample in samples:
            (width,) = padded([sample.length], self._pad_multiple)
            if width > room:
                cuts.append([])
                room = max_tokens
            cuts[-1].append(sample)
            room -= width
        count = int(self._parallel.world_max(len(cuts)))
        count += -count % self._microbatch_multiple
        cuts += [[] for _ in range(count - len(cuts))]
        return [self._collate(cut, None, self._entries_of(cut), self._selected_of(cut)) for cut in cuts]

    def _require_choices(
        self,
        step: int,
        samples: Sequence[Sample],
        routing: Sequence[torch.Tensor] | None,
        selected: Sequence[torch.Tensor] | None,
    ) -> None:
        if self._replay is None:
            return
        require_routing(samples, self._replay.moe_layers, self._replay.entry)
        if routing is None:
            raise ValueError(f"step {step + 1}: the engine's routing is replayed, and none was given")
        if self._replay.selection is not None and selected is None:
            raise ValueError(f"step {step + 1}: the engine's sparse attention is replayed; none was given")

    def _entries_of(self, samples: Sequence[Sample]) -> torch.Tensor | None:
        """This rank's routing entries of whole samples; None when they carry no routing to replay."""
        if self._replay is None or any(s.routing is None for s in samples):
            return None
        return entries_of(samples, self._replay.share, self._replay.moe_layers, self._replay.entry)

    def _selected_of(self, samples: Sequence[Sample]) -> torch.Tensor | None:
        """This rank's bytes of their sparse attention's choices; None when they carry none."""
        if self._replay is None or self._replay.selection is None:
            return None
        if any(s.selected is None for s in samples):
            return None
        return selected_of(samples, self._replay.selection.share)


def _require_pairs(microbatch: MicroBatch) -> None:
    """The loss of a pair needs both samples, and looks for them next to each other (`Sequences.pairs`)."""
    names = [(ref.group, ref.index) for ref in microbatch.samples]
    if names != [(group, index) for group, _ in names[::2] for index in range(2)]:
        raise ValueError(
            f"a micro-batch of pairs holds {names}: both samples of each group must be side by side"
        )


def _weighting(ref: SampleRef, plan: StepPlan) -> Weighting:
    """A sample that no policy made is predicted by the model's own distribution, at the temperature 1."""
    tempered = any(w for w, term in zip(ref.weights, plan.terms, strict=True) if term == "policy")
    return Weighting(ref.advantage, ref.weights, tempered, ref.common_version)
