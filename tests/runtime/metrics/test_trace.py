"""A tracer costs a bounded number of writes, and never fails the process that it looks at."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.metrics.trace import NO_TRACE, Tracer


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_spans_have_the_wall_clocks_time_and_the_monotonic_clocks_length(tmp_path):
    trace = Tracer(tmp_path / "a/b.jsonl", {"process": "trainer-3"})
    before = time.time()
    with trace.span("fetch", version=7) as about:
        time.sleep(0.05)
        about["groups"] = 2
    trace.add("rollout", time.monotonic() - 5, time.monotonic() - 2, lane="rollout", version=7)
    trace.close()
    head, fetch, rollout = lines(tmp_path / "a/b.jsonl")
    assert head == {"process": "trainer-3"}
    assert before <= fetch.pop("ts") <= before + 0.02
    assert 0.05 <= fetch.pop("dur") < 0.2
    assert fetch == {"name": "fetch", "lane": "", "version": 7, "groups": 2}
    assert rollout["ts"] == pytest.approx(time.time() - 5, abs=0.2)
    assert rollout["dur"] == pytest.approx(3, abs=0.01)


def test_a_step_costs_one_write_and_the_file_is_opened_once(tmp_path, monkeypatch):
    calls: list[str] = []
    for name in ("open", "write"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    trace = Tracer(tmp_path / "b.jsonl", {"process": "x"})
    for version in range(3):
        for _ in range(50):
            with trace.span("group", version=version):
                pass
        trace.flush()
    assert calls == ["open", "write", "write", "write"]
    assert len(lines(tmp_path / "b.jsonl")) == 151


def test_more_spans_than_fit_are_counted(tmp_path):
    trace = Tracer(tmp_path / "b.jsonl", {"process": "x"})
    for _ in range(2010):
        trace.add("group", 0.0, 1.0)
    trace.close()
    written = lines(tmp_path / "b.jsonl")
    assert len(written) == 1 + 2000 + 1
    assert written[-1] == {"left_out": 10}


def test_a_process_that_did_nothing_leaves_no_file(tmp_path):
    Tracer(tmp_path / "b.jsonl", {"process": "x"}).close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_switches_traces_off(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trace = Tracer(tmp_path / "file/below.jsonl", {"process": "x"})
    for _ in range(2):
        with trace.span("fetch"):
            pass
        trace.flush()
    assert [record.message[:31] for record in caplog.records] == ["tracing stops in this process: "]
    with NO_TRACE.span("nothing"):
        pass
