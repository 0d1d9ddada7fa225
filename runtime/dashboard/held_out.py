"""The kept answers to one held-out prompt, at every step that was evaluated."""

from __future__ import annotations

from typing import Any

from verst.runtime.dashboard.shown import ShownWhole, read_samples, shown_steps
from verst.runtime.run.folder import RunFolder

_MOST_STEPS = 60  # files that are read for an answer: the last ones and, of those before, every n-th
_LONGEST = 20_000  # characters of an answer


def answers_by_step(folder: RunFolder, wanted: str | None, row: int | None) -> dict[str, Any]:
    """The sets and prompts with kept answers, and those to one prompt: by default the first of the first set.

    `{"sets", "set", "prompts": [[row, text], …], "row", "steps": [{"step", "prompt", "label", "answers"}, …]}`
    """
    files = shown_steps(folder, "eval")
    by_step = {step: read_samples(files[step]) for step in _some(list(files))}
    kept = [sample for samples in by_step.values() for sample in samples]
    sets = list(dict.fromkeys(sample.set for sample in kept))
    name = wanted if wanted in sets else next(iter(sets), None)
    prompts = {int(s.group): s.prompt for s in kept if s.set == name}
    chosen = row if row in prompts else min(prompts, default=None)
    steps = []
    for step, samples in by_step.items():
        found = [s for s in samples if s.set == name and int(s.group) == chosen]
        if found:
            steps.append(_of_step(step, found))
    return {
        "sets": sets,
        "set": name,
        "prompts": [[number, text[-400:]] for number, text in sorted(prompts.items())],
        "row": chosen,
        "steps": steps,
    }


def _of_step(step: int, samples: list[ShownWhole]) -> dict[str, Any]:
    answers = [{"response": s.response[:_LONGEST], "reward": s.reward} for s in samples]
    return {"step": step, "prompt": samples[0].prompt, "label": samples[0].label, "answers": answers}


def _some(steps: list[int]) -> list[int]:
    """At most `_MOST_STEPS` of the steps, evenly, with the first and the last."""
    if len(steps) <= _MOST_STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (_MOST_STEPS - 1))] for i in range(_MOST_STEPS)]
