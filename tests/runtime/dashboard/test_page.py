"""The page in a real browser: what it draws is what the run folder says, while it grows too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.runtime.dashboard.conftest import served
from tests.runtime.dashboard.run_folders import (
    BEGAN,
    append,
    give_gpus,
    keep_samples,
    make_folder,
    sample,
    step,
    write_log,
)

if os.environ.get("CI") not in ("true", "1"):  # there it must run
    pytest.importorskip("playwright", reason="the dev extra has it")

from playwright.sync_api import Browser, Page, expect

from tests.runtime.dashboard.browser import PAINTED, chart, last_value, opened, started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


def tile(page: Page, label: str):
    return page.locator(f'[data-tile="{label}"] b')


def background(page: Page) -> tuple[int, ...]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(int(part) for part in re.findall(r"\d+", colour)[:3])


def test_what_is_shown_is_what_the_folder_says(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        expect(page.locator("#name")).to_have_text("quick")
        expect(page.locator("#state")).to_have_text("running")
        expect(page.locator("#progress")).to_contain_text("3 / 4 steps")
        expect(tile(page, "Reward")).to_have_text("0.393")  # 0.25 + 0.5 · 2/7
        expect(tile(page, "Held-out")).to_have_text("0.25")
        expect(tile(page, "Trained tok/s")).to_have_text("8,123")
        expect(tile(page, "Generated tok/s")).to_have_text("912")
        expect(tile(page, "Staleness")).to_have_text("0")
        expect(page.locator(".bottleneck b")).to_have_text(
            "generating samples takes 60 % of the last 3 steps"
        )
        rows = page.locator("section[aria-label='where the time goes'] tbody tr").all_inner_texts()
        assert [row.split("\t")[0] for row in rows] == [
            "rollout", "train", "forward backward", "optimizer", "weight sync", "other",
        ]  # fmt: skip
        assert rows[0].split("\t")[1:] == ["6.0 s", "6.0 s", "60 %"]
        assert rows[-1].split("\t")[1:] == ["0.50 s", "0.50 s", "5 %"]
        assert last_value(page, "Loss", "loss") == "0.01235"
        assert last_value(page, "Gradient norm", "grad norm") == "1.7"
        assert last_value(page, "Routing replay", "would differ") == "1.1"
        assert last_value(page, "Sparse attention's replay", "would differ") == "3.4"
        assert last_value(page, "Sparse attention, counted", "wrong") == "0"
        assert last_value(page, "Phases", "rollout") == "6"
        assert "token=" not in page.url
        seen.assert_clean()


@pytest.mark.long
def test_how_weights_reached_the_engines_is_shown(browser, folder):
    taken = {"fetch": 0, "fetch_bytes": 0, "pause": 0.004, "transfer": 0.18, "load": 0.03, "resume": 0.002}
    sync = {"time": BEGAN, "kind": "sync", "engines": [0, 1], "bytes": 57 << 30, "seconds": {"gather": 0}}
    links = {"count": 4, "most": 15 << 30, "least": 14 << 30, "rate": 80 << 30}
    for version, transfer in ((3, 0.5), (4, 0.25)):
        seconds = {"gather": 0, "transfer": transfer}
        append(
            folder.metrics, sync | {"version": version, "seconds": seconds, "taken": taken, "links": links}
        )
    with served(folder) as server, opened(browser, server) as seen:
        card = seen.page.locator("section[aria-label='weight rounds']")
        expect(card.locator("p")).to_have_text(
            "57 GiB; 4 links: 15 GiB over the fullest, at 80 GiB/s, and 14 GiB over the emptiest"
        )
        assert [row.split("\t") for row in card.locator("tbody tr").all_inner_texts()] == [
            ["trainer"],
            ["transfer", "0.25 s", "0.38 s"],
            ["slowest engine"],
            ["pause", "4 ms", "4 ms"],
            ["transfer", "0.18 s", "0.18 s"],
            ["load", "30 ms", "30 ms"],
            ["resume", "2 ms", "2 ms"],
        ]
        seen.assert_clean()


def test_every_chart_is_drawn(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        canvases = seen.page.locator(".chart:visible canvas")
        expect(canvases.first).to_be_visible()
        assert canvases.count() >= 13
        for canvas in canvases.all():
            drawn, colours = canvas.evaluate(PAINTED)
            assert drawn > 500
            assert colours > 3
        hidden = seen.page.get_by_role("region", name="Stages without engines", include_hidden=True)
        expect(hidden).to_be_hidden()  # the run has none
        seen.assert_clean()


def test_figures_that_are_flat_missing_or_no_numbers_break_no_chart(browser, tmp_path):
    folder = make_folder(tmp_path / "run")
    flat = {"reward": 0.0, "loss": 0.0, "kl_rollout_k3": 0.0, "logprob_max_diff": 0.0}
    append(folder.metrics, step(1, **flat), step(2, **flat | {"loss": float("nan"), "of_a_hook": 2.5}))
    with served(folder) as server, opened(browser, server) as seen:
        expect(tile(seen.page, "Reward")).to_have_text("0")
        expect(tile(seen.page, "KL, engine–trainer")).to_have_text("0")
        assert last_value(seen.page, "of a hook", "of a hook") == "2.5"
        assert chart(seen.page, "Loss").locator("canvas").evaluate(PAINTED)[0] > 300
        seen.assert_clean()


def test_a_new_step_appears_without_a_reload(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        page.evaluate("window.sameDocument = true")
        append(folder.metrics, step(4, reward=0.9375, loss=0.5), {
            "time": BEGAN, "kind": "eval", "step": 4, "set": "held_out", "when": "after", "reward": 0.75, "samples": 40,
        })  # fmt: skip
        append(
            folder.events, {"time": BEGAN, "generation": 0, "kind": "finished", "message": "trained 4 steps"}
        )
        expect(page.locator("#progress")).to_contain_text("4 / 4 steps", timeout=15_000)
        expect(tile(page, "Reward")).to_have_text("0.938")
        expect(tile(page, "Held-out")).to_have_text("0.75")
        assert last_value(page, "Loss", "loss") == "0.5"
        assert last_value(page, "Reward", "held-out") == "0.75"
        expect(page.locator('[data-view="events"] .count')).to_have_text("2")
        assert page.evaluate("window.sameDocument")
        polls = [url for url in seen.requests if "/api/poll" in url]
        assert "step=3" in polls[-1] or "step=4" in polls[-1]  # it did not ask for all again
        seen.assert_clean()


@pytest.mark.long
def test_zooming_shows_the_same_steps_in_all_charts(browser, tmp_path):
    folder = make_folder(tmp_path / "run", steps=100)
    append(folder.metrics, *(step(number) for number in range(1, 101)))
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        area = chart(page, "Loss").locator(".u-over").bounding_box()
        everything = page.get_by_role("button", name="All steps")
        expect(everything).to_be_disabled()
        y = area["y"] + 30
        page.mouse.move(area["x"] + area["width"] * 0.25, y)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] * 0.5, y, steps=4)
        page.mouse.up()
        expect(everything).to_be_enabled()
        page.mouse.move(area["x"] + 2, y)
        expect(chart(page, "Entropy").locator(".legend")).to_contain_text(re.compile(r"step 2[4-7]"))
        everything.click()
        page.mouse.move(area["x"] + 3, y)
        expect(chart(page, "Entropy").locator(".legend")).to_contain_text(re.compile(r"step [12]$"))
        seen.assert_clean()


@pytest.mark.long
def test_dark_and_light(browser, folder):
    with served(folder) as server:
        with opened(browser, server, color_scheme="dark") as seen:
            assert max(background(seen.page)) < 60
            seen.page.keyboard.press("t")  # light, whatever the system says
            assert min(background(seen.page)) > 200
            seen.assert_clean()
        with opened(browser, server, color_scheme="light") as seen:
            assert min(background(seen.page)) > 200
            seen.page.keyboard.press("t")
            seen.page.keyboard.press("t")
            assert max(background(seen.page)) < 60
            drawn, _ = seen.page.locator(".chart canvas").first.evaluate(PAINTED)
            assert drawn > 500
            seen.page.reload()
            seen.page.wait_for_selector("body[data-ready]")
            assert max(background(seen.page)) < 60  # remembered
            seen.assert_clean()


def test_keys_lead_through_all_views(browser, folder):
    write_log(folder, "life-0/trainer/0/trainer-0.log", "a line\n")
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        for key, words in {
            "2": "renews", "3": "engine 0 serves", "4": "No samples were kept.", "5": "a line",
            "6": "Recipe, as resolved", "1": "Where the time goes",
        }.items():  # fmt: skip
            page.keyboard.press(key)
            if key != "2":
                expect(page.locator("#main")).to_contain_text(words)
        page.keyboard.press("3")
        page.keyboard.press("/")
        page.keyboard.type("no such thing")
        expect(page.locator("#main tbody tr")).to_have_count(0)
        seen.assert_clean()


def test_samples_token_by_token(browser, folder):
    markup = "<img src=x onerror=alert(1)>"
    keep_samples(folder, 1, sample(1, 0))
    keep_samples(
        folder, 2, sample(2, 0, response=markup), sample(2, 1, tokens=[markup, " is", " 7"], response=markup)
    )
    with served(folder) as server, opened(browser, server, "samples") as seen:
        page = seen.page
        expect(page.locator(".list a")).to_have_count(2)
        expect(page.locator(".tokens span")).to_have_count(3)
        expect(page.locator(".pill", has_text="reward")).to_have_text("reward 1")
        page.keyboard.press("j")
        expect(page.locator(".pill", has_text="advantage")).to_have_text("advantage -0.7")
        tokens = page.locator(".tokens span")
        expect(tokens.first).to_have_text(markup)  # what a model wrote is text
        assert page.locator("#main img").count() == 0
        differences = [float(t.get_attribute("data-difference") or 0) for t in tokens.all()]
        assert differences == pytest.approx([0.0, -0.05, 0.5])
        painted = [t.evaluate("e => getComputedStyle(e).backgroundColor") for t in tokens.all()]
        assert len(set(painted)) == 3
        assert tokens.nth(1).get_attribute("class") == "differs"
        page.keyboard.press(",")
        expect(page.locator(".list a")).to_have_count(1)
        seen.assert_clean()


def test_a_log_grows_and_is_searched(browser, folder):
    log = write_log(folder, "life-0/rollout/0/sglang-0.log", "starting\nERROR one\nfine\n")
    write_log(folder, "life-0/trainer/0/trainer-0.log", "the trainer\n")
    with served(folder) as server, opened(browser, server, "logs/sglang-0") as seen:
        page = seen.page
        lines = page.locator(".log div")
        expect(lines).to_have_text(["starting", "ERROR one", "fine"])
        with log.open("a") as stream:
            stream.write("ERROR two\nhalf a li")
        expect(lines).to_have_count(4, timeout=15_000)
        page.keyboard.press("/")
        page.keyboard.type("^error")
        page.keyboard.press("Enter")
        expect(lines).to_have_text(["ERROR one", "ERROR two"])
        page.locator(".list a", has_text="trainer-0").click()
        expect(page.locator(".card h2").first).to_have_text("life-0/trainer/0/trainer-0.log")
        seen.assert_clean()


def test_processes_and_what_happened_to_them(browser, tmp_path):
    folder = make_folder(tmp_path / "run", engines=3)
    append(
        folder.events,
        {"time": BEGAN, "generation": 0, "kind": "engine_ready", "message": "engine 0 serves"},
        {"time": BEGAN, "generation": 0, "kind": "engine_lost", "message": "engine 2 is lost: killed"},
    )
    with served(folder) as server, opened(browser, server, "processes") as seen:
        page = seen.page
        card = page.locator(".roles section", has=page.get_by_role("heading", name="rollout"))
        expect(card.locator(".pill")).to_have_text(["1 serving", "1 live", "1 lost"])
        card.get_by_role("button", name="rollout-2 lost").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        expect(page.locator("tbody tr")).to_contain_text("engine 2 is lost: killed")
        page.locator("tbody tr").click()
        expect(page.locator(".details")).to_contain_text("python -m verst.runtime.rollout --index 2")
        seen.assert_clean()


@pytest.mark.long
def test_gpus_are_shown_with_the_processes_that_have_some_and_nowhere_without(browser, tmp_path):
    folder = make_folder(tmp_path / "run")
    with served(folder) as server, opened(browser, server, "processes") as seen:
        heads = seen.page.locator("th:visible")
        expect(heads.filter(has_text="restarts")).to_be_visible()
        assert "GPU memory" not in heads.all_inner_texts()
    give_gpus(folder, used=66_571_993_088, total=85_899_345_920, busy=0.97)
    with served(folder) as server, opened(browser, server, "processes") as seen:
        rank = seen.page.locator("tbody tr", has_text="trainer-0")
        expect(rank).to_contain_text("62.0 / 80.0 GiB")
        expect(rank).to_contain_text("97 %")
        assert rank.locator("meter").evaluate("meter => meter.value / meter.max") == pytest.approx(0.775)
        assert "GiB" not in seen.page.locator("tbody tr", has_text="rollout-0").inner_text()
        expect(seen.page.locator("tbody tr", has_text="gpu_use")).to_have_count(0)
        seen.assert_clean()


@pytest.mark.long
def test_a_long_run_of_many_processes_stays_usable(browser, tmp_path):
    folder = make_folder(tmp_path / "run", ranks=1024, engines=974, steps=10_000)
    append(folder.metrics, *(step(number) for number in range(1, 10_001)))
    with served(folder) as server, opened(browser, server) as seen:
        page = seen.page
        expect(page.locator("#progress")).to_contain_text("10,000 / 10,000 steps", timeout=30_000)
        expect(page.locator("#connection")).to_have_text("", timeout=30_000)
        expect(page.locator('[data-view="processes"] .count')).to_have_text("2,000")
        took = page.evaluate("""async () => {
          const began = performance.now();
          location.hash = "processes";
          await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
          return performance.now() - began;
        }""")
        assert took < 5000
        expect(page.locator(".cells button")).to_have_count(2000)
        expect(page.locator("tbody tr")).to_have_count(100)
        seen.assert_clean()


@pytest.mark.long
def test_a_small_window_needs_no_sideways_scrolling(browser, folder):
    with served(folder) as server, opened(browser, server, viewport={"width": 420, "height": 800}) as seen:
        for view in ("overview", "processes", "events", "logs", "plan"):
            seen.page.evaluate(f"location.hash = '{view}'")
            seen.page.wait_for_timeout(100)
            assert seen.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
        seen.assert_clean()


@pytest.mark.long
def test_a_dashboard_that_ended_says_so(browser, folder):
    with served(folder) as server, opened(browser, server) as seen:
        server.stop()
        expect(seen.page.locator("#connection")).to_contain_text("no answer", timeout=15_000)
        expect(seen.page.locator("#name")).to_have_text("quick")
