"""What happened to each life of a run, and what changed between two."""

from __future__ import annotations

import time

from tests.runtime.dashboard.run_folders import BEGAN, append, step
from verst.runtime.run.ending import RunEnd, write_end


def event(after: float, life: int, kind: str, **fields) -> dict:
    return {"time": BEGAN + after, "generation": life, "kind": kind, **fields}


def keep_recipe(folder, life: int, text: str) -> None:
    (folder.root / "recipes").mkdir(exist_ok=True)
    (folder.root / "recipes" / f"life-{life}.yaml").write_text(text)


def test_what_failed_first_and_what_changed_between_lives(folder, visit):
    keep_recipe(folder, 0, "algorithm: {steps: 4, clip: null}\nmodel: {path: /m}\n")
    keep_recipe(folder, 1, "algorithm: {steps: 8}\nmodel: {path: /m}\nrollout: {reward: a:b}\n")
    append(
        folder.events,
        event(4, 0, "process_failed", reason="trainer-1 failed: connection reset", at=BEGAN + 4, echo=True),
        event(
            4.1, 0, "process_failed", reason="trainer-0 failed: killed", at=BEGAN + 3.9, lines=["last words"]
        ),
        event(4.2, 0, "process_restarted", process="rollout-0", ending="exit code 3", restart=1),
        event(100, 1, "resume", message="resuming from step-000003"),
        event(200, 2, "resume", message="resuming from step-000005"),
        event(210, 2, "failed", message="prompt group 4: reward function 'm:f' raised ZeroDivisionError"),
    )
    append(folder.metrics, step(4, time=BEGAN + 110), step(5, time=BEGAN + 120), step(6, time=BEGAN + 205))
    folder.start_generation()
    folder.start_generation()
    write_end(folder, RunEnd(65, "controller-0 failed: exit code 65", 2))
    client = visit(folder)
    newest, middle, first = client.get("/api/lives").json()["lives"]
    assert newest["how"] == ["failed", "prompt group 4: reward function 'm:f' raised ZeroDivisionError"]
    assert newest["changes"] is None  # its recipe was not kept
    assert newest["steps"] == [6, 6]
    assert middle["how"][0] == "interrupted"
    assert middle["last"] == BEGAN + 120  # its last step, which is no event
    assert (middle["resumed_from"], middle["steps"]) == ("resuming from step-000003", [4, 5])
    assert middle["changes"] == [
        ["algorithm.steps", "4", "8"],
        ["rollout.reward", "not set", "a:b"],
        ["algorithm.clip", "null", "not set"],
    ]
    assert (first["restarts"], first["steps"]) == (1, [1, 3])
    # The cause, though it was written after its echo.
    assert first["how"] == ["failed", "trainer-0 failed: killed"]
    assert [f["reason"] for f in first["failures"]] == [
        "trainer-0 failed: killed",
        "trainer-1 failed: connection reset",
    ]
    assert first["failures"][0]["lines"] == ["last words"]


def test_a_run_that_goes_on_says_so(folder, visit):
    (only,) = visit(folder).get("/api/lives").json()["lives"]
    assert (only["life"], only["how"], only["changes"]) == (0, ["running", ""], [])
    assert only["began"] <= time.time()
