"""What the page is told is what the folder says: whole, in small pieces, and only what is new."""

from __future__ import annotations

import json
import os
import time

import msgspec
import pytest

from tests.runtime.dashboard.run_folders import (
    BEGAN,
    append,
    join,
    keep_samples,
    make_folder,
    sample,
    step,
    write_log,
)
from verst.runtime.node.agent.stacks import answer_path, asked_path
from verst.runtime.node.machine_use import MachineUse, use_path
from verst.runtime.run.ending import STOPPED, RunEnd, write_end

PAUSE = 0.3  # several pages share one look at the folder


def news(client, known: dict | None = None, pause: float = PAUSE) -> dict:
    """Polls as the page does, from where the last answer ended."""
    params = {}
    if known is not None:
        params = {kind: page["next"] for kind, page in known["series"].items()}
        params |= {"epoch": known["epoch"], "event": known["events"]["next"]}
        params["processes"] = known.get("processes", {"version": -1})["version"]
        time.sleep(pause)
    answer = client.get("/api/poll", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_step_whose_groups_are_only_kept_is_a_step(tmp_path, visit):
    folder = make_folder(tmp_path / "made")
    kept = {"kind": "rollout", "reward": 0.5, "rollout_tokens_per_s": 90.0, "seconds": {"rollout": 6.0}}
    append(folder.metrics, *({"time": BEGAN + n, **kept, "step": n} for n in (1, 2)))
    client = visit(folder)
    found = news(client)
    assert found["series"]["step"]["columns"]["reward"] == [0.5, 0.5]
    assert found["run"]["steps_done"] == 2
    (line,) = client.get("/api/runs").json()["runs"]
    assert (line["step"], line["reward"]) == (2, 0.5)


def test_the_list_of_runs_has_the_step_of_one_without_engines(tmp_path, visit):
    folder = make_folder(tmp_path / "made")
    append(folder.metrics, {"time": BEGAN, "kind": "stage_step", "step": 7, "stage": "sft", "loss": 2.5})
    (line,) = visit(folder).get("/api/runs").json()["runs"]
    assert (line["step"], line["reward"]) == (7, None)


def test_the_first_answer_has_all_and_the_next_only_what_is_new(folder, visit):
    client = visit(folder)
    first = news(client)
    assert first["series"]["step"]["columns"]["step"] == [1, 2, 3]
    assert first["series"]["step"]["columns"]["seconds/train/optimizer"] == [0.9, 0.9, 0.9]
    assert first["series"]["eval"]["columns"]["held_out/reward"] == [0.25]
    assert first["events"]["rows"][0]["message"] == "engine 0 serves"
    assert first["run"]["steps_done"] == 3
    assert first["run"]["steps_planned"] == 4
    assert first["run"]["bottleneck"]["phase"] == "rollout"
    assert first["run"]["bottleneck"]["words"] == "generating samples takes 60 % of the last 3 steps"

    append(folder.metrics, step(4, reward=0.75))
    second = news(client, first)
    assert second["series"]["step"]["columns"]["step"] == [4]
    assert second["series"]["step"]["columns"]["reward"] == [0.75]
    assert second["series"]["eval"]["columns"] == {}
    assert second["events"]["rows"] == []
    assert "processes" not in second
    assert len(json.dumps(second)) < 3000


def test_a_torn_line_waits_until_it_is_whole(folder, visit):
    client = visit(folder)
    first = news(client)
    line = json.dumps(step(4))
    with folder.metrics.open("a") as stream:
        stream.write(line[:100])
    second = news(client, first)
    assert second["series"]["step"]["columns"] == {}
    with folder.metrics.open("a") as stream:
        stream.write(line[100:] + "\n" + '{"kind":"step", torn by a crash\n' + json.dumps(step(5)) + "\n")
    assert news(client, second)["series"]["step"]["columns"]["step"] == [4, 5]


def test_replaced_files_begin_anew(folder, visit):
    client = visit(folder)
    first = news(client)
    folder.metrics.unlink()
    append(folder.metrics, step(1, reward=0.5))
    second = news(client, first)
    assert second["epoch"] != first["epoch"]
    assert second["series"]["step"]["columns"]["reward"] == [0.5]
    assert second["events"]["rows"] == first["events"]["rows"]


def test_figures_that_are_no_numbers_are_told_as_words(folder, visit):
    append(folder.metrics, step(4, loss=float("nan"), grad_norm=float("inf")))
    columns = news(visit(folder))["series"]["step"]["columns"]
    assert columns["loss"][3] == "nan"
    assert columns["grad_norm"][3] == "inf"


def test_a_figure_that_comes_later_has_gaps_before(folder, visit):
    append(folder.metrics, step(4, of_a_hook=2.5))
    assert news(visit(folder))["series"]["step"]["columns"]["of_a_hook"] == [None, None, None, 2.5]


def test_where_the_critical_path_is_known_it_names_the_bottleneck(tmp_path, visit):
    folder = make_folder(tmp_path / "run")
    path = {"train": 7.0, "rollout": 2.0, "wait": 1.0}
    append(folder.metrics, step(1, critical_path=path, bottleneck="train"))
    found = news(visit(folder))["run"]["bottleneck"]
    assert found["phase"] == "train"
    assert found["share"] == 0.7
    assert found["part"] == "forward_backward"


def test_the_progress_of_the_step_that_is_being_made(folder, visit):
    client = visit(folder)
    for done in (1, 2, 3):
        append(folder.metrics, {"time": BEGAN, "kind": "rollout_progress", "step": 4, "done": done, "of": 8})
    first = news(client)
    assert first["run"]["groups"] == {"step": 4, "done": 3, "of": 8, "dropped": 0}
    append(folder.metrics, step(4))
    assert news(client, first)["run"]["groups"] is None


def test_engines_that_missed_the_last_weights_are_named(tmp_path, visit):
    folder = make_folder(tmp_path / "run", engines=3)
    for version, engines in ((1, [0, 1, 2]), (2, [0, 2]), (3, [0, 2])):
        append(folder.metrics, {"time": BEGAN, "kind": "sync", "version": version, "engines": engines})
    assert news(visit(folder))["run"]["weights"] == {"version": 3, "engines": 2, "behind": {"1": 1}}


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (RunEnd(0, "controller-0 finished", 0), "finished"),
        (RunEnd(1, "trainer-0 failed", 0), "failed"),
        (RunEnd(1, "trainer-0 failed", 0, resumes=True), "comes back"),
        (RunEnd(STOPPED, "asked to stop", 0), "stopped"),
    ],
)
def test_how_the_run_ended(folder, visit, end, word):
    client = visit(folder)
    assert news(client)["run"]["state"] == "running"
    write_end(folder, end)
    time.sleep(PAUSE)
    run = news(client)["run"]
    assert run["state"] == word
    assert run["why"] == end.reason


def test_a_run_that_was_killed_without_a_word_is_silent(folder, visit):
    long_ago = time.time() - 3600
    for path in [folder.metrics, folder.events, folder.root / "life", *folder.members.iterdir()]:
        os.utime(path, (long_ago, long_ago))
    answer = news(visit(folder))
    assert answer["run"]["state"] == "silent"
    assert set(answer["processes"]["columns"]["state"]) == {"silent"}


def states(answer: dict) -> dict[str, str]:
    columns = answer["processes"]["columns"]
    return dict(zip(columns["name"], columns["state"], strict=True))


def test_states_of_processes(tmp_path, visit):
    folder = make_folder(tmp_path / "run", ranks=2, engines=4)
    (folder.members / "rollout-1.json").unlink()
    (folder.members / "rollout-2.json").unlink()
    restarted = {"process": "rollout-1", "ending": "exit code 3", "restart": 1, "lines": ["its last words"]}
    append(
        folder.events,
        {"time": BEGAN, "generation": 0, "kind": "engine_ready", "message": "engine 0 serves"},
        {"time": BEGAN, "generation": 0, "kind": "process_restarted", **restarted},
        {
            "time": BEGAN,
            "generation": 0,
            "kind": "engine_lost",
            "message": "engine 3 is lost: its lease ran out",
        },
        {
            "time": BEGAN,
            "generation": 0,
            "kind": "process_failed",
            "reason": "trainer-1 on node trainer/0 failed: killed by SIGKILL",
        },
    )
    answer = news(visit(folder))
    assert states(answer) == {
        "controller-0": "live",
        "store-0": "live",
        "trainer-0": "live",
        "trainer-1": "failed",
        "rollout-0": "serving",
        "rollout-1": "restarting",
        "rollout-2": "absent",
        "rollout-3": "lost",
    }
    columns = answer["processes"]["columns"]
    at = columns["name"].index("rollout-1")
    assert (columns["restarts"][at], columns["note"][at]) == (1, "exit code 3")


def test_a_new_life_forgets_the_troubles_of_the_last(tmp_path, visit):
    folder = make_folder(tmp_path / "run")
    append(
        folder.events,
        {
            "time": BEGAN,
            "generation": 0,
            "kind": "process_failed",
            "reason": "trainer-0 on node trainer/0 failed",
        },
    )
    client = visit(folder)
    first = news(client)
    assert states(first)["trainer-0"] == "failed"
    folder.start_generation()
    second = news(client, first)
    assert states(second)["trainer-0"] == "absent"  # its file is of the life before
    join(folder, "trainer", 0, generation=1)


def test_the_plan_a_process_and_the_recipe(folder, visit):
    client = visit(folder)
    groups = client.get("/api/plan").json()["groups"]
    assert [p[0] for p in groups["trainer"][0]] == ["controller-0", "store-0", "trainer-0"]
    assert client.get("/api/process", params={"name": "rollout-0"}).json()["argv"][-1] == "0"
    assert client.get("/api/process", params={"name": "rollout-9"}).status_code == 404
    assert client.get("/api/recipe").text == folder.recipe.read_text()


def test_a_folder_that_goes_away_is_an_answer_and_it_may_come_back(folder, visit):
    client = visit(folder)
    first = news(client)
    folder.root.rename(folder.root.with_name("elsewhere"))
    time.sleep(PAUSE)
    answer = client.get("/api/poll")
    assert answer.status_code == 503
    assert "cannot be read" in answer.text
    folder.root.with_name("elsewhere").rename(folder.root)
    assert news(client, first)["run"]["steps_done"] == 3


@pytest.mark.parametrize("query", ["step=x", "event=1e3"])
def test_a_place_that_is_no_number_is_refused(folder, visit, query):
    client = visit(folder)
    epoch = news(client)["epoch"]
    assert client.get(f"/api/poll?epoch={epoch}&{query}").status_code == 400


def test_kept_samples(folder, visit):
    client = visit(folder)
    assert client.get("/api/samples").json() == {"steps": [], "step": -1, "samples": []}
    keep_samples(folder, 1, sample(1, 0))
    path = keep_samples(folder, 2, sample(2, 0), sample(2, 1, rollout_logprobs=[float("nan"), -0.2, -1.5]))
    with path.open("a") as stream:
        stream.write('{"step": 2, "torn')
    answer = client.get("/api/samples").json()
    assert answer["steps"] == [1, 2]
    assert answer["step"] == 2
    assert [(s["line"], s["index"], s["reward"]) for s in answer["samples"]] == [(0, 0, 1.0), (1, 1, 0.0)]
    whole = client.get("/api/sample", params={"step": 2, "line": 1}).json()
    assert whole["tokens"] == ["It", " is", " 7"]
    assert whole["rollout_logprobs"] == [None, -0.2, -1.5]
    assert whole["routing_differs"] == [0, 1, 0]
    assert client.get("/api/sample", params={"step": 2, "line": 2}).status_code == 404
    assert client.get("/api/samples", params={"step": 9}).status_code == 404


def test_a_log_is_followed_through_its_replacement(folder, visit):
    name = "life-0/trainer/0/trainer-0.log"
    log = write_log(folder, name, "one\n\x1b[31mtwo\x1b[0m\nthr")
    client = visit(folder)
    tail = client.get("/api/log", params={"file": name}).json()
    assert tail["lines"] == ["one", "two"]
    with log.open("a") as stream:
        stream.write("ee\nfour\n")
    since = {"file": name, "since": tail["end"], "inode": tail["inode"]}
    assert client.get("/api/log", params=since).json()["lines"] == ["three", "four"]
    log.rename(log.with_name("trainer-0.log.1"))
    write_log(folder, name, "a new file, long enough to reach beyond the place where the old one ended\n")
    assert client.get("/api/log", params=since).json()["lines"][0].startswith("a new file")
    names = [name for name, _ in client.get("/api/logs").json()["files"]]
    assert names == [name, f"{name}.1"]


def test_searching_a_log_backwards(folder, visit):
    name = "life-0/rollout/0/sglang-0.log"
    write_log(folder, name, "".join(f"line {i} {'ERROR' if i % 100 == 0 else ''}\n" for i in range(1000)))
    client = visit(folder)
    found = client.get("/api/log", params={"file": name, "grep": r"line \d+ error"}).json()
    assert found["lines"] == [f"line {i} ERROR" for i in range(0, 1000, 100)]
    assert client.get("/api/log", params={"file": name, "grep": "Error"}).json()["lines"] == []
    bad = client.get("/api/log", params={"file": name, "grep": "("})
    assert bad.status_code == 400
    assert "not a regular expression" in bad.text


def test_a_pattern_that_backtracks_for_ever_is_given_up(folder, visit):
    name = "life-0/rollout/0/sglang-0.log"
    write_log(folder, name, "a" * 3000 + "!\n")
    client, began = visit(folder), time.monotonic()
    answer = client.get("/api/log", params={"file": name, "grep": r"(a+)+$"})
    assert time.monotonic() - began < 20
    assert answer.status_code == 400
    assert "takes too long" in answer.text


def test_held_out_answers_of_each_evaluation(folder, visit):
    client = visit(folder)
    held = {"tokens": [], "rollout_logprobs": [], "trainer_logprobs": [], "advantage": None, "label": 7}
    for version, when in ((0, "before"), (3, "after")):
        answer = sample(version, 0, **held, when=when, metadata={"level": "easy"}, response=f"of {version}")
        keep_samples(folder, version, answer, kind="eval")
    keep_samples(folder, 3, sample(3, 0))
    found = client.get("/api/samples", params={"kind": "eval"}).json()
    assert (found["steps"], found["step"]) == ([0, 3], 3)
    assert [(s["response"], s["label"], s["when"]) for s in found["samples"]] == [("of 3", "7", "after")]
    whole = client.get("/api/sample", params={"kind": "eval", "step": 0, "line": 0}).json()
    assert (whole["label"], whole["metadata"], whole["response"]) == (7, {"level": "easy"}, "of 0")
    assert client.get("/api/samples").json()["steps"] == [3]
    assert client.get("/api/samples", params={"kind": "keys"}).status_code == 400


def test_the_stack_of_a_process_comes_from_its_agent(folder, visit):
    client = visit(folder)
    ask = {"params": {"name": "trainer-0"}, "headers": {"x-verst-dash": "1"}}
    assert client.get("/api/stack", params={"name": "trainer-0"}).json() == {"text": None, "asked": False}
    (folder.root / "stacks").mkdir()
    answer_path(folder, "trainer-0").write_text("an old one")
    assert client.post("/api/stack", **ask).status_code == 200
    assert client.get("/api/stack", params={"name": "trainer-0"}).json() == {"text": None, "asked": True}
    asked_path(folder, "trainer-0").unlink()
    answer_path(folder, "trainer-0").write_text("process 100\nThread 1")
    assert client.get("/api/stack", params={"name": "trainer-0"}).json()["text"] == "process 100\nThread 1"
    answer_path(folder, "trainer-0").unlink()
    answer_path(folder, "trainer-0").symlink_to(folder.recipe)
    assert client.get("/api/stack", params={"name": "trainer-0"}).json()["text"] is None


def test_in_a_folder_that_cannot_be_written_it_says_how_to_take_the_stack(folder, visit):
    client = visit(folder)
    (folder.root / "stacks").write_text("in the way")
    answer = client.post("/api/stack", params={"name": "trainer-0"}, headers={"x-verst-dash": "1"})
    assert answer.status_code == 409
    assert "Give on 10.0.0.1: py-spy dump --subprocesses --pid 100" in answer.text
    write_end(folder, RunEnd(0, "finished", 0))
    time.sleep(PAUSE)
    answer = client.post("/api/stack", params={"name": "trainer-0"}, headers={"x-verst-dash": "1"})
    assert "trainer-0 does not run (ended)" in answer.text


def test_the_nodes_and_how_full_they_are(folder, visit):
    use = MachineUse(
        host="gpu-7", cpus=64, cpu=0.25, load=3.5, memory_used=3 << 30, memory_total=4 << 30,
        folder_free=5 << 40, folder_total=9 << 40, scratch_free=1 << 30, scratch_total=2 << 30,
    )  # fmt: skip
    path = use_path(folder, "trainer", 0)
    path.parent.mkdir()
    path.write_bytes(msgspec.json.encode(use))
    trainer, rollout = visit(folder).get("/api/nodes").json()["nodes"]
    assert trainer == {"group": "trainer", "node": 0, "age": 0, "stale": False, **msgspec.to_builtins(use)}
    assert rollout == {"group": "rollout", "node": 0}
