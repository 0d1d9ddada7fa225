"""The page of evaluations: a curve with its interval for each figure of each set, and answers side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runtime.dashboard.conftest import served
from tests.runtime.dashboard.run_folders import BEGAN, append, keep_samples
from verst.runtime.run.folder import RunFolder

if os.environ.get("CI") not in ("true", "1"):  # there it must run
    pytest.importorskip("playwright", reason="the dev extra has it")

from playwright.sync_api import Browser, expect

from tests.runtime.dashboard.browser import last_value, opened, started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def evaluated(folder: RunFolder) -> RunFolder:
    """Six evaluations of two sets; the set code has other rows, and no interval."""
    for step in range(0, 12, 2):
        line = {"time": BEGAN + step, "kind": "eval", "when": "during", "step": step}
        append(folder.metrics, line | {"set": "code", "reward": 0.5, "response_length": 9.0})
        append(folder.metrics, line | {"set": "math", "reward": step / 20, "reward_ci": 0.05, "pass@8": 0.75})
        keep_samples(folder, step, *(answer("math", row, index, step) for row in (0, 1) for index in (0, 1)),
                     answer("code", 0, 0, step), kind="eval")  # fmt: skip
    return folder


def answer(set: str, row: int, index: int, step: int) -> dict[str, Any]:
    text = f"{set} {row}.{index} at {step}"
    return {
        "step": step, "when": "during", "set": set, "group": row, "index": index, "prompt": f"{set} {row}?",
        "label": row, "metadata": {}, "response": text, "reward": index / 2,
    }  # fmt: skip


def test_the_answers_to_a_prompt_at_each_step(evaluated, visit):
    client = visit(evaluated)
    first = client.get("/api/evals").json()
    assert (first["sets"], first["set"], first["row"]) == (["math", "code"], "math", 0)
    assert first["prompts"] == [[0, "math 0?"], [1, "math 1?"]]
    other = client.get("/api/evals", params={"set": "math", "row": 1}).json()
    assert [s["step"] for s in other["steps"]] == [0, 2, 4, 6, 8, 10]
    assert other["steps"][2]["answers"] == [
        {"response": "math 1.0 at 4", "reward": 0.0},
        {"response": "math 1.1 at 4", "reward": 0.5},
    ]
    assert client.get("/api/evals", params={"set": "code"}).json()["steps"][0]["prompt"] == "code 0?"
    assert client.get("/api/evals", params={"row": "x"}).status_code == 400


def test_a_run_without_kept_answers_has_none(folder, visit):
    assert visit(folder).get("/api/evals").json() == {
        "sets": [], "set": None, "prompts": [], "row": None, "steps": [],
    }  # fmt: skip


def test_curves_by_set_and_answers_side_by_side(browser, evaluated):
    with served(evaluated) as server, opened(browser, server) as seen:
        page = seen.page
        page.locator('#tabs [data-view="evals"]').click()
        assert last_value(page, "math: reward", "reward") == "0.5"
        assert last_value(page, "math: reward", "95 % interval, from") == "0.45"
        assert last_value(page, "math: pass@8", "pass@8") == "0.75"
        assert last_value(page, "code: response length", "response length") == "9"
        columns = page.locator(".besides > [data-step]")
        expect(columns).to_have_count(4)  # of six
        assert [c.get_attribute("data-step") for c in columns.all()] == ["0", "4", "6", "10"]
        expect(columns.first).to_contain_text("math 0.0 at 0")
        expect(columns.last).to_contain_text("math 0.1 at 10")
        page.get_by_label("prompt").select_option("1")
        expect(columns.last).to_contain_text("math 1.1 at 10")
        page.locator('input[value="2"]').check()
        expect(columns).to_have_count(5)
        expect(page.locator('[data-part="prompt"]')).to_have_text("math 1?")
        page.get_by_label("evaluation set").select_option("code")
        expect(columns.last).to_contain_text("code 0.0 at 10")
        seen.assert_clean()
