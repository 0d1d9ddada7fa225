"""The controller's state machine alone with thousands of simulated engines: time of each kind of event, and memory.

    python -P benchmarks/state_machine.py --engines 1000 2000 10000 --out benchmarks/results/state_machine.json

Events come one after another and commands are carried out at once: engines join, are evaluated and train; twice a
third of them is lost at once and comes back, once while an evaluation is under way. Seconds are the processor's, of
one core; `python -m benchmarks.membership` has the real members with their sockets and files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.loop_state import Settings
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.messages.jobs import EvalAnswers
from verst.runtime.messages.sample import GroupMeta

SAMPLES = 8  # of one group
ROOM = 32  # samples that a worker has in flight
ANSWERS = EvalAnswers(rewards=[0.5], tokens=[800], truncated=[False])
STRAGGLER = 500  # of so many groups one is finished last, so that those behind it must wait for their turn


def settings(steps: int, groups: int, evaluate: int, *, in_order: bool = False) -> Settings:
    """Asynchronous training with so many groups in a step."""
    return Settings(
        steps=steps,
        prompts_per_step=groups,
        samples_per_prompt=SAMPLES,
        staleness=1,
        in_order=in_order,
        offline_steps=0,
        checkpoint_interval=10**9,
        evals=(EvalSet("held_out", evaluate),) if evaluate else (),
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
        finish=["stop"] * SAMPLES,
        oldest_version=version,
    )


class Simulation:
    """A run of so many engines."""

    def __init__(self, engines: int, steps: int, *, in_order: bool = False) -> None:
        # Fewer than the engines have room for, so that most of them wait for prompts most of the time.
        groups = engines * ROOM // SAMPLES // 2
        self.engines = engines
        self.controller = Controller(settings(steps, groups, evaluate=engines, in_order=in_order))
        self.events: deque[ev.Event] = deque()
        self.working: deque[tuple[int, int, bool]] = deque()
        self.slow: deque[tuple[int, int, bool]] = deque()
        self.room = dict.fromkeys(range(engines), ROOM)
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def run(self, until: Callable[[], bool]) -> None:
        """Handles events until it holds."""
        while not until():
            event = self.events.popleft() if self.events else self.finish_one()
            kind = type(event).__name__
            began = time.thread_time()
            commands = self.controller.handle(event)
            self.seconds[kind] += time.thread_time() - began
            self.counts[kind] += 1
            for command in commands:
                self.do(command)

    def join(self, engines: Iterable[int]) -> None:
        """These come, or come again."""
        for engine in engines:
            self.room[engine] = ROOM
            self.events += [ev.EngineReady(engine), ev.PromptsWanted(engine, ROOM)]

    def lose(self, engines: set[int]) -> None:
        """These go, with what they had in flight."""
        self.working = deque(work for work in self.working if work[0] not in engines)
        self.slow = deque(work for work in self.slow if work[0] not in engines)
        self.events += [ev.EngineLost(engine, "power") for engine in engines]

    def finish_one(self) -> ev.Event:
        """The oldest prompt in flight is answered, the slow ones last, and its engine asks for more."""
        engine, id, evaluation = (self.working or self.slow).popleft()
        self.room[engine] += 1 if evaluation else SAMPLES
        self.events.append(ev.PromptsWanted(engine, self.room[engine]))
        if evaluation:
            return ev.EvalScored(id, ANSWERS, self.controller.evals.version)
        return ev.GroupAccepted(meta(id, self.controller.version))

    def do(self, command: ev.Command) -> None:
        """Carries it out."""
        match command:
            case ev.SendPrompts(engine, ids, evaluation):
                self.room[engine] -= len(ids) * (1 if evaluation else SAMPLES)
                for id in ids:
                    late = not evaluation and id % STRAGGLER == 0
                    (self.slow if late else self.working).append((engine, id, evaluation))
            case ev.SyncWeights(version, engines):
                self.events.append(ev.Synced(version, engines, ()))
            case ev.Train(version, _):
                self.events.append(ev.Trained(version + 1))
            case ev.SaveCheckpoint(version):
                self.events += [ev.SaveStarted(version), ev.Saved(version)]
            case ev.Export():
                self.events.append(ev.Exported())

    def whole_run(self) -> None:
        """From the first engine to the end of the run."""
        third = set(range(0, self.engines, 3))
        self.join(range(self.engines))
        self.run(lambda: self.counts["EvalScored"] == self.engines // 2)
        for _ in range(2):
            self.lose(third)
            self.join(third)
            self.run(lambda: self.controller.version == 1)
        self.run(lambda: self.controller.finished)

    @property
    def microseconds_per_event(self) -> float:
        """Of the processor, over all kinds."""
        return sum(self.seconds.values()) / sum(self.counts.values()) * 1e6


def measure(engines: int, steps: int, *, in_order: bool) -> dict[str, Any]:
    """A whole run, and another for its memory."""
    run = Simulation(engines, steps, in_order=in_order)
    run.whole_run()
    tracemalloc.start()
    again = Simulation(engines, steps, in_order=in_order)
    before = tracemalloc.get_traced_memory()[0]
    again.join(range(engines))
    again.run(lambda: again.controller.version == 1)
    again.events.clear()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {
        "engines": engines,
        "in_order": in_order,
        "steps": steps,
        "groups_per_step": run.controller.settings.prompts_per_step,
        "events": run.counts.total(),
        "events_per_second": round(1e6 / run.microseconds_per_event),
        "microseconds_per_event": round(run.microseconds_per_event, 2),
        "by_kind": {
            kind: {
                "events": count,
                "microseconds": round(run.seconds[kind] / count * 1e6, 2),
            }
            for kind, count in run.counts.most_common()
        },
        "state_mib": round(held / 2**20, 1),  # with what the simulation itself notes
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", type=int, nargs="+", default=[1000, 2000, 10_000])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figures = {
        "runs": [
            measure(engines, options.steps, in_order=in_order)
            for in_order in (False, True)
            for engines in options.engines
        ],
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "gpus": 0},
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
