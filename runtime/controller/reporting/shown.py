"""Writes a few samples of each step, token by token, for people to look at: `shown/step-000012.jsonl`.

Each line is a JSON object for one sample: step, group, index, prompt, response, tokens (the response's, as text),
rollout_logprobs, trainer_logprobs, advantage, reward, and routing_differs (0 or 1 per response token, or null).
A file is written atomically. If it cannot be written, the run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import ShownSample
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.run.folder import write_atomically

log = logging.getLogger(__name__)


class ShownFiles:
    """Chooses the samples of a step and writes its file."""

    def __init__(self, folder: Path, config: MetricsConfig, tokenizer: Any) -> None:
        self._folder = folder
        self._config = config
        self._tokenizer = tokenizer
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
        lines = [json.dumps(self._record(step, s), ensure_ascii=False) + "\n" for s in rows]
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self._folder / f"step-{step:06d}.jsonl", "".join(lines).encode())
            for old in sorted(self._folder.glob("step-*.jsonl"))[: -self._config.shown_keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the samples of step %d cannot be kept: %s", step, error)

    def _record(self, step: int, sample: ShownSample) -> dict[str, Any]:
        differs = sample.routing_differs
        return {
            "step": step,
            "group": sample.group,
            "index": sample.index,
            "prompt": self._tokenizer.decode(sample.prompt_ids.tolist()),
            "response": self._tokenizer.decode(sample.response_ids.tolist()),
            "tokens": [self._text(token) for token in sample.response_ids.tolist()],
            "rollout_logprobs": [round(x, 5) for x in sample.rollout_logprobs.tolist()],
            "trainer_logprobs": [round(x, 5) for x in sample.trainer_logprobs.tolist()],
            "advantage": sample.advantage,
            "reward": sample.reward,
            "routing_differs": None if differs is None else differs.tolist(),
        }

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]
