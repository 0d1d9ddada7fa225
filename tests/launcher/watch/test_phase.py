"""A run's phase, how far it is and when it may be over, from the order of its records."""

from __future__ import annotations

import pytest

from verst.launcher.watch.phase import Phase, seconds_left


def after(*records: dict) -> Phase:
    phase = Phase()
    for number, record in enumerate(records):
        phase.apply({"time": 100.0 + number, **record}, life_began=number == 0)
    return phase


READY = {"kind": "trainer_ready", "message": "1 trainer ranks hold 134.5 M parameters"}
EVAL = {"kind": "eval_progress", "step": 0, "done": 20, "of": 101}
SYNC = {"kind": "sync", "version": 0}
GROUPS = {"kind": "rollout_progress", "step": 1, "done": 2, "of": 8}
STEP = {"kind": "step", "step": 1}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "starting: trainer and engines load the model"),
        ([READY], "starting: engines load the model"),
        ([READY, EVAL], "evaluating on held-out prompts, 20 of 101"),
        ([READY, {"kind": "stage_step", "stage": "sft", "step": 3}], "training step 4 (sft)"),
        ([READY, SYNC, GROUPS], "generating the answers of step 1, 2 of 8"),
        ([READY, GROUPS, GROUPS | {"done": 8}], "training step 1"),
        ([READY, GROUPS | {"done": 8}, STEP], "step 1 is done; sending its weights"),
        ([READY, GROUPS | {"done": 8}, {"kind": "rollout", "step": 1}], "generating the answers of step 2"),
        ([STEP, SYNC | {"version": 1}], "generating the answers of step 2"),
        (
            [STEP, {"kind": "checkpoint", "message": "checkpoint step-000001 is complete"}],
            "a checkpoint is written",
        ),
    ],
)
def test_the_phase_is_told_in_words(records, words):
    assert after(*records).words == words


def test_a_new_life_begins_with_starting():
    phase = after(READY, GROUPS)
    phase.apply({"time": 200.0, "kind": "resume"}, life_began=True)
    assert (phase.words, phase.since) == ("starting: trainer and engines load the model", 200.0)


def test_before_the_first_step_its_generation_tells_how_long_the_run_takes_at_least():
    phase = after(READY, SYNC, GROUPS)
    assert phase.since == 101.0
    # 2 of 8 groups in 10 s: 40 s for a step's generation, 5 steps, of which 10 s are over
    assert seconds_left(phase, 5, None, now=111.0) == (190.0, True)
    assert seconds_left(phase, 5, 30.0, now=111.0) == (150.0, False)
    assert seconds_left(after(READY), 5, None, now=111.0) is None
    assert seconds_left(phase, 0, 30.0, now=111.0) is None
