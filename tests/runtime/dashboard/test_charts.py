"""What a chart says beside its curve: meanings, the time of day, the spread of rewards, a user's own figures, files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.watch.durations import DURATIONS
from tests.runtime.dashboard.conftest import served
from tests.runtime.dashboard.run_folders import BEGAN, append, keep_samples, make_folder, sample, step
from verst.runtime.metrics.glossary import find, words

if os.environ.get("CI") not in ("true", "1"):  # there it must run
    pytest.importorskip("playwright", reason="the dev extra has it")

from playwright.sync_api import Browser, Page, expect

from tests.runtime.dashboard.browser import chart, last_value, opened, started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


def downloaded(page: Page, title: str, kind: str) -> tuple[str, bytes]:
    """The name and the content of the file that a chart is saved as."""
    chart(page, title).locator("summary").click()
    with page.expect_download() as download:
        chart(page, title).get_by_role("button", name=f"download {title} as {kind}").click()
    chart(page, title).locator("summary").click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_times_are_rounded_before_they_are_split(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        script = """async all => {
          const { duration, bytes, number } = await import("./static/dom.js");
          const sizes = [1023.7 * 1024, 9.97 * 1024, 5 * 1024 ** 4].map(s => bytes(s));
          return [all.map(duration), sizes, [999.96, 0.00099999].map(n => number(n))];
        }"""
        told, sizes, numbers = seen.page.evaluate(
            script, [seconds for seconds, _ in DURATIONS] + [0.0999, 0.997, 9.96]
        )
        assert told == [text for _, text in DURATIONS] + ["0.10 s", "1.0 s", "10 s"]
        assert sizes == ["1.0 MiB", "10 KiB", "5.0 TiB"]
        assert numbers == ["1,000", "0.001"]


def test_every_figure_says_what_it_means(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        for label, key in (
            ("Reward", "reward"),
            ("Staleness", "staleness"),
            ("Trained tok/s", "tokens_per_s"),
        ):
            tile = page.locator(f'[data-tile="{label}"]')
            assert tile.get_attribute("title") == words(find("step", key))
        untold = [t.get_attribute("data-tile") for t in page.locator(".tile:not([title])").all()]
        assert untold == []
        for region in page.locator(".chart:visible").all():
            assert region.locator("h2").get_attribute("title"), region.get_attribute("aria-label")
        meaning = chart(page, "Groups that teach nothing").locator(".meaning")
        expect(meaning).to_be_hidden()
        chart(page, "Groups that teach nothing").get_by_role("button", name="means").click()
        expect(meaning).to_contain_text(f"all wrong: {words(find('step', 'groups_all_wrong'))}")
        rows = page.locator("section[aria-label='where the time goes'] tbody tr")
        assert [row.inner_text() for row in rows.all() if not row.get_attribute("title")] == []
        seen.assert_clean()


@pytest.mark.long
def test_the_spread_of_rewards_and_the_groups_that_teach_nothing(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        assert last_value(page, "Groups that teach nothing", "all right") == "10"
        assert last_value(page, "Groups that teach nothing", "all wrong") == "20"
        assert last_value(page, "Groups that teach nothing", "equal rewards") == "30"
        assert last_value(page, "Rewards of a step", "median") == "0.5"
        tables = page.locator(".bars")
        assert [t.get_attribute("data-step") for t in tables.all()] == ["3", "1"]
        rows = [row.split() for row in tables.first.locator("tr").all_inner_texts()]
        assert rows == [["0", "28", "%"], ["0.5", "56", "%"], ["1", "17", "%"]]  # 5, 10 and 3 of 18
        widths = [bar.bounding_box()["width"] for bar in tables.first.locator("i").all()]
        assert widths[1] == pytest.approx(2 * widths[0], rel=0.02)
        assert widths[1] > 0.3 * tables.first.bounding_box()["width"]  # 56 % of the bars' column
        seen.assert_clean()


@pytest.mark.long
def test_figures_of_a_hook_have_a_part_of_their_own(browser, folder):
    append(folder.metrics, step(4, own={"format": 0.5, "length_penalty": 0.25}))
    with served(folder) as server, opened(browser, server) as seen:
        own = seen.page.get_by_role("region", name="your own figures")
        expect(own.locator(".chart")).to_have_count(2)
        titles = [region.get_attribute("aria-label") for region in own.locator(".chart").all()]
        assert titles == ["own/format", "own/length penalty"]
        assert last_value(seen.page, "own/format", "own/format") == "0.5"
        seen.assert_clean()


@pytest.mark.long
def test_charts_over_the_time_of_day(browser, tmp_path):
    folder = make_folder(tmp_path / "run", steps=9)
    append(folder.metrics, *(step(n, time=BEGAN + 600 * n, loss=float(n)) for n in range(1, 10)))
    with served(folder) as server, opened(browser, server, timezone_id="UTC") as seen:
        page = seen.page
        page.get_by_label("axis").select_option("time")
        area = chart(page, "Loss").locator(".u-over").bounding_box()
        page.mouse.move(area["x"] + area["width"] - 1, area["y"] + 20)
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(BEGAN + 600 * 9))
        expect(chart(page, "Entropy").locator(".legend")).to_contain_text(f"step 9, {at}")
        page.mouse.move(area["x"] + 1, area["y"] + 20)
        expect(chart(page, "Loss").locator(".legend")).to_contain_text("loss 1")
        page.get_by_label("axis").select_option("step")
        page.mouse.move(area["x"] + 2, area["y"] + 20)
        expect(chart(page, "Loss").locator(".legend")).to_contain_text(re.compile(r"step 1$"))
        seen.assert_clean()


@pytest.mark.long
def test_a_chart_is_saved_as_numbers_and_as_a_picture(browser, folder):
    with served(folder) as server, opened(browser, server, accept_downloads=True) as seen:
        name, data = downloaded(seen.page, "Loss", "CSV")
        assert name == "quick-loss.csv"
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        assert [row["step"] for row in rows] == ["1", "2", "3"]
        assert [float(row["loss"]) for row in rows] == [0.0123457, -0.0123457, 0.0123457]
        assert [float(row["time"]) for row in rows] == [BEGAN + n for n in (1, 2, 3)]
        name, data = downloaded(seen.page, "Reward", "JSON")
        columns = json.loads(data)["columns"]
        assert columns["held-out"] == [0.25, None, None, None]
        assert columns["step"] == [0, 1, 2, 3]
        name, data = downloaded(seen.page, "Phases", "PNG")
        assert name == "quick-phases.png"
        assert data.startswith(b"\x89PNG")
        assert len(data) > 2000
        seen.assert_clean()


def test_label_and_metadata_of_samples_and_the_held_out_answers(browser, folder):
    keep_samples(folder, 3, sample(3, 0, label="7", metadata={"level": "easy"}))
    held = {"tokens": [], "rollout_logprobs": [], "trainer_logprobs": [], "advantage": None, "when": "before"}
    keep_samples(folder, 0, sample(0, 0, **held, label=[1, 2], response="held-out answer"), kind="eval")
    with served(folder) as server, opened(browser, server, "samples") as seen:
        page = seen.page
        expect(page.locator('[data-given="Label"]')).to_contain_text("7")
        expect(page.locator('[data-given="Metadata"]')).to_contain_text('"level": "easy"')
        page.get_by_label("kind of samples").select_option("eval")
        expect(page.locator('[data-given="Label"] .text')).to_have_text(re.compile(r"\[\s*1,\s*2\s*\]"))
        expect(page.locator("#main")).to_contain_text("held-out answer")
        expect(page.get_by_label("step", exact=True).locator("option:checked")).to_have_text(
            "0 (before training)"
        )
        assert page.locator(".pill", has_text="advantage").count() == 0
        seen.assert_clean()
