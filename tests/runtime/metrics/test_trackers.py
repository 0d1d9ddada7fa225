"""Each tracker gets a run's figures, as its own package reads them back; none can harm the run."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.sinks import MetricSinks, figures
from verst.runtime.metrics.trackers import open_sinks
from verst.runtime.run.folder import RunFolder


def step(number: int) -> dict[str, Any]:
    seconds = {"train": 2.0, "train/optimizer": 0.5}
    line = {"time": 1.0, "kind": "step", "step": number, "reward": number / 4, "bottleneck": "train"}
    return {**line, "seconds": seconds, "critical_path": {"train": 2.0}}


EVAL = {
    "kind": "eval",
    "pass@8": 0.5,
    "step": 2,
    "set": "math",
    "when": "during",
    "reward": 0.75,
    "samples": 20,
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "my-run")
    run.create()
    run.recipe.write_text("name: my-run\n")
    run.start_generation()
    return run


def track(folder: RunFolder, *records: dict[str, Any], **section: Any) -> None:
    sinks = open_sinks(folder, MetricsConfig(**section))
    for record in records:
        sinks.write(record)
    sinks.close(150)


def events(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.events.exists():
        return []
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


def test_a_line_of_metrics_becomes_named_numbers():
    assert figures(step(3)) == (
        3,
        {"reward": 0.75, "seconds/train": 2.0, "seconds/train/optimizer": 0.5, "critical_path/train": 2.0},
    )
    assert figures(EVAL) == (
        2,
        {"eval/math/pass@8": 0.5, "eval/math/reward": 0.75, "eval/math/samples": 20.0},
    )
    assert figures({"kind": "rollout_progress", "step": 0, "done": 1, "of": 4}) is None


def test_tensorboard_reads_back_what_two_lives_of_a_run_wrote(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(folder, step(0), step(1), tensorboard=True)
    track(folder, step(2), EVAL, tensorboard=True)
    events_read = EventAccumulator(str(folder.root / "tensorboard"))
    events_read.Reload()
    assert {"reward", "seconds/train/optimizer", "eval/math/reward"} <= set(events_read.Tags()["scalars"])
    found: dict[int, float] = {}
    for path in sorted((folder.root / "tensorboard").iterdir()):
        one = EventAccumulator(str(path))
        one.Reload()
        found |= {event.step: event.value for event in one.Scalars("reward")}
    assert found == {0: 0.0, 1: 0.25, 2: 0.5}
    assert events(folder) == []


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """What a .wandb file holds behind its header: wandb's package has no reader in Python any more.

    LevelDB's log: blocks of 32 KiB (the first 7 bytes shorter here) of chunks, each a checksum, a length and
    whether it is a record's whole, first, middle or last part.
    """
    whole, first, last = 1, 2, 4
    at, record = 0, b""
    while at + 7 <= len(log):
        if (at + 7) % 32768 > 32768 - 7:  # no room for another chunk in this block
            at += 32768 - (at + 7) % 32768
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        part = log[at + 7 : at + 7 + length]
        record = part if kind in (whole, first) else record + part
        if kind in (whole, last):
            yield record
        at += 7 + length


@pytest.mark.long
def test_wandb_reads_back_what_was_written_offline(folder):
    track(folder, step(0), step(1), wandb={"project": "p"})
    [path] = (folder.root / "wandb").glob("offline-run-*/run-*.wandb")
    until, rows = time.monotonic() + 60, wandb_rows(path)
    while len(rows) < 2 and time.monotonic() < until:  # its service writes in a process of its own
        time.sleep(0.5)
        rows = wandb_rows(path)
    assert [(row["step"], row["reward"], row["seconds/train"]) for row in rows] == [
        (0, 0.0, 2.0),
        (1, 0.25, 2.0),
    ]
    assert events(folder) == []


def wandb_rows(path):
    """The history in a file of an offline run."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in leveldb_records(path.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            assert (record.run.project, record.run.display_name) == ("p", "my-run")
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            )
    return rows


def test_mlflow_reads_back_one_run_that_two_lives_wrote(folder):
    from verst.runtime.metrics import mlflow  # first: it says that files will do, before mlflow is imported

    track(folder, step(0), step(1), mlflow={})
    track(folder, step(2), EVAL, mlflow={})
    client = mlflow.MlflowClient((folder.root / "mlruns").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("verst").experiment_id])
    history = client.get_metric_history(run.info.run_id, "reward")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    parts = {
        name: run.data.metrics[name]
        for name in ("seconds/train", "seconds/train.optimizer", "eval/math.reward", "eval/math.pass_at_8")
    }
    assert list(parts.values()) == [2.0, 0.5, 0.75, 0.5]
    assert run.info.status == "FINISHED"
    assert events(folder) == []


def parsed(text: str) -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.labels["run"] for sample in samples} == {"my-run"}
    return {sample.name: sample.value for sample in samples}


def test_prometheus_serves_and_writes_the_latest_step(folder, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    textfile = tmp_path / "verst.prom"
    config = MetricsConfig(prometheus={"port": port, "textfile": str(textfile)})
    sinks = open_sinks(folder, config)
    sinks.write(step(1))
    sinks.write(step(2))
    deadline = time.monotonic() + 20
    while not (textfile.exists() and parsed(textfile.read_text())["verst_step"] == 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        served = parsed(answer.read().decode())
    assert served == parsed(textfile.read_text())
    assert (served["verst_reward"], served["verst_seconds_train_optimizer"]) == (0.5, 0.5)
    # A second run on the same port is told so, once, and goes on.
    track(folder, step(0), step(1), prometheus={"port": port})
    sinks.close(5)
    [event] = events(folder)
    assert event["kind"] == "metrics_off"
    assert "metrics.prometheus is off from here on: OSError" in event["message"]


class Broken:
    """A tracker that fails in its second record."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step:
            raise SystemExit("quota exceeded")
        self.seen.append(step)

    def close(self) -> None:
        raise AssertionError("a tracker that failed is not closed")


def test_a_tracker_that_fails_is_switched_off_once_and_the_others_go_on():
    said: list[str] = []
    good, broken = Broken(), Broken()
    good.write = lambda step, values: good.seen.append(step)  # type: ignore[method-assign]
    good.close = lambda: None  # type: ignore[method-assign]
    sinks = MetricSinks({"good": lambda: good, "bad": lambda: broken}, said.append)
    for number in range(5):
        sinks.write(step(number))
    sinks.close(10)
    assert good.seen == [0, 1, 2, 3, 4]
    assert said == ["metrics.bad is off from here on: SystemExit: quota exceeded"]


def test_a_tracker_that_hangs_slows_nothing():
    said: list[str] = []
    forever = threading.Event()

    class Hanging(Broken):
        def write(self, step: int, values: Mapping[str, float]) -> None:
            forever.wait()

    sinks = MetricSinks({"slow": Hanging}, said.append)
    began = time.monotonic()
    for number in range(1500):
        sinks.write(step(number))
    sinks.close(0.2)
    assert time.monotonic() - began < 2
    forever.set()
    assert said == ["metrics.slow is off from here on: it is 1000 records behind"]
