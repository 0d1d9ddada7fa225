"""A pool of code sandboxes and a score keeper: actors that train no model.

    verst actors run examples/code_sandbox.yaml          # here
    verst actors submit examples/code_sandbox.yaml       # one Slurm job

Each sandbox runs one program at a time in a process of its own with a time limit; what waits for a turn is bounded.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import msgspec

from verst.runtime.actors import Actor, Member


class Outcome(msgspec.Struct):
    """What a program did."""

    code: int
    output: str


class Sandbox(Actor, concurrency=1, backlog=100):
    """Runs Python programs."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    async def run(self, program: str) -> Outcome:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            program,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(self.limit_s):
                output, _ = await process.communicate()
        except TimeoutError:
            return Outcome(-1, f"took longer than {self.limit_s:g} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Outcome(process.returncode or 0, output.decode(errors="replace"))


class Scores(Actor):
    """Counts outcomes."""

    def __init__(self) -> None:
        self.passed: list[bool] = []

    async def add(self, passed: bool) -> None:
        self.passed.append(passed)

    async def history(self) -> AsyncIterator[float]:
        """The share that passed, after each."""
        for n in range(1, len(self.passed) + 1):
            yield sum(self.passed[:n]) / n


PROGRAMS = ["print(6 * 7)", "print(1 / 0)", "while True: pass", "import time; time.sleep(0.1); print(42)"] * 4


async def main(member: Member) -> None:
    """Deals the programs to whatever sandboxes there are."""
    scores = member.handle(Scores, "scores", 0)
    sandboxes = await member.present("sandbox")

    async def grade(number: int, program: str) -> None:
        index = sandboxes[number % len(sandboxes)].index
        outcome = await member.handle(Sandbox, "sandbox", index).run(program)
        await scores.add(outcome.output.strip() == "42")

    await asyncio.gather(*(grade(n, program) for n, program in enumerate(PROGRAMS)))
    shares = [share async for share in scores.history()]
    print(f"{len(shares)} programs, {shares[-1]:.2f} passed", flush=True)
