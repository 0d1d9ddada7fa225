"""A long run of a large cluster: 10,000 steps, 2,000 members, logs of gigabytes."""

from __future__ import annotations

import json
import time

from tests.runtime.dashboard.run_folders import BEGAN, append, make_folder, step
from tests.runtime.dashboard.test_answers import news

STEPS, RANKS, ENGINES = 10_000, 1024, 974  # with controller and store 2,000 members
MIB = 1 << 20


def test_ten_thousand_steps_and_two_thousand_members(tmp_path, visit):
    folder = make_folder(tmp_path / "large", ranks=RANKS, engines=ENGINES, steps=STEPS)
    with folder.metrics.open("w") as stream:
        for number in range(1, STEPS + 1):
            for done in (1, 2, 3, 4):
                progress = {"time": BEGAN, "kind": "rollout_progress", "step": number, "done": done, "of": 4}
                stream.write(json.dumps(progress, separators=(",", ":")) + "\n")
            stream.write(json.dumps(step(number), separators=(",", ":")) + "\n")
    append(
        folder.events,
        *(
            {
                "time": BEGAN + i,
                "generation": 0,
                "kind": "engine_ready",
                "message": f"engine {i % ENGINES} serves",
            }
            for i in range(20_000)
        ),
    )
    client = visit(folder)

    answer, steps, requests, began = None, [], 0, time.monotonic()
    while answer is None or len(steps) < STEPS:
        asked = time.monotonic()
        answer = news(client, answer, pause=0)
        assert time.monotonic() - asked < 10  # seconds; about a half on an idle machine
        assert len(json.dumps(answer)) < 1.5 * MIB
        steps += answer["series"]["step"]["columns"].get("step", [])
        processes = answer.get("processes")
        requests += 1
        if processes and len(processes["columns"]["name"]) == 2000:
            known = processes
        answer["processes"] = known  # the page remembers it
    assert steps == list(range(1, STEPS + 1))
    assert requests <= 12
    assert time.monotonic() - began < 60
    assert known["columns"]["state"].count("serving") == ENGINES
    assert known["columns"]["state"].count("live") == RANKS + 2

    while answer["events"]["more"]:  # of events the last few thousand are kept
        answer = news(client, answer, pause=0)
        answer["processes"] = known
    assert answer["events"]["next"] == 20_000

    append(folder.metrics, step(STEPS + 1))
    asked = time.monotonic()
    last = news(client, answer)
    assert last["series"]["step"]["columns"]["step"] == [STEPS + 1]
    assert len(json.dumps(last)) < 4000
    assert time.monotonic() - asked < 5


def test_of_a_log_of_gigabytes_only_the_end_is_read(tmp_path, visit):
    folder = make_folder(tmp_path / "run")
    path = folder.log_folder("trainer", 0, 0) / "trainer-0.log"
    with path.open("wb") as stream:
        stream.truncate(8 << 30)  # a hole: takes no space, but reading it would take long
        stream.seek(0, 2)
        stream.write(b"\n" + b"".join(b"line %d\n" % i for i in range(50_000)))
    name = "life-0/trainer/0/trainer-0.log"
    client = visit(folder)
    began = time.monotonic()
    tail = client.get("/api/log", params={"file": name})
    assert tail.json()["lines"][-1] == "line 49999"
    assert len(tail.content) < 200_000
    before = client.get("/api/log", params={"file": name, "before": tail.json()["start"]}).json()
    joined = [*before["lines"], *tail.json()["lines"]]
    first = int(joined[0].removeprefix("line "))
    assert joined == [f"line {i}" for i in range(first, 50_000)]
    found = client.get("/api/log", params={"file": name, "grep": "line 4242$"}).json()
    assert found["lines"] == ["line 4242"]
    assert time.monotonic() - began < 20
