"""The list of runs, several runs in one chart, and the lives of a run, in a real browser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import msgspec
import pytest

from tests.runtime.dashboard.conftest import served, visitor
from tests.runtime.dashboard.run_folders import BEGAN, append, make_folder, step
from verst.runtime.node.agent.stacks import answer_path, asked_path
from verst.runtime.node.machine_use import MachineUse, use_path
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder

if os.environ.get("CI") not in ("true", "1"):  # there it must run
    pytest.importorskip("playwright", reason="the dev extra has it")

from playwright.sync_api import Browser, expect

from tests.runtime.dashboard.browser import opened, started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def two(folder, tmp_path) -> tuple[RunFolder, RunFolder]:
    """Beside the run "quick" (three steps, running) a run "other" with another rate, which has failed."""
    other = make_folder(tmp_path / "other", steps=9)
    other.recipe.write_text(
        "name: other\nalgorithm: {steps: 9, mode: sync, lr: 2}\nmodel: {path: /models/tiny}\n"
        "checkpoint: {best: {set: held_out}}\n"
    )
    append(other.metrics, *(step(n, time=BEGAN + 3600 * n, reward=n / 10) for n in range(1, 6)))
    append(other.metrics, step(2, time=BEGAN + 3600 * 6, reward=0.75))  # made again after a resumption
    append(
        other.metrics,
        {
            "time": BEGAN,
            "kind": "eval",
            "step": 5,
            "set": "held_out",
            "when": "during",
            "reward": 0.5,
            "samples": 4,
        },
    )
    write_end(other, RunEnd(1, "trainer-0 failed", 0))
    (tmp_path / "no-run").mkdir()
    return folder, other


def test_a_line_for_each_run_of_the_folder(two):
    with served(two[0]) as server, visitor(server) as client:
        found = client.get("/api/runs").json()
        assert (found["chosen"], found["root"]) == ("quick", str(two[0].root.parent))
        lines = {line["name"]: line for line in found["runs"]}
        assert set(lines) == {"quick", "other"}
        assert (lines["quick"]["state"], lines["quick"]["step"], lines["quick"]["steps_planned"]) == (
            "running",
            3,
            4,
        )
        other = lines["other"]
        assert (other["state"], other["why"], other["model"]) == ("failed", "trainer-0 failed", "tiny")
        assert (other["held_out"], other["held_out_step"], other["steps_planned"]) == (0.5, 5, 9)
        assert client.get("/api/runs", params={"brief": 1}).json()["runs"] == []


def test_each_request_names_its_run_and_no_other_folder_is_reached(two, tmp_path):
    secret = make_folder(tmp_path.parent / f"{tmp_path.name}-outside")
    with served(two[0]) as server, visitor(server) as client:
        assert client.get("/api/poll").json()["run"]["steps_planned"] == 4
        assert client.get("/api/poll", params={"run": "other"}).json()["run"]["steps_planned"] == 9
        assert "lr: 2" in client.get("/api/recipe", params={"run": "other"}).text
        for name in (
            f"../{secret.root.name}",
            secret.root.name,
            str(secret.root),
            "..",
            ".",
            "no-run",
            "other\0",
        ):
            assert client.get("/api/recipe", params={"run": name}).status_code == 404, name


def test_a_curve_of_another_run_counts_each_step_once_and_says_what_it_has(two):
    with served(two[0]) as server, visitor(server) as client:
        found = client.get("/api/curve", params={"run": "other"}).json()
        assert found["step"] == [1, 2, 3, 4, 5]
        assert found["value"] == [0.1, 0.75, 0.3, 0.4, 0.5]
        assert found["more"] is False
        assert {"reward", "loss", "seconds/train"} <= set(found["figures"])
        assert "bottleneck" not in found["figures"]
        held = client.get(
            "/api/curve", params={"run": "other", "kind": "eval", "figure": "held_out/reward"}
        ).json()
        assert (held["step"], held["value"]) == ([5], [0.5])
        assert client.get("/api/curve", params={"figure": "no_such"}).json()["value"] == [None] * 3
        rows = client.get("/api/differences", params=[("run", "quick"), ("run", "other")]).json()[
            "differences"
        ]
        assert rows == [
            ["algorithm.steps", "4", "9"],
            ["algorithm.lr", "not set", "2"],
            ["model.path", "not set", "/models/tiny"],
        ]


def test_several_runs_in_one_chart(browser, two):
    with served(two[0]) as server, opened(browser, server, "runs") as seen:
        page = seen.page
        row = page.locator('tr[data-run="other"]')
        expect(row).to_contain_text("failed")
        expect(row).to_contain_text("0.5 at 5")
        page.get_by_label("compare quick").check()
        page.get_by_label("compare other").check()
        chart = page.get_by_role("region", name="Comparison")
        expect(chart.locator(".legend")).to_contain_text(re.compile(r"quick 0\.3929.*other 0\.5"))
        expect(page.locator("#main")).to_contain_text("algorithm.lr")
        page.get_by_label("figure").select_option("step loss")
        expect(chart.locator(".legend")).to_contain_text("quick 0.01235")
        page.get_by_label("figure").select_option("step reward")
        page.get_by_label("over").select_option("hours")
        area = chart.locator(".u-over").bounding_box()
        page.mouse.move(area["x"] + area["width"] - 2, area["y"] + 20)
        expect(chart.locator(".legend")).to_contain_text(
            "at 5"
        )  # the step that was made again, five hours later
        page.get_by_role("link", name="other").click()
        expect(page.locator("#name")).to_have_text("other")
        expect(page.locator("#progress")).to_contain_text("5 / 9 steps")
        seen.assert_clean()


def test_a_folder_of_runs_begins_with_the_list(browser, two):
    with served(two[0].root.parent) as server, opened(browser, server) as seen:
        expect(seen.page.locator("table.runs tbody tr")).to_have_count(2)
        seen.assert_clean()


def test_the_lives_of_a_run_and_what_changed(browser, folder):
    (folder.root / "recipes").mkdir()
    for life, steps in enumerate((4, 8)):
        (folder.root / "recipes" / f"life-{life}.yaml").write_text(f"algorithm: {{steps: {steps}}}\n")
    append(
        folder.events,
        {
            "time": BEGAN + 4, "generation": 0, "kind": "process_failed", "reason": "trainer-0 failed: killed",
            "lines": ["its last words"],
        },
        {"time": BEGAN + 60, "generation": 1, "kind": "resume", "message": "resuming from step-000003"},
    )  # fmt: skip
    folder.start_generation()
    with served(folder) as server, opened(browser, server, "events") as seen:
        lives = seen.page.locator(".life")
        expect(lives).to_have_count(2)
        expect(lives.first.locator(".changes tbody tr")).to_have_text(re.compile("algorithm.steps48"))
        expect(lives.nth(1)).to_contain_text("Failed first: trainer-0 failed: killed")
        expect(lives.nth(1).locator("pre")).to_have_text("its last words")
        seen.assert_clean()


@pytest.mark.long
def test_nodes_and_the_stack_of_a_process(browser, folder):
    use = MachineUse(
        host="gpu-7", cpus=64, cpu=0.25, load=3.5, memory_used=99 << 30, memory_total=100 << 30,
        folder_free=5 << 30, folder_total=9 << 30, scratch_free=1 << 30, scratch_total=2 << 30,
    )  # fmt: skip
    use_path(folder, "trainer", 0).parent.mkdir()
    use_path(folder, "trainer", 0).write_bytes(msgspec.json.encode(use))
    with served(folder) as server, opened(browser, server, "processes") as seen:
        page = seen.page
        node = page.locator('tr[data-node="trainer/0"]')
        expect(node).to_contain_text("gpu-7")
        expect(node).to_contain_text("25 % of 64")
        expect(node.locator(".pill.bad")).to_have_text("99 GiB / 100 GiB")
        page.locator("tr.pick", has_text="trainer-0").click()
        page.get_by_role("button", name="Take its stack").click()
        for _ in range(100):
            if asked_path(folder, "trainer-0").exists():
                break
            page.wait_for_timeout(50)
        answer_path(folder, "trainer-0").write_text("process 100\n  File reward.py, line 7, in my_reward")
        expect(page.locator("tr.opened")).to_contain_text("in my_reward")
        append(
            folder.events,
            {"time": BEGAN, "generation": 0, "kind": "engine_ready", "message": "engine 0 serves"},
        )
        page.wait_for_timeout(2500)  # the table is drawn again, and what is open stays open
        expect(page.locator("tr.opened")).to_contain_text("in my_reward")
        seen.assert_clean()
