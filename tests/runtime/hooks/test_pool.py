"""User code that hangs, crashes or eats memory costs its process and its own call, and nothing else."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.pool import HookPool
from verst.runtime.hooks.score import Score

HERE = "tests.runtime.hooks.functions"


async def _value(scored: Awaitable[Score]) -> float:
    return (await scored).value


class Pools:
    """Pools on one event loop, shared by the tests of this file: a process takes a second to start."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.pools: dict[tuple[str, float], HookPool] = {}

    def pool(self, name: str, timeout_s: float = 60) -> HookPool:
        if (name, timeout_s) not in self.pools:
            pool = HookPool(
                "reward function", f"{HERE}:{name}", processes=2, timeout_s=timeout_s, memory_bytes=1 << 30
            )
            self.runner.run(pool.start())
            self.pools[name, timeout_s] = pool
        return self.pools[name, timeout_s]

    def call(self, name: str, *labels: Any, timeout_s: float = 60) -> list[Any]:
        """Calls the hook with all labels at once. Returns values and errors."""
        pool = self.pool(name, timeout_s)

        async def all_of_them() -> list[Any]:
            calls = [
                _value(pool.call(f"sample {i}", Answer(text="abc", label=label)))
                for i, label in enumerate(labels)
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

        return self.runner.run(all_of_them())

    def close(self) -> None:
        for pool in self.pools.values():
            self.runner.run(pool.close())
        self.runner.close()


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    pools.close()


def test_values_of_plain_and_async_functions_come_back(pools: Pools) -> None:
    for name in ("length", "async_length"):
        assert pools.call(name, *range(1, 40)) == [3 / label for label in range(1, 40)]


def test_every_field_of_an_answer_crosses_to_the_process(pools: Pools) -> None:
    pool = pools.pool("fields")
    answer = Answer(
        text="é\x00",
        label={"n": [1, None]},
        metadata={"a": 0.5},
        prompt="ask",
        ids=list(range(100_000)),
        finish="length",
        turns=3,
        messages=[{"role": "tool", "content": "7"}],
        evaluation=True,
    )
    said = "'é\\x00' {'n': [1, None]} {'a': 0.5} 'ask' 100000 99999 length 3 [{'role': 'tool', 'content': '7'}] True"
    with pytest.raises(HookError) as error:
        pools.runner.run(pool.call("here", answer))
    assert f"raised ValueError: {said} (" in str(error.value)


@pytest.mark.parametrize(
    ("label", "message", "kind"),
    [
        ("raise", r"raised KeyError: 'oracle' \(.+functions.py:\d+, in _raise\)", "raised"),
        ("exit", r"called sys.exit\(3\) \(.+\)", "raised"),
        ("stop", r"raised StopIteration: enough \(.+\)", "raised"),
        ("label", r"raised LabelError: the label is no number \(.+\)", "label"),
        ("huge", "returned an integer of about 401 digits, too large for a float", "raised"),
        ("memory", r"raised MemoryError \(.+functions.py:\d+, in _memory\)", "raised"),
        ("leave", "its process ended with exit code 7", "died"),
        (
            "segfault",
            r"its process was killed by SIGSEGV, a fault of native code \(.+functions.py:\d+, in <lambda>\)",
            "died",
        ),
    ],
)
def test_a_fault_is_told_and_the_next_call_works(pools: Pools, label: str, message: str, kind: str) -> None:
    error, *values = pools.call("by_label", label, "half", "half", "half")
    assert isinstance(error, HookError)
    assert re.fullmatch(rf"reward function '{HERE}:by_label', sample 0: {message}", str(error))
    assert error.kind == kind
    assert values == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("label", "function"), [("hang", "<lambda>"), ("lock", "_hold_the_lock")])
def test_a_call_that_hangs_is_ended_even_with_pythons_lock_and_its_line_is_told(
    pools: Pools, label: str, function: str
) -> None:
    pools.pool("by_label", 1.5)
    began = time.monotonic()
    error, *values = pools.call("by_label", label, *["half"] * 20, timeout_s=1.5)
    assert values == [0.5] * 20
    assert re.fullmatch(
        rf"reward function '{HERE}:by_label', sample 0: no value after 1.5 s \(.+functions.py:\d+, in {function}\)",
        str(error),
    )
    assert (error.kind, time.monotonic() - began < 10) == ("late", True)
    assert "pool_process" not in error.frames, "the user's frames only"


def test_the_deadline_counts_from_the_calls_start_and_not_from_the_queue(pools: Pools) -> None:
    """Eight calls of a second in two processes take four seconds; each has 1.5 s."""
    assert pools.call("by_label", *["second"] * 8, timeout_s=1.5) == [1.0] * 8


def test_a_fork_that_returns_answers_nothing(pools: Pools) -> None:
    assert pools.call("by_label", "fork", "half", "fork", "half") == [1.0, 0.5, 1.0, 0.5]


def test_what_a_hung_call_has_started_ends_with_it(pools: Pools) -> None:
    (error,) = pools.call("by_label", "fork and hang", timeout_s=1.5)
    assert "no value after 1.5 s" in str(error)
    names = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert not [name for name in names if name and name[0] == "sleep-of-a-reward"]


def test_calls_of_an_async_function_run_together_and_a_late_one_is_cancelled(pools: Pools) -> None:
    began = time.monotonic()
    error, *values = pools.call("by_label_async", "wait", *["a while"] * 60, timeout_s=1.5)
    assert values == [2.0] * 60
    assert time.monotonic() - began < 10
    assert re.search(r"no value after 1.5 s \(.+, in by_label_async\)", str(error))


def test_the_one_at_fault_is_found_among_calls_that_run_together(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verst.runtime.hooks.pool._GRACE_S", 1.0)
    for label, message in (("segfault", "SIGSEGV"), ("lock", "no value after 1.5 s")):
        labels = ["a while", label, "a while", "a while", "a while"]
        first, error, *others = pools.call("by_label_async", *labels, timeout_s=1.5)
        assert [first, *others] == [2.0] * 4
        assert message in str(error)


def test_a_hook_that_cannot_be_loaded_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_a_user.py").write_text("import os\nos._exit(4)\n")
    for path, message in (
        ("of_a_user:f", "importing it failed: its process ended with exit code 4"),
        (f"{HERE}:lenght", "has no 'lenght'; did you mean length?"),
    ):
        pool = HookPool("reward function", path, processes=2, timeout_s=5, memory_bytes=1 << 30)
        with pytest.raises(HookError) as caught:
            asyncio.run(pool.start())
        assert str(caught.value).startswith(f"reward function '{path}'")
        assert message in str(caught.value)


def new_pool(path: str) -> HookPool:
    return HookPool("reward function", path, processes=1, timeout_s=60, memory_bytes=1 << 30)


def test_what_is_no_answer_of_a_process_is_told_and_nothing_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "writes.py").write_text(f"from {HERE} import _garbage\n_garbage()\n")

    async def started() -> None:
        async with asyncio.timeout(60):
            await new_pool("writes:f").start()

    async def called() -> None:
        pool = new_pool(f"{HERE}:by_label")
        async with asyncio.timeout(60):
            await pool.start()
            try:
                await pool.call("sample 0", Answer(text="", label="garbage"))
            finally:
                await pool.close()

    for way in (started, called):
        with pytest.raises(
            HookError, match="no process for it: raised ValueError: a message of 1099511627776"
        ):
            asyncio.run(way())


def test_a_call_in_progress_ends_with_the_pool() -> None:
    async def closed() -> None:
        pool = new_pool(f"{HERE}:by_label")
        await pool.start()
        calls = [
            asyncio.create_task(pool.call("here", Answer(text="", label=label))) for label in ("hang", "half")
        ]
        await asyncio.sleep(0.5)
        await pool.close()
        done, _ = await asyncio.wait(calls, timeout=10)
        assert [call.cancelled() for call in done] == [True, True]

    asyncio.run(closed())


def test_prints_of_all_processes_arrive_whole_in_the_workers_log(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = f"""
import asyncio
from verst.runtime.hooks.pool import HookPool
from verst.runtime.hooks.answer import Answer
async def main():
    pool = HookPool("reward function", "{HERE}:printing", processes=4, timeout_s=60, memory_bytes=1 << 30)
    await pool.start()
    await asyncio.gather(*(pool.call(str(i), Answer(text=f"answer-{{i}}", label=500)) for i in range(16)))
    await pool.close()
asyncio.run(main())
"""
    log = tmp_path / "rollout-0.log"
    with log.open("ab") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, stderr=out, check=True)
    lines = log.read_text().splitlines()
    whole = [line for line in lines if re.fullmatch(r"\S+ \S+ line \d+ answer-\d+ \d+ x{60}", line)]
    assert len(set(whole)) == len(lines) == 16 * 500
