"""Early stop: the training ends once so many evaluations in a row have brought no new best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class EarlyStopRule:
    """The recipe's `algorithm.early_stop`, with its set by name."""

    set: str
    metric: str
    patience: int
    min_delta: float = 0.0


class EarlyStopState(msgspec.Struct, kw_only=True):
    """The best value so far, the version that had it, and the evaluations since then. It is part of a checkpoint."""

    best: float | None = None
    version: int = 0
    since: int = 0
    seen: int = -1  # the newest version that counted


class EarlyStop:
    """Watches the evaluations of one set."""

    def __init__(self, rule: EarlyStopRule | None, state: EarlyStopState | None = None) -> None:
        self._rule = rule
        self.state = state or EarlyStopState()

    def note(self, version: int, set: str, figures: Mapping[str, float]) -> None:
        """Counts the evaluation of a set, once for each version: one that is made again after a resume is known."""
        rule, state = self._rule, self.state
        if rule is None or set != rule.set or version <= state.seen:
            return
        value, state.seen = figures[rule.metric], version
        if state.best is None or value > state.best + rule.min_delta:
            state.best, state.version, state.since = value, version, 0
        else:
            state.since += 1

    @property
    def reason(self) -> str | None:
        """Why the training ends now; None if it goes on."""
        rule, state = self._rule, self.state
        if rule is None or state.best is None or state.since < rule.patience:
            return None
        return (
            f"{rule.set}/{rule.metric} was best at step {state.version} ({state.best:.4g}), and {state.since} "
            f"evaluations since then were not better by more than {rule.min_delta:g} (algorithm.early_stop)"
        )
