"""The controller's process: real member, service, mailboxes and state machine; its shell has nothing behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.state_machine import ROOM, SAMPLES, settings
from verst.runtime.actors import Member
from verst.runtime.controller.reporting.measure import RolloutMeasure
from verst.runtime.controller.service import Mailboxes, Service
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.messages.jobs import Prompt, PromptJob
from verst.runtime.run.folder import RunFolder, write_atomically

STEP_S = 5.0
SETTLE_S = 15.0  # after each worker had its first job
STEADY_S = 60.0  # what is measured as steady state
LIMIT_S = 420.0
PROMPT_IDS = list(range(200))


class ControllerProcess:
    """Joins, serves and measures."""

    def __init__(self, folder: RunFolder, engines: int, began: float) -> None:
        self.folder = folder
        self.began = began  # when the first worker joins (monotonic)
        self.engines = engines
        self.state = Controller(settings(10**6, groups=engines * ROOM // SAMPLES, evaluate=0))
        self.events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self.mail = Mailboxes()
        self.service = Service(self.events.put_nowait, self.mail, RolloutMeasure())
        self.seen: Counter[str] = Counter()
        self.file_calls: Counter[str] = Counter()
        self.served: set[int] = set()
        self.worst_delay = 0.0
        self.member: Member

    async def run(self) -> dict[str, Any]:
        """The figures, once there was a steady state."""
        sys.addaudithook(self._audit)
        self.member = await Member.join(self.folder, "controller", 0, self.service)
        rss = memory()
        tasks = [asyncio.create_task(task) for task in (self._handle(), self._watch(), self._delays())]
        await self._until(lambda: len(self.state.engines) == self.engines)
        known_s = time.monotonic() - self.began
        await self._until(lambda: len(self.served) == self.engines)
        served_s = time.monotonic() - self.began
        joined = cpu()
        await asyncio.sleep(SETTLE_S)
        self.worst_delay = 0.0
        before, at = self._totals(), time.time()
        await asyncio.sleep(STEADY_S)
        after, until = self._totals(), time.time()
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        names = os.listdir("/proc/self/fd")
        return {
            "seconds_until_all_are_known": known_s,
            "seconds_until_all_had_a_job": served_s,
            "cpu_seconds_of_joining": joined,
            "steady_seconds": [at, until],
            "steady_per_second": {key: (after[key] - before[key]) / (until - at) for key in after},
            "worst_delay_of_the_loop_seconds": self.worst_delay,
            "rss_mib_alone": rss,
            "rss_mib": memory(),
            "open_files": len(names),
            "sockets": sum(is_socket(name) for name in names),
            "counts": dict(self.member.counts),
            "events": dict(self.seen),
            "lost": self.seen["EngineLost"],
        }

    def _totals(self) -> dict[str, float]:
        return {
            "cpu": cpu(),
            "calls_answered": self.member.counts["calls"],
            "events": self.seen.total(),
            "groups": self.seen["GroupAccepted"],
            "folder_listings": self.file_calls["os.scandir"],
            "files_opened": self.file_calls["open"],
        }

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.scandir") and str(arguments[0]).startswith(str(self.folder.root)):
            self.file_calls[event] += 1

    async def _handle(self) -> None:
        commands = self.state.start()
        while True:
            for command in commands:
                self._carry_out(command)
            event = await self.events.get()
            self.seen[type(event).__name__] += 1
            commands = self.state.handle(event)

    def _carry_out(self, command: ev.Command) -> None:
        match command:
            case ev.SendPrompts(engine, ids, evaluation):
                self.served.add(engine)
                self.mail.deliver(engine, [job(id, evaluation) for id in ids])
            case ev.SyncWeights(version, engines):
                self.events.put_nowait(ev.Synced(version, engines, ()))
            case ev.Train(version, _):
                asyncio.get_running_loop().call_later(STEP_S, self.events.put_nowait, ev.Trained(version + 1))
            case _:
                raise AssertionError(command)

    async def _watch(self) -> None:
        """As the controller's `_watch_engines`, which cannot be imported without a tokenizer library."""
        misses: Counter[str] = Counter()
        while True:
            present = {info.incarnation for info in self.member.members("rollout")}
            for engine, incarnation in list(self.service.engines.items()):
                misses[incarnation] = 0 if incarnation in present else misses[incarnation] + 1
                if misses[incarnation] == 3:
                    del self.service.engines[engine]
                    self.events.put_nowait(ev.EngineLost(engine, "gone"))
            await asyncio.sleep(1)

    async def _delays(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.05)
            self.worst_delay = max(self.worst_delay, time.monotonic() - began - 0.05)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not holds():  # noqa: ASYNC110 (it would take an event for each thing that may hold)
                await asyncio.sleep(0.05)


async def controller(folder: RunFolder, engines: int, began: float, out: Path) -> None:
    """Writes the figures and stays until it is ended, so that no worker misses it."""
    figures = await ControllerProcess(folder, engines, began).run()
    write_atomically(out, json.dumps(figures).encode())
    await asyncio.Event().wait()


def job(id: int, evaluation: bool) -> PromptJob:
    """A prompt of 200 tokens."""
    prompt = Prompt(ids=PROMPT_IDS, text="six times seven", label="42", metadata={})
    return PromptJob(id=id, prompt=prompt, samples=SAMPLES, evaluation=evaluation, seeds=[1] * SAMPLES)


def memory() -> float:
    """Resident MiB of this process."""
    return psutil.Process().memory_info().rss / 2**20


def cpu() -> float:
    """Seconds that this process has computed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def is_socket(name: str) -> bool:
    """Whether this open file of ours is one."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return False
