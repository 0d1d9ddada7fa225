"""What people can read of a run: samples of a step with their label, and the held-out answers of an evaluation."""

from __future__ import annotations

import json

import numpy as np

from verst.runtime.controller.reporting.shown import ShownFiles
from verst.runtime.messages.jobs import EvalAnswers, EvalResult, Prompt
from verst.runtime.messages.step_plan import ShownSample
from verst.runtime.metrics.config import MetricsConfig


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def prompt_of(id: int, held_out: bool) -> Prompt:
    kind = "held-out" if held_out else "training"
    return Prompt(
        ids=[1], text=f"{kind} {id}?", label=id * 2, metadata={"source": kind, "long": "x" * 70_000 * id}
    )


def scored(*rewards: float) -> EvalAnswers:
    return EvalAnswers(rewards=list(rewards), tokens=[1] * len(rewards), truncated=[False] * len(rewards))


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sample_of_a_step_has_the_label_and_the_metadata_of_its_prompt(tmp_path):
    files = ShownFiles(tmp_path / "shown", MetricsConfig(), Letters(), prompt_of, lambda id: ("math", id))
    values = np.array([-0.5, -0.25], np.float32)
    sample = ShownSample(
        group=0, index=0, prompt_ids=np.array([63], np.int32), response_ids=np.array([72, 105], np.int32),
        rollout_logprobs=values, trainer_logprobs=values - 1, old_logprobs=values - 2, advantage=1.0, reward=1.0,
    )  # fmt: skip
    files.write(7, [sample])
    (line,) = read(tmp_path / "shown/step-000007.jsonl")
    assert (line["prompt"], line["response"], line["label"]) == (
        "?",
        "Hi",
        0,
    )  # the prompt as it was trained on
    assert line["metadata"] == {"source": "training", "long": ""}
    assert [line[f"{policy}_logprobs"] for policy in ("rollout", "trainer", "old", "reference")] == [
        [-0.5, -0.25],
        [-1.5, -1.25],
        [-2.5, -2.25],
        None,
    ]


def test_the_answers_of_an_evaluation_are_kept_with_what_was_wanted(tmp_path):
    files = ShownFiles(
        tmp_path / "shown", MetricsConfig(shown_keep=2), Letters(), prompt_of, lambda id: ("math", id)
    )
    results = {
        3: EvalResult(id=3, version=0, scored=scored(0.0, 1.0), answers=["five", "six"]),
        0: EvalResult(id=0, version=0, scored=scored(0.5), answers=["zero"]),
    }
    for version in (0, 10, 20):
        files.write_answers(version, "during", results)
    assert sorted(p.name for p in (tmp_path / "shown").iterdir()) == [
        "eval-000010.jsonl",
        "eval-000020.jsonl",
    ]
    lines = read(tmp_path / "shown/eval-000020.jsonl")
    assert [(a["set"], a["group"], a["index"], a["response"], a["reward"], a["label"]) for a in lines] == [
        ("math", 0, 0, "zero", 0.5, 0), ("math", 3, 0, "five", 0.0, 6), ("math", 3, 1, "six", 1.0, 6),
    ]  # fmt: skip
    assert lines[1]["prompt"] == "held-out 3?"
    assert lines[1]["when"] == "during"
    assert len(lines[1]["metadata"]) < 66_000  # very long metadata is cut
