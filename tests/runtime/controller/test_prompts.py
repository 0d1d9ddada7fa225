"""Jobs and demonstrations depend on their number alone, and what cannot be used is counted or refused by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import PolicyStage, SftFileConfig, SftStage
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.prompts import PromptSource
from verst.runtime.data.config import DataConfig, EvalConfig, TrainConfig
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.records import DataError
from verst.runtime.messages.group_ids import group_id
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.node.config import PlacementConfig
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.trainer.config import CheckpointConfig, TrainerConfig
from verst.sync.config import WeightsConfig


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder: Path, budget: int = 8192) -> ControllerConfig:
    """Seven training rows and three of evaluation; two and one of them are too long. A character is a token."""
    character_tokenizer().save_pretrained(folder / "model")
    (folder / "model/config.json").write_text("{}")
    rows = [{"prompt": "1" * (30 if n in (2, 5) else n + 1), "label": str(n)} for n in range(7)]
    plain = {"max_prompt_tokens": 20, "chat_template": False}
    shown = [{"prompt": "1", "response": "2" * n} for n in (1, 9)]
    data = SftFileConfig(path=write(folder / "shown.jsonl", shown), chat_template=False)
    stages = [SftStage(kind="sft", data=data, steps=1), PolicyStage(kind="policy")]
    return ControllerConfig(
        model=ModelConfig(path=str(folder / "model")),
        data=DataConfig(
            train=TrainConfig(path=write(folder / "train.jsonl", rows), **plain),
            eval=EvalConfig(path=write(folder / "eval.jsonl", rows[:3]), **plain),
        ),
        algorithm=AlgorithmConfig(steps=3, prompts_per_step=2, samples_per_prompt=3, stages=stages),
        rollout=RolloutConfig(reward="unused:here"),
        trainer=TrainerConfig(max_tokens_per_microbatch=budget),
        weights=WeightsConfig(),
        checkpoint=CheckpointConfig(),
        metrics=MetricsConfig(),
        placement=PlacementConfig(),
    )


def test_a_prompt_that_is_issued_again_has_the_same_row_and_other_seeds(tmp_path: Path) -> None:
    source = PromptSource(config(tmp_path))
    first, again, third = (source.job(group_id(3, reissue), evaluation=False) for reissue in range(3))
    assert first.prompt == again.prompt == third.prompt
    assert len({seed for job in (first, again, third) for seed in job.seeds}) == 9
    assert again == PromptSource(config(tmp_path)).job(group_id(3, 1), evaluation=False), (
        "also after a resume"
    )
    assert [job.id for job in (first, again)] == [3, 1_000_000_000_003]


def test_rows_that_are_too_long_are_told_for_each_file(tmp_path: Path) -> None:
    source = PromptSource(config(tmp_path))
    record = source.record()
    assert [(record[key].too_long, record[key].rows) for key in ("data.train", "data.eval")] == [
        (2, 5),
        (1, 2),
    ]
    assert source.held_out.left_out == {"held_out": 1}


def test_jobs_carry_the_longest_sample_that_can_be_trained_on(tmp_path: Path) -> None:
    source = PromptSource(config(tmp_path))
    source.limit(64)
    assert source.job(0, evaluation=False).max_tokens == 64
    assert source.job(0, evaluation=True).max_tokens is None, "an evaluation trains nothing"


def test_a_row_of_a_stage_that_no_micro_batch_holds_is_left_out_or_refused_by_its_line(
    tmp_path: Path,
) -> None:
    """One token of the prompt, one or nine of the response, and its end: three or eleven."""
    source = PromptSource(config(tmp_path))
    source.limit(11)
    with pytest.raises(
        DataError, match=r"shown\.jsonl:2 has 11 tokens, and a micro-batch holds 10, .* to 10, which"
    ):
        source.limit(10)
    record = PromptSource(config(tmp_path, budget=10)).record()["algorithm.stages.0.data"]
    assert (record.rows, record.too_long) == (1, 1)


@pytest.mark.parametrize(
    ("budget", "multiple", "longest"), [(145, 1, 145), (145, 4, 144), (8190, 32, 8160), (64, 64, 64)]
)
def test_the_longest_sample_leaves_room_for_padding(tmp_path: Path, budget, multiple, longest) -> None:
    made = config(tmp_path, budget)
    assert made.max_sample_tokens(multiple) == longest
    assert made.settings([], longest).max_sample_tokens == longest


@pytest.mark.parametrize(("prompts", "given", "most"), [(4, None, 1000), (512, None, 5120), (512, 7, 7)])
def test_the_bound_on_dropped_groups_grows_with_the_step(tmp_path: Path, prompts, given, most) -> None:
    made = config(tmp_path)
    made.algorithm.prompts_per_step = prompts
    made.rollout.max_dropped_in_a_row = given
    assert made.settings([], 64).max_dropped_in_a_row == most
