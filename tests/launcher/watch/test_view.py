"""The view says how a run is from its folder alone, on a terminal and without one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.launcher.watch.durations import DURATIONS
from verst.launcher.watch.curve import draw_curve
from verst.launcher.watch.progress import Progress, ProgressReader, phases_of
from verst.launcher.watch.state import summarise
from verst.launcher.watch.view import (
    LiveView,
    PlainView,
    draw,
    duration,
    plain_line,
    print_summary,
    reward_curve,
)
from verst.runtime.run.folder import RunFolder

# Lines as the controller and the agents write them.
EVENTS = [
    {"time": 1.0, "generation": 0, "kind": "engine_ready", "message": "engine 0 serves\nsecond line"},
    {"time": 8.0, "kind": "process_restarted", "process": "rollout-0", "ending": "exit code 3", "restart": 1},
    {"time": 23.0, "generation": 0, "kind": "checkpoint", "message": "checkpoint step-000002 is complete"},
]
METRICS = [
    {
        "time": 3.5,
        "kind": "eval",
        "set": "held_out",
        "step": 10,
        "reward": 0.42,
        "reward_ci": 0.05,
        "samples": 100,
        "when": "before",
    },
    {
        "time": 3.0,
        "kind": "stage_step",
        "stage": "sft",
        "step": 1,
        "loss": 2.5,
        "grad_norm": 1.0,
        "epoch": 0.5,
    },
    {"time": 4.0, "kind": "sync", "version": 0, "engines": [0], "seconds": {"transfer": 1.0}},
    {"time": 5.0, "kind": "rollout_progress", "step": 11, "done": 3, "of": 8},
]


def step(number: int, reward: float) -> dict:
    return {
        "time": 10.0 + number,
        "kind": "step",
        "step": number,
        "reward": reward,
        "loss": -0.0123,
        "grad_norm": 1.5,
        "tokens_per_s": 812.4,
        "rollout_tokens_per_s": 91.2,
        "seconds": {"step": 10.0, "rollout": 6.0, "train": 3.0, "weight_sync": 0.5, "train/optimizer": 1.0},
    }


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.recipe.write_text(
        "name: quick\nalgorithm: {steps: 4, stages: [{kind: sft, steps: 10}, {kind: policy}]}\n"
    )
    return folder


def write(path: Path, records: list[dict]) -> None:
    with path.open("a") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)


def said(screen: Console) -> list[str]:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


def test_plain_view_prints_each_step_evaluation_and_event_once_in_order(folder):
    screen = console()
    with PlainView(folder, screen) as view:
        write(folder.events, EVENTS[:2])
        write(folder.metrics, [*METRICS, step(11, 0.25)])
        view.update()
        view.update()
        write(folder.metrics, [step(12, 0.5)])
        write(folder.events, EVENTS[2:])
    assert said(screen) == [
        "engine 0 serves",
        "sft step 1/14  loss 2.5000  grad norm 1.000  epoch 0.50",
        "held-out before training: 0.420 ± 0.050 (100 answers)",
        "rollout-0: exit code 3; restart 1",
        "step 11/14  reward 0.250  loss -0.0123  grad norm 1.500  trained tokens/s 812  generated tokens/s 91"
        "  rollout 6.0s train 3.0s weight_sync 0.5s other 0.5s",
        "step 12/14  reward 0.500  loss -0.0123  grad norm 1.500  trained tokens/s 812  generated tokens/s 91"
        "  rollout 6.0s train 3.0s weight_sync 0.5s other 0.5s",
        "checkpoint step-000002 is complete",
    ]


def test_plain_view_of_a_resumed_run_does_not_repeat_its_earlier_life(folder):
    write(folder.metrics, [step(11, 0.25)])
    screen = console()
    with PlainView(folder, screen):
        write(folder.metrics, [step(12, 0.5)])
    assert [line.split("  ")[0] for line in said(screen)] == ["step 12/14"]


def test_live_view_shows_bars_numbers_curve_phases_and_events(folder):
    write(folder.events, EVENTS)
    write(folder.metrics, [*METRICS[:3], step(11, 0.25), step(12, 0.5), METRICS[3] | {"step": 13}])
    reader = ProgressReader(folder)
    reader.update()
    screen = console()
    screen.print(draw(reader.progress, elapsed=75, width=100))
    text = "\n".join(said(screen))
    for part in (
        "quick  1 min 15 s",
        "held-out before training 0.420 ± 0.050 (100 answers)",
        "1/10 steps",  # before the policy
        "12/14 steps",
        "step 13",
        "3/8 groups",
        "reward 0.500  loss -0.0123",
        "mean training reward by step",
        "checkpoint step-000002 is complete",
    ):
        assert part in text
    rows = [line.split() for line in said(screen)]
    assert ["rollout", "6.00", "s", "6.00", "s", "60", "%"] in rows
    assert ["optimizer", "1.00", "s", "1.00", "s", "10", "%"] in rows
    assert ["other", "0.50", "s", "0.50", "s", "5", "%"] in rows


def test_live_view_draws_on_a_terminal(folder):
    screen = console(terminal=True)
    with LiveView(folder, screen) as view:
        write(folder.metrics, [step(11, 0.25), step(12, 0.75)])
        view.update()
    assert any("12/14 steps" in line for line in said(screen))


KEPT = {
    "kind": "rollout",
    "reward": 0.25,
    "rollout_tokens": 900,
    "rollout_tokens_per_s": 91.2,
    "seconds": {"rollout": 6.0},
}


def test_a_run_that_only_generates_gets_on_as_others_do(folder):
    folder.recipe.write_text("name: quick\nalgorithm: {steps: 4}\n")
    lines = [KEPT | {"time": 9.0 + n, "step": n} for n in (1, 2)]
    screen = console()
    with PlainView(folder, screen):
        write(folder.metrics, lines)
    assert said(screen)[0] == "kept the groups of step 1  reward 0.250  91 tokens/s"
    reader = ProgressReader(folder)
    reader.update()
    screen = console()
    screen.print(draw(reader.progress, elapsed=75, width=100))
    text = "\n".join(said(screen))
    assert "2/4 steps" in text
    assert "generated tokens/s 91" in text
    folder.start_generation()
    summary = summarise(folder, None)
    assert (summary.steps, summary.steps_planned, summary.reward) == (2, 4, 0.25)


def test_an_evaluation_without_training_is_not_told_as_one_after_it():
    record = METRICS[0] | {"when": "alone", "set": "math"}
    assert (
        plain_line(record, Progress(name="x", steps_planned=4))
        == "held-out: math 0.420 ± 0.050 (100 answers)"
    )
    del record["reward_ci"]
    assert plain_line(record, Progress(name="x", steps_planned=4)) == "held-out: math 0.420 (100 answers)"


def test_a_step_done_again_after_a_resume_replaces_the_first():
    progress = Progress(name="x", steps_planned=4)
    for number, reward in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.4)]:
        progress.apply_metric(step(number, reward))
    assert progress.rewards() == [(1, 0.1), (2, 0.4), (3, 0.3)]
    assert progress.steps_done == 3


def test_a_steps_bottleneck_is_shown_with_its_share():
    record = step(0, 0.5) | {"bottleneck": "rollout", "critical_path": {"rollout": 6.0, "train": 4.0}}
    progress = Progress(name="x", steps_planned=4)
    assert str(plain_line(record, progress)).endswith("other 0.5s  bottleneck rollout 60 %")


def test_overlapping_phases_leave_no_negative_rest():
    assert phases_of({"seconds": {"step": 5.0, "rollout": 4.0, "train": 4.0}})["other"] == 0.0


def test_the_reward_curve_rises_where_the_reward_does():
    progress = Progress(name="x", steps_planned=20)
    for number in range(20):
        progress.apply_metric(step(number + 1, number / 20))
    lines = reward_curve(progress, 60).plain.splitlines()
    assert lines[1].startswith("0.95 ┤")
    assert lines[-2].startswith("   0 ┤")
    assert lines[-1].split() == ["1", "20"]
    dots = [[i for i, c in enumerate(line) if 0x2800 < ord(c) <= 0x28FF] for line in lines[1:-1]]
    centres = [sum(row) / len(row) for row in dots]
    assert centres == sorted(centres, reverse=True)


def test_a_constant_reward_is_a_level_line():
    lines = draw_curve([(1, 0.5), (2, 0.5), (9, 0.5)], width=30, height=5)
    assert [any(0x2800 < ord(c) <= 0x28FF for c in line) for line in lines] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_summary_says_what_a_run_came_to(folder):
    write(folder.metrics, [METRICS[0], step(11, 0.25), step(14, 0.75)])
    write(folder.metrics, [METRICS[0] | {"when": "after", "reward": 0.91}])
    (folder.checkpoints / "step-000004").mkdir()
    (folder.checkpoints / "step-000004/checkpoint.json").write_text("{}")
    (folder.checkpoints / "step-000005").mkdir()  # no manifest: half-written
    folder.export.mkdir()
    (folder.export / "config.json").write_text("{}")
    screen = console()
    print_summary(folder, screen, elapsed=600)
    rows = dict(line.strip().split("  ", 1) for line in said(screen))
    assert {key: value.strip() for key, value in rows.items()} == {
        "held-out": "0.420 ± 0.050 (100 answers) before -> 0.910 ± 0.050 (100 answers) after",
        "reward": "0.250 in step 11 -> 0.750 in step 14",
        "per step": "rollout 6.0s train 3.0s weight_sync 0.5s other 0.5s",
        "checkpoint": f"{folder.checkpoints}/step-000004",
        "export": f"{folder.export} (a Hugging Face folder)",
        "wall time": "10 min 0 s",
    }


@pytest.mark.parametrize(("seconds", "words"), [(5.4, "5 s"), *DURATIONS])
def test_durations_are_readable(seconds, words):
    assert duration(seconds) == words


def test_a_step_whose_groups_are_only_kept_has_a_line():
    record = {"kind": "rollout", "step": 5, "reward": 0.25, "rollout_tokens_per_s": 1234.5}
    line = plain_line(record, Progress(name="x", steps_planned=4))
    assert line == "kept the groups of step 5  reward 0.250  1234 tokens/s"
