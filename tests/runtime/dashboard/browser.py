"""A real Chromium, driven by Playwright, and what it saw go wrong."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, TimeoutError, sync_playwright

from verst.runtime.dashboard.server import Server

IN_CI = os.environ.get("CI") in ("true", "1")
_READY = "body[data-ready]"
# What Chromium does with all that it is loading when a network interface of the machine comes or goes.
_DROPPED = "ERR_NETWORK_CHANGED"
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

    def note(self, message: ConsoleMessage) -> None:
        """Notes a fault that the console tells."""
        if message.type in ("error", "warning") and _DROPPED not in message.text:
            self.faults.append(message.text)

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
    page.on("console", seen.note)
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
    """Reloads the page once if Chromium has dropped a file of it, as a person would."""
    try:
        seen.page.wait_for_selector(_READY, timeout=10_000)
        return
    except TimeoutError:
        if any(_DROPPED in answer for answer in seen.answers):
            seen.answers.clear()
            seen.page.reload()
    try:
        seen.page.wait_for_selector(_READY, timeout=80_000)
    except TimeoutError as error:
        said = seen.page.locator("#connection").inner_text()
        raise AssertionError(f"no answer in 80 s; the page says {said!r}; {seen}") from error


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
