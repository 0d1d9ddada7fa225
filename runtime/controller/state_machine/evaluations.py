"""Evaluations on held-out prompts: when one is due, which prompts still wait, and the figures of each set.

An evaluation is of one weight version and has all sets that are due at it. It runs beside the training: its engines
keep the version until it is done (`Fleet.hold`), and the trainer goes on, up to the next version that is due.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verst.runtime.algorithms.evaluation import Scale, figures
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.messages.jobs import EvalAnswers


@dataclass(frozen=True)
class EvalSet:
    """One set of held-out prompts."""

    name: str
    prompts: int
    interval: int | None = None  # versions between two evaluations; None: only the first and the last version
    scale: Scale = Scale()  # noqa: RUF009  (frozen)


class Evaluations:
    """Runs one evaluation at a time. A prompt's id is its row, after all rows of the sets before its own."""

    def __init__(
        self,
        sets: Sequence[EvalSet],
        first: int,
        last: int,
        done: Mapping[int, Iterable[str]] | None = None,
    ) -> None:
        """Plans evaluations of every set at the versions `first` and `last`, and at its intervals between them.

        `done`: by version, the sets that are already evaluated.
        """
        self.done = {version: set(names) for version, names in (done or {}).items()}
        self.sets = tuple(sets)
        self._first, self._last = first, last
        sizes = [each.prompts for each in self.sets]
        self._begin_of = [
            sum(sizes[:number]) for number in range(len(sizes))
        ]  # by set: the id of its first prompt
        # A heap of (failed attempts, id); None: no evaluation is running.
        self._waiting: list[tuple[int, int]] | None = None
        self._attempts: dict[int, int] = {}
        self._answers: dict[int, dict[int, EvalAnswers]] = {}  # by set that is not complete: answers by id
        self._scored = self._of = 0
        self.version = first  # that is or was evaluated

    @property
    def running(self) -> bool:
        """Whether an evaluation has begun and not ended."""
        return self._waiting is not None

    @property
    def waiting(self) -> int:
        """The number of prompts that no engine works on."""
        return len(self._waiting or ())

    @property
    def progress(self) -> tuple[int, int]:
        """The number of scored prompts in the running evaluation, and of all its prompts."""
        return self._scored, self._of

    def place(self, id: int) -> tuple[EvalSet, int]:
        """The set of a prompt, and its row there."""
        number = self._set_of(id)
        return self.sets[number], id - self._begin_of[number]

    def due(self, version: int) -> bool:
        """Whether this version has to be evaluated and is not yet, nor is being evaluated."""
        return not self.runs(version) and bool(self._due_sets(version))

    def _due_sets(self, version: int) -> list[int]:
        """The numbers of the sets that this version has to answer and has not yet."""
        step, done = version - self._first, self.done.get(version, ())
        return [
            number
            for number, each in enumerate(self.sets)
            if step >= 0
            and each.name not in done
            and (
                step == 0
                or version == self._last
                or (each.interval is not None and step % each.interval == 0)
            )
        ]

    def stop_at(self, version: int) -> None:
        """The run ends early: `version` is its last."""
        self._last = version

    def runs(self, version: int | None) -> bool:
        """Whether the evaluation of this version has begun and not ended. Answers of others come too late."""
        return self.running and version == self.version

    def begin(self, version: int) -> None:
        """Begins the evaluation of a version: all prompts of its sets wait, set by set."""
        self.version = version
        numbers = self._due_sets(version)
        self._answers = {number: {} for number in numbers}
        ids = [self._begin_of[n] + row for n in numbers for row in range(self.sets[n].prompts)]
        self._waiting = [(0, id) for id in ids]
        self._scored, self._of = 0, len(ids)
        self._attempts = {}

    def give_up(self) -> None:
        """Ends the evaluation without its figures, because no engine has its weights any more."""
        self._waiting = None
        self.done.setdefault(self.version, set()).update(self.sets[number].name for number in self._answers)

    def take(self, room: int) -> tuple[list[int], int]:
        """Takes the first prompt, and more of the same set while their answers fit into `room`.

        Returns the prompts, and how many answers each needs. Prompts that have failed before come last.
        """
        assert self._waiting
        number, samples = self._set_of(self._waiting[0][1]), self.samples_of_next()
        taken: list[int] = []
        while (
            self._waiting
            and self._set_of(self._waiting[0][1]) == number
            and len(taken) < max(1, room // samples)
        ):
            taken.append(heapq.heappop(self._waiting)[1])
        return taken, samples

    def samples_of_next(self) -> int:
        """How many answers the next prompt that waits needs."""
        assert self._waiting
        return self.sets[self._set_of(self._waiting[0][1])].scale.samples

    def requeue(self, ids: Iterable[int]) -> None:
        """Puts back prompts whose engine was lost."""
        if self._waiting is not None:
            for id in ids:
                heapq.heappush(self._waiting, (self._attempts.get(id, 0), id))

    def failed(self, id: int) -> int:
        """Puts back a prompt that could not be answered. Returns how often it has failed in this evaluation."""
        self._attempts[id] = self._attempts.get(id, 0) + 1
        self.requeue([id])
        return self._attempts[id]

    def scored(self, id: int, answers: EvalAnswers) -> ev.ReportEval | None:
        """Notes the answers to a prompt. Returns its set's report if they were the last of the set, else None.

        The evaluation has ended once all its sets are reported.
        """
        number = self._set_of(id)
        found = self._answers.get(number)
        if found is None or id in found:  # answered twice
            return None
        found[id] = answers
        self._scored += 1
        each = self.sets[number]
        if len(found) < each.prompts:
            return None
        del self._answers[number]
        self.done.setdefault(self.version, set()).add(each.name)
        if not self._answers:
            self._waiting = None
        in_order = [found[id] for id in sorted(found)]
        return ev.ReportEval(
            self.version, self.moment(), each.name, figures(in_order, each.scale), each.prompts
        )

    def moment(self) -> str:
        """When the running or last evaluation is made: "before", "during" or "after" training."""
        if self.version == self._last:
            return "after"
        return "before" if self.version == self._first else "during"

    def _set_of(self, id: int) -> int:
        return next(n for n in reversed(range(len(self.sets))) if self._begin_of[n] <= id)
