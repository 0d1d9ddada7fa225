"""The functions in the pages of the guide run as they stand: the plan takes them, and they do what the page says."""

from __future__ import annotations

import asyncio
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.check.lines import check_lines
from tests.launcher.recipes_for_tests import write_recipe
from tests.runtime.sample_factory import make_group
from verst.runtime.rewards import Answer, Score

DOCS = Path(__file__).parents[2] / "docs"
# What a page's recipe has to say beside the names of its functions.
WITH: dict[str, tuple[str, ...]] = {
    "algorithm.kl": ("algorithm.kl_coef=0.1",),
    "algorithm.correction": ("trainer.old_logprobs=recompute",),
}


def functions_of(page: str, folder: Path) -> dict[str, str]:
    """The blocks of Python of a page as one module: the name of each function -> its dotted path."""
    name = page.removesuffix(".md").replace("-", "_") + "_page"
    text = "\n\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
    (folder / f"{name}.py").write_text(text)
    return {found: f"{name}:{found}" for found in re.findall(r"^(?:async )?def (\w+)", text, re.MULTILINE)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_recipe(tmp_path)
    return tmp_path


def function_of(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def test_the_plan_takes_every_function_of_the_page_on_hooks(here: Path) -> None:
    paths = functions_of("hooks.md", here)
    rounds = [
        {
            "rollout.reward": "correct",
            "rollout.group_reward": "longest_loses",
            "rollout.generate": "with_calculator",
            "rollout.filter": "mixed",
            "rollout.sample_filter": "no_repetition",
            "algorithm.advantage": "centred",
            "algorithm.logprob_filter": "near",
            "algorithm.loss": "clipped",
            "algorithm.correction": "at_most_two",
            "algorithm.kl": "half_square",
            "hooks.metrics": "longest",
        },
        {
            "rollout.reward": "correct_and_brief",
            "rollout.filter": "not_too_easy",
            "algorithm.advantage": "without_truncated",
            "algorithm.loss": "sequence_ratio",
            "algorithm.loss_average": "by_prompt",
        },
    ]
    named = {name for each in rounds for name in each.values()}
    assert set(paths) - named == {"repeats"}, "a helper of no_repetition; every other function is a hook"
    for each in rounds:
        more = [option for key in each for option in WITH.get(key, ())]
        assert check_lines(*(f"{key}={paths[name]}" for key, name in each.items()), *more) == []


def test_rewards_and_filters_of_the_page_on_hooks_return_what_it_says(here: Path) -> None:
    paths = functions_of("hooks.md", here)
    answer = Answer(text=" 7\n", label="7", ids=[1] * 512)
    assert function_of(paths["correct"])(answer) == 1.0
    assert function_of(paths["correct_and_brief"])(answer) == Score(0.95, {"right": 1.0, "brief": -0.5})
    answers = [Answer(text="", ids=[1] * n, score=Score(1.0)) for n in (3, 5)]
    assert function_of(paths["longest_loses"])(answers) == [1.0, 0.9]
    group = make_group(0)
    for sample in group.samples:
        sample.metadata["text"] = "no " * 60
    assert function_of(paths["no_repetition"])(group) == ["mask"] * len(group.samples)
    alike = len({sample.reward for sample in group.samples}) == 1
    assert function_of(paths["mixed"])(group) is not alike


def test_the_rewards_of_the_page_on_rewards_pass_the_test_on_it(here: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "your-reward.md").read_text(), re.DOTALL)
    (rewards,) = (block for block in blocks if block.startswith("# my_rewards.py"))
    (test,) = (block for block in blocks if "def test_correct" in block)
    (here / "my_rewards.py").write_text(rewards)
    (here / "page_test.py").write_text(test)
    function_of("page_test:test_correct")()
    (with_labels,) = (block for block in blocks if "@checks_labels" in block)
    (here / "with_labels.py").write_text(with_labels)
    (here / "train.jsonl").write_text('{"prompt": "a", "label": "18 apples"}\n')
    (line,) = check_lines("rollout.reward=with_labels:correct", "data.train.label_key=label")
    assert "the label '18 apples' is no number" in line


def test_functions_of_other_pages_are_what_they_say(here: Path) -> None:
    paths = functions_of("evaluation.md", here) | functions_of("episodes.md", here)
    assert function_of(paths["last_number"])("3 or -12 apples") == "-12"
    assert function_of(paths["last_number"])("none") is None
    assert check_lines("rollout.reward=null", f"rollout.generate={paths['brief']}") == []
    assert asyncio.iscoroutinefunction(function_of(paths["solve"]))
