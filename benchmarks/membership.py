"""2,000 rollout workers join one controller on this machine: time, memory, messages, file-system calls.

    python benchmarks/membership.py --engines 2000 --out benchmarks/results/membership.json

The members, their sockets (ZeroMQ with CURVE, on loopback), their files, the controller's `Service`,
`Mailboxes` and state machine are the real ones; what an engine and a trainer would do is a wait. Two
members serve as store shards without a journal. One worker runs under strace, if that is installed, and
every system call of its process on the run folder is counted. Then the state machine alone, without
sockets, takes a larger run through its steps.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import zmq

from verst.runtime.actors import Member, create_keys
from verst.runtime.apis import ControllerApi, RolloutApi, StoreApi
from verst.runtime.controller import events as ev
from verst.runtime.controller.measure import RolloutMeasure
from verst.runtime.controller.service import Mailboxes, Service
from verst.runtime.controller.state import Controller, Settings
from verst.runtime.data.prompts import Prompt
from verst.runtime.jobs import EngineInfo, PromptJob, RolloutStats
from verst.runtime.run_folder import RunFolder, write_atomically
from verst.runtime.sample import Group, GroupMeta

START_S = 15.0  # for the processes to read their modules
JOIN_S = 60.0  # the workers join evenly over this time
GENERATE_S = 60.0  # a group takes between half and one and a half of it
STEP_S = 5.0
SAMPLES = 8  # of one group
ROOM = 32  # samples that a worker has in flight
STORES = 2
SETTLE_S = 15.0  # after each worker had its first job
STEADY_S = 60.0  # what is measured as steady state
LIMIT_S = 420.0
PROMPT_IDS = list(range(200))


def settings(steps: int, groups: int, evaluate: int) -> Settings:
    """Asynchronous training with so many groups in a step."""
    return Settings(
        steps=steps,
        prompts_per_step=groups,
        samples_per_prompt=SAMPLES,
        staleness=1,
        in_order=False,
        warm_start_steps=0,
        checkpoint_interval=10**9,
        eval_prompts=evaluate,
        eval_samples=1,
        eval_interval=None,
        min_engines=1,
    )


def meta(id: int, version: int) -> GroupMeta:
    """A finished group."""
    return GroupMeta(
        id=id,
        shard=0,
        lengths=[1000] * SAMPLES,
        trained_tokens=[800] * SAMPLES,
        rewards=[0.0, 1.0] * (SAMPLES // 2),
        truncated=[False] * SAMPLES,
        oldest_version=version,
    )


# --- the controller's process ----------------------------------------------------------------------


class ControllerProcess:
    """The real controller with a shell that has nothing behind it."""

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


# --- the other processes ----------------------------------------------------------------------------


class Store(StoreApi):
    """A shard that keeps nothing."""

    async def push(self, group: Group) -> GroupMeta:
        return meta(group.id, 0)


async def stores(folder: RunFolder) -> None:
    """All store shards."""
    for index in range(STORES):
        await Member.join(folder, "store", index, Store())
    await asyncio.Event().wait()


async def workers(folder: RunFolder, engines: int, began: float, first: int, last: int) -> None:
    """Workers first … last-1, each joining when it is its turn."""
    async with asyncio.TaskGroup() as group:
        for number in range(first, last):
            # Its place in time is another than its place in the processes: all of these begin at once.
            turn = (number * 7919) % engines / engines
            group.create_task(worker(folder, number, began + JOIN_S * turn))


async def worker(folder: RunFolder, number: int, at: float) -> None:
    """The loop of runtime/rollout/worker.py around a wait instead of an engine."""
    await asyncio.sleep(at - time.monotonic())
    member = await Member.join(folder, "rollout", number, RolloutApi(), details={"engine_ranks": 1})
    controller = member.handle(ControllerApi, "controller", 0, timeout=30)
    await controller.engine_ready(EngineInfo(engine=number, incarnation=member.info.incarnation))
    room, finished = ROOM, asyncio.Event()

    async def answer(job: PromptJob) -> None:
        nonlocal room
        await asyncio.sleep(GENERATE_S * random.uniform(0.5, 1.5))
        store = member.handle(StoreApi, "store", job.id % STORES, timeout=60)
        done = await store.push(Group(id=job.id, samples=[]))
        stats = RolloutStats(response_tokens=6400, seconds=GENERATE_S, reward_seconds=0.1)
        await controller.accepted(number, done, stats)
        room += job.samples
        finished.set()

    async with asyncio.TaskGroup() as answers:
        while True:
            if room <= 0:
                finished.clear()
                await finished.wait()
            for job in await controller.take(number, room):
                room -= job.samples
                answers.create_task(answer(job))


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


# --- the cluster ------------------------------------------------------------------------------------


def cluster(engines: int, processes: int) -> dict[str, Any]:
    """All processes on this machine, until the controller has its figures."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as ending:
        folder = RunFolder(Path(scratch) / "run")
        folder.create()
        folder.start_generation()
        create_keys(folder)
        report, trace = Path(scratch) / "report.json", Path(scratch) / "strace.txt"

        common = [
            *("--run", str(folder.root), "--began", str(time.monotonic() + START_S)),
            *("--engines", str(engines), "--out", str(report)),
        ]

        def start(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([*before, sys.executable, __file__, *map(str, arguments), *common])
            ending.callback(end, process)
            return process

        first_process = start("--as", "controller")
        start("--as", "stores")
        shares = [1 + (engines - 1) * n // processes for n in range(processes + 1)]
        for first, last in itertools.pairwise(shares):
            start("--as", "workers", "--first", first, "--last", last)
        tracing = ("strace", "-f", "-y", "-ttt", "-e", "trace=%file,%desc", "-o", str(trace))
        traced = shutil.which("strace") is not None
        start("--as", "workers", "--first", 0, "--last", 1, before=tracing if traced else ())
        while not report.exists():
            if first_process.poll() is not None:
                raise RuntimeError("the controller's process failed")
            time.sleep(0.5)
        figures = json.loads(report.read_text())
        window = figures.pop("steady_seconds")
        figures["worker_calls_per_second"] = calls_on(folder.root, trace, *window) if traced else None
        return {"engines": engines, "joining_seconds": JOIN_S, **figures}


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and, when it is strace, the one under it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
    process.wait()


def calls_on(folder: Path, trace: Path, began: float, ended: float) -> dict[str, float]:
    """System calls per second on files below `folder`, by name, of strace's output in a time window."""
    line = re.compile(r"^\d+ +([\d.]+) (\w+)\((.*)")
    calls: Counter[str] = Counter()
    for text in trace.read_text(errors="replace").splitlines():
        match = line.match(text)
        if match and began <= float(match[1]) < ended and str(folder) in match[3]:
            calls[match[2]] += 1
    rates = {name: count / (ended - began) for name, count in sorted(calls.items())}
    return {**rates, "all": sum(rates.values())}


# --- the state machine alone ------------------------------------------------------------------------


class Simulation:
    """A run whose events come one after another and whose commands are carried out at once."""

    def __init__(self, engines: int, steps: int) -> None:
        # Fewer than the engines have room for, so that most of them wait for prompts most of the time.
        groups = engines * ROOM // SAMPLES // 2
        self.controller = Controller(settings(steps, groups, evaluate=engines // 2))
        self.events: deque[ev.Event] = deque()
        self.working: deque[tuple[int, int, bool]] = deque()
        self.room = dict.fromkeys(range(engines), ROOM)
        self.handled = 0

    def run(self, until: Callable[[], bool]) -> float:
        """Seconds until it holds."""
        began = time.perf_counter()
        while not until():
            event = self.events.popleft() if self.events else self.finish_one()
            self.handled += 1
            for command in self.controller.handle(event):
                self.do(command)
        return time.perf_counter() - began

    def join(self, engines: Any) -> None:
        """These come, or come again."""
        for engine in engines:
            self.room[engine] = ROOM
            self.events += [ev.EngineReady(engine), ev.PromptsWanted(engine, ROOM)]

    def lose(self, engines: set[int]) -> None:
        """These go, with what they had in flight."""
        self.working = deque(work for work in self.working if work[0] not in engines)
        self.events += [ev.EngineLost(engine, "power") for engine in engines]

    def finish_one(self) -> ev.Event:
        """The oldest prompt in flight is answered, and its engine asks for more."""
        engine, id, evaluation = self.working.popleft()
        self.room[engine] += 1 if evaluation else SAMPLES
        self.events.append(ev.PromptsWanted(engine, self.room[engine]))
        if evaluation:
            return ev.EvalScored(id, 0.5)
        return ev.GroupAccepted(meta(id, self.controller.version))

    def do(self, command: ev.Command) -> None:
        match command:
            case ev.SendPrompts(engine, ids, evaluation):
                self.room[engine] -= len(ids) * (1 if evaluation else SAMPLES)
                self.working += [(engine, id, evaluation) for id in ids]
            case ev.SyncWeights(version, engines):
                self.events.append(ev.Synced(version, engines, ()))
            case ev.Train(version, _):
                self.events.append(ev.Trained(version + 1))
            case ev.SaveCheckpoint(version):
                self.events += [ev.SaveStarted(version), ev.Saved(version)]
            case ev.Export():
                self.events.append(ev.Exported())


def state_machine(engines: int, steps: int = 3) -> dict[str, Any]:
    """Engines join, train, a third of them is lost at once and comes back, and the run ends."""
    run = Simulation(engines, steps)
    run.join(range(engines))
    seconds = {"join": run.run(lambda: not run.events)}
    seconds["train"] = run.run(lambda: run.controller.version == steps - 1)
    lost = set(range(0, engines, 3))
    run.lose(lost)
    run.join(lost)
    seconds["third_lost_and_back"] = run.run(lambda: not run.events)
    seconds["end"] = run.run(lambda: run.controller.finished)
    tracemalloc.start()
    again = Simulation(engines, steps)
    before = tracemalloc.get_traced_memory()[0]
    again.join(range(engines))
    again.run(lambda: again.controller.version == 1)
    again.events.clear()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {
        "engines": engines,
        "steps": steps,
        "groups_per_step": run.controller.settings.prompts_per_step,
        "events": run.handled,
        "seconds": seconds,
        "microseconds_per_event": sum(seconds.values()) / run.handled * 1e6,
        "state_mib": held / 2**20,  # with what the simulation itself notes
    }


# ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Measures, or is one of the processes that are measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", type=int, default=2000)
    parser.add_argument("--simulated", type=int, nargs="*", default=[2000, 10_000])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--as", dest="role", choices=["controller", "stores", "workers"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--began", type=float)
    parser.add_argument("--first", type=int)
    parser.add_argument("--last", type=int)
    options = parser.parse_args()
    if options.role == "controller":
        asyncio.run(controller(RunFolder(options.run), options.engines, options.began, options.out))
    elif options.role == "stores":
        asyncio.run(stores(RunFolder(options.run)))
    elif options.role == "workers":
        asyncio.run(
            workers(RunFolder(options.run), options.engines, options.began, options.first, options.last)
        )
    else:
        figures = {
            "state_machine": [state_machine(engines) for engines in options.simulated],
            "cluster": cluster(options.engines, options.processes) if options.engines else None,
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "gpus": 0},
            "versions": {
                "python": platform.python_version(),
                "libzmq": zmq.zmq_version(),
                **{name: importlib.metadata.version(name) for name in ("pyzmq", "msgspec", "verst")},
            },
            "date": datetime.date.today().isoformat(),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
