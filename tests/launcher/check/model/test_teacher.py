"""A teacher that the trainer cannot hold, or whose tokens are others, is found before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.launcher.model_folders import llama_shapes, write_safetensors
from tests.launcher.recipes_for_tests import LLAMA, MACHINE, parsed, write_recipe
from verst.launcher.check.asking.kept_answers import parser_question, rows_question
from verst.launcher.check.check import check_recipe
from verst.launcher.check.rows.teacher_tokens import teacher_token_faults
from verst.launcher.plan.memory import estimate_memory
from verst.launcher.plan.parallelism import megatron_parallelism
from verst.launcher.recipe.faults import RecipeError
from verst.launcher.recipe.load import load_recipe
from verst.runtime.data.tokenizer import load_tokenizer

TEACHER = "algorithm.teacher.path=teacher"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a model, and beside it a folder `teacher` with a larger one of the same tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_recipe(tmp_path)
    shutil.copytree("model", "teacher")
    write_teacher(hidden_size=32, num_hidden_layers=3)
    return tmp_path


def write_teacher(**shape: int) -> None:
    config = {**LLAMA, **shape}
    Path("teacher/config.json").write_text(json.dumps(config))
    write_safetensors(Path("teacher/model.safetensors"), llama_shapes(config))


def test_a_larger_teacher_is_planned_and_takes_memory(here: Path) -> None:
    taught = parsed(TEACHER)
    assert [fault for fault in check_recipe(taught, MACHINE) if "teacher" in fault.place] == []
    grid = megatron_parallelism({}, 1)
    alone, both = (estimate_memory(recipe, Path("model"), grid) for recipe in (parsed(), taught))
    assert alone is not None
    assert both is not None
    stored = Path("teacher/model.safetensors").stat().st_size
    assert both.trainer_rank - alone.trainer_rank == pytest.approx(stored, rel=0.05)  # both are in float32
    assert both.engine_rank == alone.engine_rank


def test_a_folder_that_is_not_there_is_named(here: Path) -> None:
    found = check_recipe(parsed("algorithm.teacher.path=nowhere"), MACHINE)
    (fault,) = [fault for fault in found if fault.place == "algorithm.teacher.path"]
    assert "'nowhere': there is no such folder" in fault.message


def test_another_tokenizer_is_refused_by_a_token(here: Path) -> None:
    tokenizer = load_tokenizer(Path("model"))
    assert teacher_token_faults(parsed(TEACHER), tokenizer) == []
    path = Path("teacher/tokenizer.json")
    whole = json.loads(path.read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(whole))
    (fault,) = teacher_token_faults(parsed(TEACHER), tokenizer)
    assert fault.place == "algorithm.teacher.path"
    ours = tokenizer.get_vocab()
    assert "2 tokens differ" in fault.message
    assert f"such as 'a', which has the id {ours['a']} there and the id {ours['b']} here" in fault.message


def test_the_answers_of_the_checks_are_not_kept_over_another_teacher(here: Path) -> None:
    def questions() -> list[str | None]:
        recipe = parsed(TEACHER)
        return [parser_question("megatron", recipe), rows_question(recipe)]

    before = questions()
    assert before == questions()
    write_teacher(hidden_size=48)
    assert all(now not in (None, was) for now, was in zip(questions(), before, strict=True))


def test_without_a_reward_the_teacher_decides_alone(here: Path) -> None:
    """An answer is then enough for a prompt; only evaluations still need a reward."""
    text = Path("recipe.yaml").read_text().replace("  reward: my_hooks:reward\n", "")
    Path("recipe.yaml").write_text(text)
    assert [fault.place for fault in check_recipe(parsed(), MACHINE)] == ["rollout.reward"]
    assert check_recipe(parsed(TEACHER, "algorithm.samples_per_prompt=1"), MACHINE) == []
    found = check_recipe(parsed(TEACHER, "data.eval.path=train.jsonl"), MACHINE)
    assert [fault.place for fault in found] == ["rollout.reward"]
    scored = parsed(TEACHER, "data.eval={path: train.jsonl, reward: my_hooks:reward}")
    assert check_recipe(scored, MACHINE) == []


def test_zero_advantages_are_not_left_out_beside_a_teacher(here: Path) -> None:
    with pytest.raises(RecipeError, match="skip_zero_advantage is true, but the teacher gives"):
        load_recipe(Path("recipe.yaml"), [TEACHER, "algorithm.skip_zero_advantage=true"])


@pytest.mark.long  # imports torch and Megatron
@pytest.mark.parametrize(
    ("shape", "megatron", "words"),
    [
        ({"hidden_size": 32}, {}, None),
        (
            {"vocab_size": 60},
            {},
            "it has 60 token ids and model.path 64, so it knows nothing of some of them",
        ),
        ({"num_hidden_layers": 3}, {"pipeline-model-parallel-size": 2}, "it does not fit trainer.megatron: "),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_with_the_reason(
    here: Path, shape: dict[str, int], megatron: dict[str, int], words: str | None
) -> None:
    from verst.launcher.check.model.teacher import teacher_faults

    write_teacher(**shape)
    recipe = parsed(TEACHER, *(f"trainer.megatron.{key}={value}" for key, value in megatron.items()))
    found = teacher_faults(recipe, 2 if megatron else 1, LLAMA["vocab_size"])
    assert [fault.place for fault in found] == ([] if words is None else ["algorithm.teacher.path"])
    assert words is None or words in found[0].message
