"""The small programs of examples/ do what they say."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.controller.reporting.test_numbers import group
from verst.runtime.algorithms.averages import AverageCall
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.data.curriculum import CurriculumCall, RowHistory
from verst.runtime.data.records import read_records
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.hooks.happenings import AroundUpdate, CheckpointSaved, RunEnd, StepEnd
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.score import Score
from verst.runtime.hooks.scored_step import ScoredSample, ScoredStep
from verst.runtime.hooks.values import token_weights_of
from verst.runtime.messages.jobs import Prompt

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_rows_that_are_computed() -> None:
    rows = [row for _, row in read_records("own_rows:Products")]
    assert len(rows) == 10_000
    assert rows[1203] == {"prompt": "12 * 3 = ", "label": "36", "level": 2}


def test_functions_that_are_told_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup, step = tmp_path / "backup", tmp_path / "step-000002"
    backup.mkdir()
    step.mkdir()
    (step / "weights").write_text("w")
    monkeypatch.setenv("BACKUP", str(backup))
    sys.modules.pop("run_hooks", None)
    config = HooksConfig(
        run_end="run_hooks:note", checkpoint_saved="run_hooks:copy", metrics="run_hooks:longest"
    )
    hooks = HappeningHooks(config, None)  # type: ignore[arg-type]

    async def run() -> dict[str, object]:
        await hooks.tell("checkpoint_saved", "step 2", CheckpointSaved(version=2, path=step))
        end = RunEnd(folder=tmp_path, ok=True, stopped=False, reason="trained 2 steps")
        await hooks.tell("run_end", "the end", end)
        return await hooks.with_figures(StepEnd(step=2, line={}, groups=[group(0, [1.0, 0.0])]))

    line = asyncio.run(run())
    assert line == {"own": {"longest": max(group(0, [1.0, 0.0]).lengths)}}
    assert (backup / "step-000002/weights").read_text() == "w"
    ended = json.loads((backup / "ended.json").read_text())
    assert ended == {"run": tmp_path.name, "ok": True, "reason": "trained 2 steps"}


def test_a_reward_of_all_answers_to_a_prompt() -> None:
    varied = Hook("group reward", "group_reward:varied").function
    answers = [
        Answer(text=text, score=Score(right))
        for text, right in (("A b", 1.0), ("a  B\n", 1.0), ("c", 1.0), ("c", 0.0))
    ]
    assert [score.value for score in varied(answers)] == [0.9, 0.9, 0.9, 0.0]
    assert varied(answers[:1]) == [Score(1.0, {"alike": 0})]


def test_an_average_in_which_each_prompt_counts_the_same() -> None:
    lengths = {0: [2, 6], 1: [0, 0], 2: [1, 0, 9]}
    groups = [
        msgspec.structs.replace(group(n, [0.0] * len(tokens)), trained_tokens=tokens)
        for n, tokens in lengths.items()
    ]
    by_prompt = Hook("average function", "average:by_prompt").function
    weights = token_weights_of(groups)(by_prompt(AverageCall(tuple(groups), 16)))
    assert weights == [[1 / 16] * 2, [0.0] * 2, [1 / 20] * 3]


def test_a_filter_by_log_probabilities() -> None:
    judge = Hook("log-probability filter", "logprob_filter:close_and_unsure").function

    def sample(difference: float, entropy: float, advantage: float) -> ScoredSample:
        return ScoredSample(
            group=0, index=0, episode=0, source="", reward=0.0, scores={}, advantage=advantage, finish="stop",
            length=20, trained_tokens=10, staleness=0, logprobs=-9.0, rollout_logprobs=-9.0, difference=difference,
            entropy=entropy, reference_logprobs=None, teacher_logprobs=None,
        )  # fmt: skip

    samples = [sample(0.1, 9.0, -1.0), sample(0.6, 9.0, 1.0), sample(0.2, 0.05, -1.0), sample(0.2, 0.05, 1.0)]
    assert judge(ScoredStep(step=1, samples=samples)) == [True, (False, "far"), (False, "sure"), True]
    assert judge(ScoredStep(step=1, samples=samples[1:2])) == [True]


def test_a_function_on_the_trainers_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, 3.0)
    told = AroundUpdate(
        step=4, rank=0, update=2, updates=2, weights="policy", model=(model,),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5), scheduler=None,
    )  # fmt: skip
    Hook("hook after_update", "rank_hooks:sizes").call_now("step 4", told, check=lambda value: None)
    place = "step 4, update 2 of 2, policy"
    assert capsys.readouterr().out == f"{place}: learning rate 5.00e-01\n{place}: weight 4.243\n"


def test_a_curriculum() -> None:
    rows = [Prompt(ids=[0] * n, text="", label=None, metadata={}) for n in (1, 2, 3, 4)]
    last = np.array([1.0, 0.5, np.nan, 1.0])
    counts = np.zeros(4, np.int64)
    history = RowHistory(groups=counts, mean=last, last=last, step=counts)
    weigh = Hook("curriculum", "curriculum:short_then_unsolved").function

    def weights(step: int) -> list[float]:
        call = CurriculumCall(source="", step=step, steps=50, rows=rows, history=history)
        return weigh(call).tolist()

    assert weights(5) == [1, 1, 0, 0]
    assert weights(6) == [0.1, 1, 1, 0.1]
