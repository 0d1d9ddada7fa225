"""`verst trace` puts every process's spans in one picture, also when the hosts' clocks differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verst.launcher.recipe.faults import UserError
from verst.launcher.watch.trace import parse_steps, write_trace
from verst.launcher.watch.trace_clocks import Moment, clock_offsets
from verst.runtime.run.folder import RunFolder

OFFLINE = 2


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.recipe.write_text(
        f"algorithm: {{steps: 4, stages: [{{kind: sft, steps: {OFFLINE}}}, {{kind: policy}}]}}\n"
    )
    return run


def write(
    folder: RunFolder, group: str, process: str, host: str, *spans: dict[str, Any], life: int = 0
) -> None:
    path = folder.traces / f"life-{life}" / f"{group}-0-{process}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"process": process, "group": group, "node": 0, "host": host, "generation": life}
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in (head, *spans))
        file.write('{"name": "torn"')


def span(name: str, ts: float, dur: float, version: int, lane: str = "", **about: Any) -> dict[str, Any]:
    return {"name": name, "lane": lane, "ts": ts, "dur": dur, "version": version, **about}


def merged(folder: RunFolder, steps: str | None = None) -> list[dict[str, Any]]:
    out = folder.root / "trace.json"
    write_trace(folder.root, steps, out)
    events: list[dict[str, Any]] = json.loads(out.read_text())["traceEvents"]
    return events


def slices(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["name"] == name]


def a_step(folder: RunFolder, late: float = 0.0) -> None:
    """Step 3 (it trains version 2): groups 5 and 6 at once, training, and the round of version 3."""
    parts = {"generate": 2.0, "reward": 0.5}
    groups = [
        span("group", 100 + n + late, 3, 1, "groups", parts=parts, group=5 + n, kept=True) for n in range(2)
    ]
    weights = span("weights", 112.2 + late, 0.6, 3, "weights")
    write(folder, "rollout", "rollout-0", "node-b", *groups, weights)
    write(folder, "trainer", "trainer-1", "node-a", span("forward_backward", 105.5, 4, 2))
    train = span("train", 105, 5, 2, "trainer", groups=[5, 6])
    write(folder, "trainer", "controller-0", "node-a", train, span("weight_sync", 112, 1, 3, "trainer"))


def test_overlapping_groups_get_rows_of_their_own_and_belong_to_the_step_that_trained_them(folder):
    a_step(folder)
    events = merged(folder, "3")
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    nodes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    first, second = slices(events, "group 5")[0], slices(events, "group 6")[0]
    assert names[first["pid"], first["tid"]] == "rollout-0 groups"
    assert names[second["pid"], second["tid"]] == "rollout-0 groups #1"
    assert nodes[first["pid"]] == "rollout/0 (node-b)"
    assert sorted(names.values())[:2] == ["controller-0 trainer", "rollout-0 groups"]
    assert first["args"]["step"] == 3  # two supervised steps came before
    generate, reward = slices(events, "generate")[0], slices(events, "reward")[0]
    assert (generate["ts"], generate["dur"]) == (0, 2e6)
    assert (reward["ts"], reward["dur"]) == (2e6, 0.5e6)


def test_arrows_follow_a_step_to_the_weight_round_after_it(folder):
    a_step(folder)
    arrows = [e for e in merged(folder) if e["ph"] in "stf"]
    assert [(e["ph"], e["ts"] / 1e6) for e in arrows] == [("s", 1), ("t", 5), ("t", 5.5), ("f", 12)]
    assert {e["name"] for e in arrows} == {"step 3"}


def test_a_host_whose_clock_is_late_is_moved_into_the_calls_it_answered(folder, capsys):
    a_step(folder, late=-3.0)
    events = merged(folder)
    weights, round_ = slices(events, "weights")[0], slices(events, "weight_sync")[0]
    assert weights["ts"] == pytest.approx(
        round_["ts"]
    )  # 2.8 s is the least that makes sense; 3 was the truth
    assert "the clock of node-b is wrong by at least 2.800 s" in capsys.readouterr().err


def test_clocks_that_agree_with_the_calls_are_left_as_they_are():
    calls = [Moment("a", 0, v, "train", 10 * v, 10 * v + 5) for v in range(3)]
    good = [Moment("b", 0, v, "optimizer", 10 * v + 1, 10 * v + 4) for v in range(3)]
    assert clock_offsets([*calls, *good], "a") == {"b": 0.0}
    jumped = [Moment("b", 0, 0, "optimizer", -50, -48), Moment("b", 0, 1, "optimizer", 60, 62)]
    assert clock_offsets([*calls, *jumped], "a") == {"b": 0.0}


def test_a_step_has_the_number_of_the_weight_version_that_it_makes(folder):
    a_step(folder)
    assert parse_steps("10:12") == (10, 12)
    assert parse_steps("3") == (3, 3)
    assert parse_steps(":4") == (float("-inf"), 4)
    with pytest.raises(UserError, match="must be a step or a range like 10:12"):
        parse_steps("ten")
    with pytest.raises(UserError, match="the traces cover steps 3 to 4"):
        merged(folder, "7:9")


def test_a_run_without_traces_says_why(folder):
    with pytest.raises(UserError, match=r"metrics\.traces is off"):
        merged(folder)
