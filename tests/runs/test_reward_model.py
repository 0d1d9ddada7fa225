"""Whole runs of recipes/reward-model.yaml: pairs teach a score, and its export has it, also over an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.test_preferences import three_digits  # noqa: F401  # a fixture
from tests.runs.verst_run import ROOT, VerstRun, assert_same_stage
from verst.runtime.data.records import read_records
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.metrics.glossary import find


def of_scores(model: Path, folder: Path, *overrides: str) -> VerstRun:
    files = (
        f"model.path={model}",
        f"algorithm.stages.0.data.path={model}/preferences.jsonl",
        f"algorithm.stages.0.eval.path={model}/eval_preferences.jsonl",
    )
    return VerstRun(str(ROOT / "recipes/reward-model.yaml"), folder, (*files, *overrides))


@pytest.mark.long
@pytest.mark.timeout(1900)
def test_pairs_teach_a_score_and_the_export_gives_the_same_one(three_digits: Path, tmp_path: Path) -> None:  # noqa: F811
    import torch
    from transformers import AutoModelForSequenceClassification

    run = of_scores(three_digits, tmp_path / "run")
    run.finish(timeout=1800)
    held_out = run.lines("stage_eval")
    first, last = held_out[0], held_out[-1]
    assert (first["step"], first["reward_model_accuracy"], first["rows"]) == (0, 0.0, 100)
    assert first["reward_model_loss"] == pytest.approx(0.6931, abs=1e-4)  # log 2: all scores are 0
    assert last["reward_model_accuracy"] > 0.85, held_out
    assert [key for key in last if find("stage_eval", key) is None] == []
    steps = run.lines("stage_step")
    assert [key for key in steps[-1] if key != "seconds" and find("stage_step", key) is None] == []

    tokenizer = load_tokenizer(str(three_digits))
    model = AutoModelForSequenceClassification.from_pretrained(run.folder / "export", dtype=torch.float32)
    scores = []
    for _, row in read_records(str(three_digits / "eval_preferences.jsonl")):
        asked = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        for answer in (row["chosen"], row["rejected"]):
            text = f"{prompt}{answer}<|end|>"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                scores.append(model(ids).logits.item())
    chosen, rejected = torch.tensor(scores).view(-1, 2).T
    assert (chosen > rejected).float().mean().item() == pytest.approx(
        last["reward_model_accuracy"], abs=0.011
    )
    assert chosen.mean().item() == pytest.approx(last["reward_model_chosen_score"], abs=1e-4)
    assert rejected.mean().item() == pytest.approx(last["reward_model_rejected_score"], abs=1e-4)


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_a_killed_run_goes_on_bit_for_bit(three_digits: Path, tmp_path: Path) -> None:  # noqa: F811
    def run(name: str) -> VerstRun:
        short = ("algorithm.stages.0.steps=5", "algorithm.stages.0.batch_size=8", "checkpoint.interval=1")
        return of_scores(three_digits, tmp_path / name, *short)

    whole, killed = run("whole"), run("killed")
    whole.finish()
    killed.kill_and_resume("stage_step", 3)
    assert_same_stage(killed, whole)
