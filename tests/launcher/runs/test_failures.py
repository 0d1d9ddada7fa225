"""`verst status` names the process that failed first and tells it from those that failed because of it."""

from __future__ import annotations

from pathlib import Path

from verst.launcher.runs.ending import last_words
from verst.launcher.runs.failures import failures, tell_failures
from verst.runtime.run.folder import RunFolder


def fail(run: RunFolder, process: str, node: int, at: float, echo: bool, *lines: str) -> None:
    reason = f"{process} on node trainer/{node} failed: exit code 1"
    # The agent that wrote `ended` first is not always that of the cause.
    known = {"process": process, "at": at, "echo": echo, "lines": list(lines), "first": node == 0}
    run.event("process_failed", group="trainer", node=node, reason=reason, **known)


def test_the_earliest_failure_that_is_no_echo_comes_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.start_generation()
    assert tell_failures(failures(run, 0)) == []
    fail(run, "trainer-1", 0, 1000.2, True, "RuntimeError: Connection reset by peer", "")
    fail(run, "trainer-9", 1, 1000.3, False, "Traceback", "CUDA out of memory")
    fail(run, "trainer-17", 2, 1003.0, False, "also out of memory")
    found = failures(run, 0)
    assert [failure.process for failure in found] == ["trainer-9", "trainer-17", "trainer-1"]
    assert found[0].node == "trainer/1"
    said = tell_failures(found)
    assert said[0].startswith("failed first: trainer-9 on node trainer/1 failed: exit code 1 (")
    assert said[1:] == [
        "  | Traceback",
        "  | CUDA out of memory",
        "also, +2.7 s: trainer-17 on node trainer/2 failed: exit code 1: also out of memory",
        "as a consequence, -0.1 s: trainer-1 on node trainer/0 failed: exit code 1: "
        "RuntimeError: Connection reset by peer",
    ]
    assert last_words(run, 0) == ["Traceback", "CUDA out of memory"]
    assert failures(run, 1) == []


def test_events_of_an_older_version_are_understood(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.start_generation()
    run.event(
        "process_failed", group="trainer", node=0, reason="store-0 on node x failed", first=True, lines=["z"]
    )
    assert [(f.process, f.lines) for f in failures(run, 0)] == [("store-0", ["z"])]
