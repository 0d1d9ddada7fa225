"""Curricula: a function of the recipe says after each step how likely each row of a source comes next.

The function is pure: it gets the rows, how their answers were scored so far, and how far the run is, and returns a
weight for each row. The rows are then drawn without replacement (Efraimidis and Spirakis, Information Processing
Letters 97, 2006): no row comes twice until each row with a weight has come, or the next step brings new weights. The
draw depends on the run's seed, the source and the step alone. What was drawn and scored is part of a checkpoint.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from verst.runtime.hooks.frames import shown
from verst.runtime.messages.jobs import Prompt


@dataclass(frozen=True, kw_only=True)
class RowHistory:
    """How the answers to each of a source's n rows were scored so far.

    The groups are those that were trained, and those that were scored and then dropped, such as by the filter.
    """

    groups: np.ndarray  # int64 [n], how many groups of answers were scored
    mean: np.ndarray  # float64 [n], the mean reward of all of them; NaN: never
    last: np.ndarray  # float64 [n], the mean reward of the last group; NaN: never
    step: np.ndarray  # int64 [n], the step before which that was; -1: never


@dataclass(frozen=True, kw_only=True)
class CurriculumCall:
    """What a curriculum gets."""

    source: str  # its name, if the recipe has several
    step: int  # the step that comes next; the first is 1, and warm-start steps count
    steps: int  # the last step of the run
    rows: Sequence[Prompt]  # [n], those that are not left out: `label`, `metadata`, `ids`, `text`
    history: RowHistory


class CurriculumState(msgspec.Struct, kw_only=True):
    """The part of a checkpoint that one source's curriculum needs."""

    weights: list[float]
    draw: int  # the step of these weights
    passes: int  # how often all rows with a weight were drawn with them
    used: int  # how many of the present pass are drawn
    open: dict[int, int]  # prompt -> row, of prompts that are not trained or dropped
    scored: dict[int, tuple[int, float, float, int]]  # row -> groups, mean, last, step
    pending: list[tuple[int, float]]  # row and mean reward of groups that were dropped since the last step


@dataclass
class SourceCurriculum:
    """The draws of one source with `rows` rows. Call `renew` before the first `row`."""

    source: str
    rows: int
    seed: int
    _chosen: dict[int, int] = field(default_factory=dict)  # prompt -> row, for all prompts of this life
    _open: Counter[int] = field(default_factory=Counter)  # rows of prompts that are not trained or dropped
    _open_prompts: set[int] = field(default_factory=set)
    _pending: list[tuple[int, float]] = field(default_factory=list)
    _draw: int = -1
    _passes: int = 0
    _used: int = 0

    def __post_init__(self) -> None:
        self._weights = np.ones(self.rows)
        self._groups = np.zeros(self.rows, np.int64)
        self._mean = np.full(self.rows, np.nan)
        self._last = np.full(self.rows, np.nan)
        self._step = np.full(self.rows, -1, np.int64)
        self._order = np.arange(self.rows)

    @property
    def history(self) -> RowHistory:
        """Copies of what is known of each row."""
        arrays = (self._groups, self._mean, self._last, self._step)
        groups, mean, last, step = (array.copy() for array in arrays)
        return RowHistory(groups=groups, mean=mean, last=last, step=step)

    def row(self, prompt: int) -> int:
        """The row of a prompt: the one that was drawn for it, or the next of the draw."""
        if (known := self._chosen.get(prompt)) is None:
            known = self._next()
            self.adopt(prompt, known)
        return known

    def adopt(self, prompt: int, row: int) -> None:
        """Notes the row of a prompt, such as one that an earlier life has drawn."""
        if prompt not in self._chosen:
            self._chosen[prompt] = row
            self._open[row] += 1
            self._open_prompts.add(prompt)

    def finished(self, prompt: int, reward: float | None) -> None:
        """A prompt is trained or dropped for good. `reward`: the mean of its group; None if it was not scored."""
        row = self._chosen.get(prompt)
        if row is None or prompt not in self._open_prompts:
            return
        self._open_prompts.discard(prompt)
        self._open[row] -= 1
        if not self._open[row]:
            del self._open[row]
        if reward is not None:
            self._pending.append((row, reward))

    def end_step(self, step: int) -> None:
        """Takes what was finished since the last call into the history, as of before `step`."""
        for row, reward in sorted(
            self._pending
        ):  # groups end in any order: the history must not depend on it
            count = self._groups[row]
            before = self._mean[row] * count if count else 0.0
            self._groups[row], self._mean[row] = count + 1, (before + reward) / (count + 1)
            self._last[row], self._step[row] = reward, step
        self._pending = []

    def renew(self, weights: np.ndarray, draw: int) -> None:
        """Draws anew with these weights, for the step `draw`."""
        self._weights, self._draw, self._passes, self._used = weights, draw, 0, 0
        self._shuffle()

    def state(self) -> CurriculumState:
        """For a checkpoint."""
        seen = np.flatnonzero(self._groups)
        return CurriculumState(
            weights=self._weights.tolist(),
            draw=self._draw,
            passes=self._passes,
            used=self._used,
            open={prompt: self._chosen[prompt] for prompt in sorted(self._open_prompts)},
            scored={
                int(r): (int(self._groups[r]), float(self._mean[r]), float(self._last[r]), int(self._step[r]))
                for r in seen
            },
            pending=self._pending,
        )

    def restore(self, state: CurriculumState) -> None:
        """Goes on from a checkpoint."""
        self.renew(np.array(state.weights), state.draw)
        self._passes, self._used = state.passes, state.used
        self._shuffle()
        self._pending = list(state.pending)
        for prompt, row in state.open.items():
            self.adopt(prompt, row)
        for row, (groups, mean, last, step) in state.scored.items():
            self._groups[row], self._mean[row], self._last[row], self._step[row] = groups, mean, last, step

    def _next(self) -> int:
        """The next row of the draw. Rows under way are passed over, unless all rows with a weight are."""
        for _ in range(2 * len(self._order)):
            if self._used == len(self._order):
                self._passes, self._used = self._passes + 1, 0
                self._shuffle()
            row = int(self._order[self._used])
            self._used += 1
            if row not in self._open:
                return row
        return row

    def _shuffle(self) -> None:
        name = zlib.crc32(self.source.encode())
        # NumPy guarantees that RandomState's stream never changes.
        random = np.random.RandomState([self.seed & 0xFFFFFFFF, name, self._draw, self._passes])
        possible = np.flatnonzero(self._weights)
        arrival = random.exponential(size=self.rows)[possible] / self._weights[possible]
        self._order = possible[np.argsort(arrival, kind="stable")]


def weights_of(rows: int) -> Any:
    """The check of a curriculum's value: a finite weight of 0 or more for each row, and not all of them 0."""

    def check(value: Any) -> np.ndarray:
        try:
            weights = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"returned {shown(value)}, not {rows} weights, one for each row") from None
        if weights.shape != (rows,):
            raise ValueError(
                f"returned weights of shape {list(weights.shape)}, not [{rows}], one for each row"
            )
        wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
        if len(wrong):
            raise ValueError(
                f"returned {weights[wrong[0]]} for row {wrong[0]}; a weight is finite and not below 0"
            )
        if not weights.any():
            raise ValueError("returned the weight 0 for every row: none could come next")
        return weights.copy()

    return check


def mean_reward(rewards: Iterable[float]) -> float | None:
    """The mean; None if there is none."""
    listed = list(rewards)
    return sum(listed) / len(listed) if listed else None
