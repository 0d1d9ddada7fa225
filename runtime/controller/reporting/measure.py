"""Collects the figures of a step from the rollout workers and the trainer, for one line of metrics.jsonl."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from verst.runtime.controller.reporting.by_source import by_source
from verst.runtime.controller.reporting.critical_path import Interval, critical_path, seconds_by_phase
from verst.runtime.controller.reporting.own_figures import OF_A_LOSS, own_figures, scores
from verst.runtime.controller.reporting.rewards import reward_figures
from verst.runtime.messages.jobs import RolloutStats
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import StepReport
from verst.runtime.messages.weight_round import RoundReport
from verst.runtime.metrics.trace import Tracer

_COUNTS = ("rewards_failed", "samples_masked", "samples_dropped")
_SHORTEST_S = 0.001  # a segment shorter than this gets no span


class RolloutMeasure:
    """Sums up the groups that finished since the last step began."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts a new step."""
        self.response_tokens = 0
        self.reward_seconds = 0.0
        self.failed_rewards = 0
        self.masked_samples = self.dropped_samples = 0
        self.groups = 0
        self.first: float | None = None
        self.last: float | None = None

    def group_done(self, stats: RolloutStats) -> None:
        """Adds a finished group."""
        now = time.monotonic()
        began = now - stats.seconds
        self.first = began if self.first is None else min(self.first, began)
        self.last = now
        self.groups += 1
        self.response_tokens += stats.response_tokens
        self.reward_seconds += stats.reward_seconds
        self.failed_rewards += stats.failed_rewards
        self.masked_samples += stats.masked_samples
        self.dropped_samples += stats.dropped_samples

    @property
    def seconds(self) -> float:
        """The time from the first group's first request to the last group's acknowledgement."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first


class StepRecord:
    """Collects the figures of one step as they come in, and makes its line."""

    def __init__(self, rollout: RolloutMeasure, trace: Tracer) -> None:
        self._rollout = rollout
        self._trace = trace
        self._sync_seconds = 0.0
        self._busy: dict[str, list[Interval]] = {}  # by phase, since the last step ended
        self._dropped: Counter[str] = Counter()  # by reason, since the last step began
        self._dropped_of: Counter[str] = Counter()  # the same by source
        self._reissued = 0
        self._previous_end: float | None = None  # the first step begins with its first group

    @contextlib.contextmanager
    def busy(self, phase: str, version: int, **about: Any) -> Iterator[None]:
        """Notes that the trainer is in this phase while the body runs; `about` goes into the span."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._busy.setdefault(phase, []).append((began, ended))
            self._trace.add(phase, began, ended, lane="trainer", version=version, **about)

    def evaluated(self, version: int, began: float) -> None:
        """An evaluation that began at `began` is over."""
        ended = time.monotonic()
        self._busy.setdefault("evaluation", []).append((began, ended))
        self._trace.add("eval", began, ended, lane="eval", version=version)

    def synced(self, report: RoundReport) -> None:
        """A weight round has ended. Its time belongs to the step that follows."""
        self._sync_seconds += sum(report.seconds.values())

    def dropped(self, reason: str, *, reissued: bool, source: str = "") -> None:
        """A group was dropped, for this reason. It counts for the step that begins next."""
        self._dropped[reason] += 1
        self._dropped_of[source] += 1
        self._reissued += reissued

    @property
    def dropped_groups(self) -> int:
        """The number of groups that were dropped since the last step began."""
        return self._dropped.total()

    def step_begins(self, groups: list[GroupMeta], version: int) -> None:
        """The trainer begins to train on these groups, so their rollout is over."""
        self._train_began = time.monotonic()
        first = self._train_began if self._rollout.first is None else self._rollout.first
        self._began = first if self._previous_end is None else self._previous_end
        self._samples = sum(len(group.rewards) for group in groups)
        self._groups = groups = [group.by_episode() for group in groups]
        self._version = version
        if self._rollout.first is not None and self._rollout.last is not None:
            made = self._rollout.first, self._rollout.last
            self._busy["rollout"] = [made]
            self._trace.add("rollout", *made, lane="rollout", version=version, groups=len(groups))
        self._rollout_figures = {
            "rollout_tokens": self._rollout.response_tokens,
            "rollout_seconds": self._rollout.seconds,
            "rewards_failed": self._rollout.failed_rewards,
            "samples_masked": self._rollout.masked_samples,
            "samples_dropped": self._rollout.dropped_samples,
        }
        self._drop_figures = {
            "dropped": {"all": self._dropped.total(), **self._dropped},
            "reissued": self._reissued,
        }
        self._source_figures = by_source(groups, self._dropped_of)
        self._dropped, self._dropped_of, self._reissued = Counter(), Counter(), 0
        self._rollout.reset()

    def groups_kept(self, step: int) -> dict[str, Any]:
        """Returns the line of a step whose groups are only kept. Call `step_begins` before."""
        lengths = [n for g in self._groups for n in g.trained_tokens]
        truncated = [t for g in self._groups for t in g.truncated]
        tokens = self._rollout_figures["rollout_tokens"]
        seconds = self._rollout_figures["rollout_seconds"]
        self._previous_end = time.monotonic()
        self._busy = {}
        return {
            "kind": "rollout",
            "step": step,
            **reward_figures(self._groups),
            "response_length": sum(lengths) / len(lengths),
            "truncated": sum(truncated) / len(truncated),
            "rewards_failed": self._rollout_figures["rewards_failed"],
            **self._drop_figures,
            **own_figures(self._groups, {}),
            **scores(self._groups),
            "rollout_tokens": tokens,
            "rollout_tokens_per_s": tokens / seconds if seconds else 0.0,
            "seconds": {"rollout": seconds},
        }

    def step_ends(self, report: StepReport) -> dict[str, Any]:
        """Returns the step's line. A step has the number of the weight version that it makes."""
        now = time.monotonic()
        lengths = [n for g in self._groups for n in g.trained_tokens]
        truncated = [t for g in self._groups for t in g.truncated]
        rollout_tokens = self._rollout_figures["rollout_tokens"]
        rollout_seconds = self._rollout_figures["rollout_seconds"]
        train_seconds = now - self._train_began
        path = self._critical_path(now)
        line = {
            "kind": "step",
            "step": report.step + 1,
            "version": report.step + 1,
            **reward_figures(self._groups),
            "response_length": sum(lengths) / len(lengths),
            "truncated": sum(truncated) / len(truncated),
            "samples_per_episode": self._samples / len(truncated),
            **{name: self._rollout_figures[name] for name in _COUNTS},
            # Never below 0: a group of an abandoned life may bear a number that this life has not reached.
            "staleness": max(0, max(self._version - g.oldest_version for g in self._groups)),
            **self._drop_figures,
            **self._source_figures,
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "lr": report.lr,
            **{name: value for name, value in report.metrics.items() if not name.startswith(OF_A_LOSS)},
            **own_figures(self._groups, report.metrics),
            **scores(self._groups),
            "tokens": report.tokens,
            "tokens_per_s": report.tokens / train_seconds,
            "rollout_tokens_per_s": rollout_tokens / rollout_seconds if rollout_seconds else 0.0,
            "bottleneck": next(iter(path)),
            "critical_path": path,
            "seconds": {
                "step": now - self._began,
                "rollout": rollout_seconds,
                "train": train_seconds,
                "weight_sync": self._sync_seconds,
                **{f"train/{phase}": s for phase, s in report.seconds.items()},
            },
        }
        self._sync_seconds = 0.0
        self._previous_end = now
        return line

    def _critical_path(self, now: float) -> dict[str, float]:
        """The seconds of each phase on the step's critical path, longest first."""
        segments = critical_path(self._began, now, self._busy)
        self._busy = {}
        for phase, began, ended in segments:
            if ended - began >= _SHORTEST_S:
                self._trace.add(phase, began, ended, lane="critical path", version=self._version)
        self._trace.flush()
        return seconds_by_phase(segments)
