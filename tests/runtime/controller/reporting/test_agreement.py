"""Every step is watched: people hear once when engines and trainer drift apart, and again if it comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.reporting.agreement import AgreementWatch
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.trainer.config import TrainerConfig


def new_watch() -> AgreementWatch:
    config: Any = SimpleNamespace(
        model=ModelConfig(path="m", dtype="float32"),
        trainer=TrainerConfig(max_logprob_diff=0.1),
        algorithm=AlgorithmConfig(steps=1, prompts_per_step=1, samples_per_prompt=2),
    )
    return AgreementWatch(config)


def told(watch: AgreementWatch, older: list[float]) -> list[int]:
    """The steps with a warning, of steps whose tokens are all of older versions."""
    warnings = [watch.warning(step, {"logprob_mean_diff_older": value}) for step, value in enumerate(older)]
    return [step for step, warning in enumerate(warnings) if warning is not None]


def test_a_difference_is_told_once_until_it_is_over():
    watch = new_watch()
    figures = [0.01, 0.2, 0.3, None, 0.05, float("nan")]
    said = [watch.warning(i, {} if f is None else {"logprob_mean_diff": f}) for i, f in enumerate(figures)]
    assert [message is not None for message in said] == [False, True, False, False, False, True]
    assert said[1] is not None
    assert said[1].startswith(
        "step 1: the log-probabilities of engines and trainer differ by 0.2 nats per token"
    )
    assert "algorithm.routing_replay, which is off" in said[1]


def test_where_no_token_is_of_the_present_weights_a_jump_is_told_once_until_it_is_over():
    usual = [0.02, 0.03, 0.025, 0.02, 0.04, 0.03, 0.02, 0.03]
    assert told(new_watch(), [*usual, 0.6, 0.6, 0.6, 0.03, 0.6, float("nan"), 0.6]) == [9, 13]
    watch = new_watch()
    assert told(watch, usual) == []
    watch.warning(8, {"logprob_mean_diff_older": 0.6})
    warning = watch.warning(9, {"logprob_mean_diff_older": 0.5})
    assert warning is not None
    assert "differ by 0.5 nats per token on average, where 0.0275 was usual: what is learned" in warning
    assert "rollout.sampling" in warning


def test_what_updates_and_staleness_do_is_no_jump():
    assert told(new_watch(), [0.02] * 8 + [0.6, 0.02] * 20) == [], "single steps"
    assert told(new_watch(), [0.01] * 8 + [0.09] * 9) == [], "within the bound"
    assert told(new_watch(), [0.01 * n for n in range(1, 200)]) == [], "a warm-up of the learning rate"
    assert told(new_watch(), [0.2] * 8 + [0.2 * 7] * 5 + [0.2] * 9) == [], "an engine that was away"
    assert told(new_watch(), [2.0] * 50) == [], "nothing to hold it against"


def test_people_hear_once_that_the_comparison_is_an_indirect_one():
    watch = new_watch()
    both = {"logprob_mean_diff": 0.01, "logprob_mean_diff_older": 0.02}
    lines = [{"logprob_mean_diff": 0.01}, both, {}, {"logprob_mean_diff_older": 0.02}]
    remarks = [watch.remark(step, line) for step, line in enumerate([*lines, *lines])]
    assert [step for step, remark in enumerate(remarks) if remark is not None] == [3]
    assert remarks[3] is not None
    assert remarks[3].startswith("step 3: no token is of the weights in training")
