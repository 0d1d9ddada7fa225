"""A run without enough engines says so, waits, and gives up at its deadline with everything saved."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.controller.state_machine.test_machine import BASE
from verst.runtime.controller.patience import Patience
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def kinds(folder: RunFolder) -> list[str]:
    text = folder.events.read_text() if folder.events.exists() else ""
    return [json.loads(line)["kind"] for line in text.splitlines()]


def waiting(folder: RunFolder, limit: float = 600) -> tuple[Controller, Patience, asyncio.Queue]:
    controller = Controller(replace(BASE, offline_steps=0, min_engines=2))
    controller.start()
    events: asyncio.Queue = asyncio.Queue()
    return controller, Patience(folder, controller, limit, events), events


def test_it_says_so_once_and_again_when_they_are_back(folder: RunFolder) -> None:
    controller, patience, events = waiting(folder)
    for now in range(0, 60, 5):
        patience.look(float(now))
    assert kinds(folder) == ["engines_start"], "a first start is no fault"
    for engine in range(2):
        controller.handle(ev.EngineReady(engine))
    controller.busy = None  # the weight round that they began
    patience.look(61.0)
    assert kinds(folder) == ["engines_start", "engines_ready"]
    controller.handle(ev.EngineLost(0, "gone"))
    for now in range(70, 100, 5):
        patience.look(float(now))
    controller.handle(ev.EngineReady(0))
    patience.look(101.0)
    assert kinds(folder)[2:] == ["waiting_for_engines", "engines_back"]
    assert events.empty()
    words = folder.events.read_text()
    assert words.index("the engines serve after 61 s") < words.index(
        "1 engines serve, rollout.min_engines is 2"
    )


def test_an_engine_that_is_back_at_once_needs_no_words(folder: RunFolder) -> None:
    controller, patience, _ = waiting(folder)
    patience.look(0.0)
    for engine in range(2):
        controller.handle(ev.EngineReady(engine))
    patience.look(5.0)
    assert kinds(folder) == []


def test_at_the_deadline_the_run_saves_and_gives_up_for_good(folder: RunFolder) -> None:
    controller, patience, events = waiting(folder, limit=30)
    for now in range(0, 31, 10):
        patience.look(float(now))
    asked = events.get_nowait()
    assert events.empty()
    assert asked == ev.StopAsked(
        "0 engines served for 30 s (rollout.wait_for_engines_s), rollout.min_engines is 2", hopeless=True
    )
    assert controller.handle(asked) == [ev.SaveCheckpoint(0)]
    assert controller.handle(ev.SaveStarted(0)) == [
        ev.Finish(ok=False, reason=asked.reason, stopped=True, hopeless=True)
    ]
