"""Every step is watched: people hear once when engines and trainer drift apart, and again if it comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.reporting.agreement import AgreementWatch
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.trainer.config import TrainerConfig


def test_a_difference_is_told_once_until_it_is_over():
    config: Any = SimpleNamespace(
        model=ModelConfig(path="m", dtype="float32"),
        trainer=TrainerConfig(max_logprob_diff=0.1),
        algorithm=AlgorithmConfig(steps=1, prompts_per_step=1, samples_per_prompt=2),
    )
    watch = AgreementWatch(config)
    figures = [0.01, 0.2, 0.3, None, 0.05, float("nan")]
    said = [watch.warning(i, {} if f is None else {"logprob_mean_diff": f}) for i, f in enumerate(figures)]
    assert [message is not None for message in said] == [False, True, False, False, False, True]
    assert said[1] is not None
    assert said[1].startswith(
        "step 1: the log-probabilities of engines and trainer differ by 0.2 nats per token"
    )
    assert "algorithm.routing_replay, which is off" in said[1]
