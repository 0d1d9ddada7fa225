"""What a run is doing now, how far that is, and when the run may end: from the order of its records. Pure.

A run starts (trainer and engines load the model), perhaps trains on rows of data files, and then repeats: the engines
answer the prompts of a step, the trainer trains on the answers, the weights go to the engines. At its end it saves and
exports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Phase:
    """The present phase of a run. `apply` changes it with every record, in order of time."""

    name: str = "starting: trainer and engines load the model"
    done: int = 0
    of: int = 0  # 0: it has no parts that are counted
    since: float | None = None  # when it began, in seconds since 1970
    step: int = 0  # the step that it belongs to

    def apply(self, record: dict[str, Any], life_began: bool = False) -> None:
        """Applies a record of metrics.jsonl or events.jsonl. `life_began`: it is the first one of a life."""
        at = record.get("time")
        if life_began:
            self._begin("starting: trainer and engines load the model", at)
        match record:
            case {"kind": "eval_progress", "done": int(done), "of": int(of)}:
                self._count("evaluating on held-out prompts", done, of, at)
            case {"kind": "rollout_progress", "step": int(step), "done": int(done), "of": int(of)}:
                self.step = step
                if done < of:
                    self._count(f"generating the answers of step {step}", done, of, at)
                else:
                    self._begin(f"training step {step}", at)
            case {"kind": "stage_step", "step": int(step), "stage": str(stage)}:
                self.step = step + 1
                self._begin(f"training step {step + 1} ({stage})", at)
            case {"kind": "rollout", "step": int(step)}:  # its groups are kept, and not trained on
                self.step = step + 1
                self._begin(f"generating the answers of step {self.step}", at)
            case {"kind": "step", "step": int(step)}:
                self.step = step + 1
                self._begin(f"step {step} is done; sending its weights", at)
            case {"kind": "sync", "version": int(version)}:
                self.step = version + 1
                self._begin(f"generating the answers of step {self.step}", at)
            case {"kind": "trainer_ready"}:
                self._begin("starting: engines load the model", at)
            case {"kind": "checkpoint"} if "message" in record:
                self._begin("a checkpoint is written", at)
            case {"kind": "export"}:
                self._begin("the model is exported", at)

    def _begin(self, name: str, at: float | None) -> None:
        if name != self.name:
            self.name, self.done, self.of, self.since = name, 0, 0, at

    def _count(self, name: str, done: int, of: int, at: float | None) -> None:
        if name != self.name:
            self.name, self.since = name, at
        self.done, self.of = done, of

    @property
    def words(self) -> str:
        """The phase for people: "generating the answers of step 3, 5 of 8"."""
        return f"{self.name}, {self.done} of {self.of}" if self.of else self.name


def seconds_left(
    phase: Phase, steps_left: int, seconds_per_step: float | None, now: float
) -> tuple[float, bool] | None:
    """The seconds until the last step, and whether that is only a lower bound. None if nothing is known yet.

    Before the first step is done, its generation so far tells how long a step takes at least.
    """
    if steps_left <= 0:
        return None
    if seconds_per_step is not None:
        return steps_left * seconds_per_step, False
    if phase.since is None or not phase.done or "generating" not in phase.name:
        return None
    whole = (now - phase.since) * phase.of / phase.done
    return max(0.0, steps_left * whole - (now - phase.since)), True
