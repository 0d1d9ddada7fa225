"""A real Chromium, driven by Playwright, and what it saw go wrong."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright

from verst.runtime.dashboard.server import Server

IN_CI = os.environ.get("CI") in ("true", "1")
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The program, if this machine has one."""
    return next((path for name in _PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A headless browser. Without Chromium the tests are skipped, but not in CI: there it must be."""
    program = chromium()
    if program is None:
        reason = "no Chromium here: apt-get install chromium (or `make chromium-package`)"
        pytest.fail(reason) if IN_CI else pytest.skip(reason)
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*as_root, "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """A page, what its console said and whom it asked."""

    page: Page
    origin: str
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def assert_clean(self) -> None:
        """No error, and no request that left the server."""
        assert self.faults == []
        assert self.requests
        strangers = [url for url in self.requests if not url.startswith((f"{self.origin}/", "data:"))]
        assert strangers == []


@contextmanager
def opened(browser: Browser, server: Server, view: str = "", **options) -> Iterator[Seen]:
    """The dashboard in a browser of its own, once it has its first answer."""
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
    page = context.new_page()
    address = urlsplit(server.url)
    seen = Seen(page, f"{address.scheme}://{address.netloc}")
    page.on("console", lambda m: seen.faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.faults.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("response", lambda response: seen.answers.append(f"{response.status} {response.url}"))
    page.on("requestfailed", lambda request: seen.answers.append(f"{request.failure} {request.url}"))
    page.set_default_navigation_timeout(90_000)  # a busy machine
    try:
        page.goto(server.url + (f"#{view}" if view else ""))
        _wait_for_an_answer(seen)
        yield seen
    finally:
        context.close()


def _wait_for_an_answer(seen: Seen) -> None:
    """Reloads the page once, as a person would: on a busy machine a file of the page may fail to load."""
    for last in (False, True):
        try:
            seen.page.wait_for_selector("body[data-ready]", timeout=45_000)
            return
        except TimeoutError as error:
            said = seen.page.locator("#connection").inner_text()
            message = f"no answer in 45 s; the page says {said!r}; {seen}"
            if last:
                raise AssertionError(message) from error
            warnings.warn(message, stacklevel=2)
        for noted in (seen.faults, seen.requests, seen.answers):
            noted.clear()
        seen.page.reload()


def chart(page: Page, title: str) -> Locator:
    """A chart by its title."""
    return page.get_by_role("region", name=title, exact=True)


def last_value(page: Page, title: str, label: str) -> str:
    """What a chart's legend says of a line."""
    entry = chart(page, title).locator(".legend span", has_text=re.compile(f"^{re.escape(label)} "))
    return entry.first.locator("b").inner_text()


# How many pixels of a canvas something is drawn on, and in how many colours.
PAINTED = """canvas => {
  const { width, height } = canvas;
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, width, height).data.buffer);
  const drawn = pixels.filter(pixel => pixel >>> 24);
  return [drawn.length, new Set(drawn).size];
}"""
