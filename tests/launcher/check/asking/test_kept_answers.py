"""The answers of the parsers and of the check of the rows are kept for the same question, and only for the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.launcher.recipes_for_tests import LLAMA, write_recipe
from verst.launcher.check.asking import kept_answers
from verst.launcher.check.asking.child import ChildFailedError
from verst.launcher.check.asking.kept_answers import (
    cache_folder,
    keep,
    parser_question,
    recall,
    rows_question,
)
from verst.launcher.check.model import parsers
from verst.launcher.check.model.arguments import parser_faults
from verst.launcher.check.model.description import description_if_any
from verst.launcher.check.model.engine_format import engine_format_faults
from verst.launcher.check.rows.ends import ends_that_differ
from verst.launcher.check.rows.rows import RowReport, row_report
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.load import load_recipe
from verst.runtime.data.models import character_tokenizer

FAULTS = [Fault("trainer.megatron.lr", "is -1 … must be positive")]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_recipe(tmp_path)


def asked(parser: str, *overrides: str) -> str:
    name = parser_question(parser, load_recipe(Path("recipe.yaml"), overrides))
    assert name is not None
    return name


def break_reading(file: str) -> None:
    """Makes a file that is there and whose reading fails: that of the memory at address 0."""
    Path(file).unlink(missing_ok=True)
    Path(file).symlink_to("/proc/self/mem")


def test_a_kept_answer_is_the_answer():
    keep("a" * 64, FAULTS)
    assert recall("a" * 64, list[Fault]) == FAULTS
    assert recall("b" * 64, list[Fault]) is None
    (cache_folder() / f"{'a' * 64}.json").write_text("[{")
    assert recall("a" * 64, list[Fault]) is None
    assert cache_folder().stat().st_mode & 0o777 == 0o700


def test_the_same_question_asks_no_parser(monkeypatch):
    recipe = load_recipe(Path("recipe.yaml"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("asked the parser"))
    keep(asked("megatron"), FAULTS)
    assert parser_faults("megatron", recipe) == FAULTS


@pytest.mark.parametrize(
    "override",
    ["trainer.megatron.lr=1e-5", "trainer.ranks_per_node=2", "model.dtype=bfloat16", "algorithm.steps=4"],
)
def test_what_megatron_sees_is_part_of_the_question(override):
    assert asked("megatron") == asked("megatron", "rollout.sampling.max_new_tokens=9", "name=other")
    assert asked("megatron") != asked("megatron", override)


def test_what_the_critic_and_the_teacher_are_is_part_of_the_question():
    gae = "algorithm.advantage=verst.runtime.algorithms.advantages:gae"
    plain = asked("megatron", gae, "algorithm.critic={}")
    for more in ("algorithm.critic.lr=1e-4", "algorithm.critic.optimizer={lr-warmup-iters: 9}"):
        assert asked("megatron", gae, "algorithm.critic={}", more) != plain
    assert asked("megatron", "algorithm.teacher={path: model}") != asked("megatron")


def test_what_sglang_sees_is_part_of_the_question():
    assert asked("sglang") == asked("sglang", "trainer.megatron.lr=1e-5", "algorithm.steps=4")
    assert asked("sglang") != asked("sglang", "rollout.sglang.tp-size=2")
    assert asked("sglang") != asked("megatron")


def test_the_model_folder_and_the_gpus_in_sight_are_part_of_the_question(monkeypatch):
    before = asked("megatron")
    Path("model/config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 4}))
    other = asked("megatron")
    assert other != before
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert asked("megatron") != other


def test_the_rows_are_read_again_when_anything_that_the_report_says_may_differ():
    def name(*overrides: str) -> str | None:
        return rows_question(load_recipe(Path("recipe.yaml"), overrides))

    first = name()
    assert first == name("name=other", "algorithm.steps=4")
    assert first != name("data.train.max_prompt_tokens=9")
    assert first != name("rollout.sampling.max_new_tokens=9")
    with Path("train.jsonl").open("a") as rows:
        rows.write('{"prompt": "1", "label": "2"}\n')
    second = name()
    assert second != first
    Path("template.jinja").write_text("{{ messages }}")
    with_template = name("data.train.chat_template_file=template.jinja")
    Path("template.jinja").write_text("{{ messages }} ")
    assert with_template != name("data.train.chat_template_file=template.jinja")
    config = Path("model/config.json")
    config.write_text(config.read_text() + " ")
    assert name() != second


def test_the_rows_are_read_again_when_another_file_that_the_report_depends_on_differs():
    def name() -> str | None:
        return rows_question(load_recipe(Path("recipe.yaml"), overrides))

    overrides = ("rollout.model_path=served", "data.train.path='[a].jsonl'")
    before = name()
    for file in (
        "served/config.json",
        "model/additional_chat_templates/other.jinja",
        "[a].jsonl",
    ):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("{}")
        first = name()
        Path(file).write_text("{} ")  # changes no folder's time
        second = name()
        assert len({before, first, second}) == 3, file
        before = second


def test_all_code_that_a_check_imports_is_part_of_the_question():
    program = (
        "import sys, verst.launcher.check.model.parsers, verst.launcher.check.rows.row_program\n"
        "for name, module in sys.modules.items():\n"
        "    if name.startswith('verst.') and getattr(module, '__file__', None):\n"
        "        print(module.__file__)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    files = [Path(file) for file in said.splitlines()]
    assert len(files) > 20
    assert [file for file in files if not any(map(file.is_relative_to, kept_answers._CODE))] == []


def test_a_report_with_faults_is_not_kept(monkeypatch):
    """Its cause may be the machine: a bound of memory, a package that is missing, a file system that hangs."""
    reports = [RowReport([Fault("model.path", "its tokenizer cannot be loaded: MemoryError")]), RowReport()]
    answers = (msgspec.json.encode(report).decode() for report in reports)
    monkeypatch.setattr("verst.launcher.check.rows.rows.ask", lambda *_: next(answers))
    recipe = load_recipe(Path("recipe.yaml"))
    assert [row_report(recipe) for _ in range(3)] == [*reports, reports[1]]


def test_a_check_that_failed_is_not_kept(monkeypatch):
    def fails(*_: object) -> str:
        raise ChildFailedError("could not be checked")

    recipe = load_recipe(Path("recipe.yaml"))
    monkeypatch.setattr("verst.launcher.check.model.arguments.ask", fails)
    assert len(parser_faults("megatron", recipe)) == 1
    monkeypatch.setattr("verst.launcher.check.model.arguments.ask", lambda *_: "[]")
    assert parser_faults("megatron", recipe) == []


def test_a_check_fails_where_a_file_of_the_model_cannot_be_read():
    """Were it an answer, it would be kept, and the model would count as checked."""
    recipe = load_recipe(Path("recipe.yaml"), ("rollout.model_path=served",))
    Path("served").mkdir()
    break_reading("served/config.json")
    with pytest.raises(OSError, match="Input/output error"):
        list(engine_format_faults(recipe))
    break_reading("model/model.safetensors")
    Path("served/config.json").unlink()
    with pytest.raises(OSError, match="Input/output error"):
        parsers._megatron(recipe)
    break_reading("model/generation_config.json")
    with pytest.raises(OSError, match="Input/output error"):
        list(ends_that_differ(recipe, Path("model"), character_tokenizer()))
    break_reading("model/config.json")
    with pytest.raises(OSError, match="Input/output error"):
        parsers._megatron(recipe)


def test_a_missing_or_damaged_configuration_is_left_to_another_check():
    assert description_if_any("model") is not None
    assert description_if_any("nowhere/at/all") is None
    Path("model/config.json").write_text("{")
    assert description_if_any("model") is None


@pytest.mark.long
def test_a_second_check_of_the_same_rows_starts_no_process(monkeypatch):
    recipe = load_recipe(Path("recipe.yaml"))
    first = row_report(recipe)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("read the rows again"))
    assert row_report(recipe) == first


def test_a_model_on_the_hub_is_asked_about_every_time():
    assert rows_question(load_recipe(Path("recipe.yaml"), ["model.path=some/model"])) is None


def test_an_own_family_is_asked_about_every_time():
    recipe = load_recipe(Path("recipe.yaml"), ["model.family=my_hooks:NUMBER"])
    assert parser_question("megatron", recipe) is None


def test_without_a_place_to_keep_answers_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    keep("a" * 64, FAULTS)
    assert recall("a" * 64, list[Fault]) is None


def test_many_writers_and_readers_never_see_half_an_answer():
    program = (
        "import sys\nfrom verst.launcher.check.asking.kept_answers import keep, recall\n"
        "from verst.launcher.recipe.faults import Fault\n"
        "faults = [Fault('a', 'x' * 100_000)]\n"
        "for n in range(100):\n"
        "    keep('c' * 64, faults)\n"
        "    assert recall('c' * 64, list[Fault]) == faults\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(list(cache_folder().iterdir())) == 1
