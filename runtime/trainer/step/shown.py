"""Picks single samples out of the trained pass: their log-probabilities under each policy, and where their routing
would differ.

This takes no extra pass. The values stay on the device until the step is over. Only micro-batches that hold a
chosen sample cost anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import SampleRef, ShownSample, StepPlan
from verst.runtime.trainer.config import OldLogprobs
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.replay.routing import RoutingReplay
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.old_policy import old_logprobs
from verst.runtime.trainer.step.response_values import add_up, fill

Name = tuple[int, int]  # (group, index)


class ShownSamples:
    """Collects the samples of `plan.shown` on one rank. Create it right before the trained pass."""

    def __init__(
        self,
        plan: StepPlan,
        samples: Mapping[Name, Sample],
        batches: Sequence[Batch],
        parallel: Parallel,
        replay: RoutingReplay | None,
        old: OldLogprobs = "auto",
    ) -> None:
        """`old` says which policy is the old one."""
        self._choice = old
        wanted = set(plan.shown)
        mine = [ref for micro in plan.microbatches[parallel.dp_rank] for ref in micro.samples]
        self._refs: dict[Name, SampleRef] = {
            name: ref for ref in mine if (name := (ref.group, ref.index)) in wanted
        }
        self._samples = samples
        self._version = plan.step  # of the weights that the step trains
        self._parallel = parallel
        self._replay = replay if "policy" in plan.terms else None
        self._found: list[tuple[Batch, Tensor]] = []
        self._holding = {id(batch) for batch in batches if self._refs.keys() & set(batch.names)}

    def see(self, batch: Batch, logprobs: Tensor) -> None:
        """Keeps a micro-batch's log-probabilities [n] if it holds a chosen sample. The objective calls it."""
        if id(batch) in self._holding:
            self._found.append((batch, logprobs.detach()))

    def take(self) -> list[ShownSample]:
        """Returns the samples on one rank of each data-parallel replica, and nothing elsewhere.

        Collective over the last stage's tensor- and context-parallel ranks.
        """
        return self._take() if self._refs and self._parallel.is_last_stage else []

    def _take(self) -> list[ShownSample]:
        logprobs, old, reference, differs, advantages = (self._zeros() for _ in range(5))
        has_critic = all("values" in batch.signals for batch, _ in self._found)
        has_reference = all("reference_logprobs" in batch.signals for batch, _ in self._found)
        for batch, found in self._found:
            _fill(logprobs, batch, found.float().cpu().numpy())
            _fill(old, batch, self._old(batch, found).float().cpu().numpy())
            if has_critic:
                _fill(advantages, batch, batch.advantages.cpu().numpy())
            if has_reference:
                _fill(reference, batch, batch.signals["reference_logprobs"].float().cpu().numpy())
            if self._replay is not None:
                _fill(differs, batch, self._replay.differing(batch).cpu().numpy())
        optional = [*([reference] if has_reference else []), *([advantages] if has_critic else [])]
        for values in (logprobs, old, *optional):
            self._add_up(values, over_tp=False)
        if self._replay is not None:
            self._add_up(differs, over_tp=self._replay.splits_tokens)
        if self._parallel.tp_rank or self._parallel.cp_rank:
            return []
        return [
            self._sample(
                ref,
                logprobs[name],
                old[name],
                reference[name] if has_reference else None,
                differs[name],
                advantages[name] if has_critic else None,
            )
            for name, ref in self._refs.items()
        ]

    def _zeros(self) -> dict[Name, np.ndarray]:
        return {name: np.zeros(len(self._samples[name].response_ids), np.float32) for name in self._refs}

    def _old(self, batch: Batch, logprobs: Tensor) -> Tensor:
        """The old log-probabilities [n], as the objective takes them."""
        made = batch.signals.get("old_logprobs")
        return old_logprobs(batch, logprobs, self._version, self._choice) if made is None else made

    def _add_up(self, arrays: dict[Name, np.ndarray], *, over_tp: bool) -> None:
        parts = add_up(list(arrays.values()), self._parallel, over_tp=over_tp)
        arrays.update(zip(arrays, parts, strict=True))

    def _sample(
        self,
        ref: SampleRef,
        logprobs: np.ndarray,
        old: np.ndarray,
        reference: np.ndarray | None,
        differs: np.ndarray,
        advantages: np.ndarray | None,
    ) -> ShownSample:
        sample = self._samples[ref.group, ref.index]
        return ShownSample(
            group=ref.group,
            index=ref.index,
            prompt_ids=sample.prompt_ids,
            response_ids=sample.response_ids,
            rollout_logprobs=sample.logprobs,
            trainer_logprobs=logprobs,
            old_logprobs=old,
            reference_logprobs=reference,
            advantage=ref.advantage if advantages is None else _mean(advantages, sample.loss_mask),
            reward=sample.reward,
            routing_differs=None if self._replay is None else (differs > 0).astype(np.uint8),
        )


def _fill(arrays: dict[Name, np.ndarray], batch: Batch, values: np.ndarray) -> None:
    """Writes values [n] to the response tokens of the chosen samples."""
    for row, name in enumerate(batch.names):
        if name in arrays:
            fill(arrays[name], batch, row, values)


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
    """The mean over the trained tokens; 0 if there are none."""
    return float(values[mask.astype(bool)].mean()) if mask.any() else 0.0
