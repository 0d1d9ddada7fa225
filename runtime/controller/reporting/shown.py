"""Writes a few samples of each step, token by token, and answers of each evaluation, for people to look at.

`shown/step-000012.jsonl` has samples of step 12, one JSON object a line: step, group, index, prompt, label, metadata,
response, tokens (the response's, as text), rollout_logprobs, trainer_logprobs, old_logprobs, reference_logprobs (or
null), advantage, reward, and routing_differs (0 or 1 per response token, or null).

`shown/eval-000012.jsonl` has answers of the evaluation of weight version 12: step, when, set, group (the row of the
set's file, from 0), index, prompt, label, metadata, response, reward.

A file is written atomically. If it cannot be written, the run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verst.runtime.messages.jobs import EvalResult, Prompt
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import ShownSample
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.run.folder import write_atomically

log = logging.getLogger(__name__)
_MOST = 64 << 10  # characters of a label or metadata; longer ones are kept as text that is cut off


class ShownFiles:
    """Chooses the samples of a step and writes the files."""

    def __init__(
        self,
        folder: Path,
        config: MetricsConfig,
        tokenizer: Any,
        prompt_of: Callable[[int, bool], Prompt],
        eval_place: Callable[[int], tuple[str, int]],
    ) -> None:
        """`prompt_of(id, held_out)` is the prompt of a group, or of a held-out prompt, which is row `row` of set `set`
        if `eval_place(id)` is (set, row).
        """
        self._folder = folder
        self._config = config
        self._tokenizer = tokenizer
        self._prompt_of = prompt_of
        self._eval_place = eval_place
        self._texts: dict[int, str] = {}  # token -> text, for tokens seen so far

    def choose(self, step: int, groups: Sequence[GroupMeta]) -> list[tuple[int, int]]:
        """The (group, index) of the samples to show. Groups with unequal rewards are chosen before others."""
        if (step - 1) % self._config.shown_every:
            return []
        chosen = sorted(groups, key=lambda g: (min(g.rewards) == max(g.rewards), g.id))
        most = self._config.shown_samples
        return [
            (group.id, index)
            for group in chosen[: self._config.shown_groups]
            for index in range(min(most, len(group.rewards)))
        ]

    def write(self, step: int, samples: Sequence[ShownSample]) -> None:
        """Writes the step's file and removes files beyond the number to keep. Slow for long samples."""
        if not samples:
            return
        rows = sorted(samples, key=lambda s: (s.group, s.index))
        self._write("step", step, (self._record(step, s) for s in rows))

    def write_answers(self, version: int, when: str, answers: Mapping[int, EvalResult]) -> None:
        """Writes the file of an evaluation: all answers to each prompt in `answers`, which is by id."""
        if answers:
            self._write("eval", version, self._answers(version, when, answers))

    def _write(self, kind: str, number: int, records: Iterable[dict[str, Any]]) -> None:
        try:
            lines = [json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records]
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(
                self._folder / f"{kind}-{number:06d}.jsonl", "".join(lines).encode(errors="replace")
            )
            for old in sorted(self._folder.glob(f"{kind}-*.jsonl"))[: -self._config.shown_keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the samples of %s %d cannot be kept: %s", kind, number, error)

    def _answers(
        self, version: int, when: str, answers: Mapping[int, EvalResult]
    ) -> Iterable[dict[str, Any]]:
        for id, result in sorted(answers.items()):
            name, row = self._eval_place(id)
            about = self._about(id, held_out=True)
            for index, (text, reward) in enumerate(zip(result.answers, result.scored.rewards, strict=True)):
                yield {"step": version, "when": when, "set": name, "group": row, "index": index, **about} | {
                    "response": text,
                    "reward": reward,
                }

    def _about(self, id: int, *, held_out: bool) -> dict[str, Any]:
        """The prompt's text, label and metadata."""
        prompt = self._prompt_of(id, held_out)
        return {"prompt": prompt.text, "label": bounded(prompt.label), "metadata": bounded(prompt.metadata)}

    def _record(self, step: int, sample: ShownSample) -> dict[str, Any]:
        differs = sample.routing_differs
        return {
            "step": step,
            "group": sample.group,
            "index": sample.index,
            **self._about(sample.group, held_out=False),
            "prompt": self._tokenizer.decode(sample.prompt_ids.tolist()),
            "response": self._tokenizer.decode(sample.response_ids.tolist()),
            "tokens": [self._text(token) for token in sample.response_ids.tolist()],
            "rollout_logprobs": _rounded(sample.rollout_logprobs),
            "trainer_logprobs": _rounded(sample.trainer_logprobs),
            "old_logprobs": _rounded(sample.old_logprobs),
            "reference_logprobs": None
            if sample.reference_logprobs is None
            else _rounded(sample.reference_logprobs),
            "advantage": sample.advantage,
            "reward": sample.reward,
            "routing_differs": None if differs is None else differs.tolist(),
        }

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


def _rounded(logprobs: np.ndarray) -> list[float]:
    return [round(x, 5) for x in logprobs.tolist()]


def bounded(value: Any) -> Any:
    """A value of a data file, or if that is very long the beginning of its text."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return value if len(text) <= _MOST else f"{text[:_MOST]} …"
