"""Supervised steps are plain maximum likelihood with Adam: losses and the model equal a loop over transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.tiny_models import Layout, make_samples

PLAIN_ADAM = {"lr": 1e-3, "weight-decay": 0.0, "clip-grad": 0.0}
STEPS = 3


def test_three_supervised_steps_equal_adam_on_transformers(models: dict[str, Path], ranks: Ranks) -> None:
    """Losses to 1e-5, and log-probabilities after three steps of Adam to 1e-4, in float32 against float64.

    The samples are split over micro-batches, and in each other sample some tokens are not trained on. They were
    sampled at temperatures other than 1, which supervised steps ignore.
    """
    (found,) = ranks.run(models["llama"], Layout(1, PLAIN_ADAM), steps=STEPS, loss="sft")
    losses, after = _transformers_loop(models["llama"])
    np.testing.assert_allclose([report["loss"] for report in found["reports"]], losses, rtol=1e-5)
    assert losses[-1] < losses[0] - 0.1, "the steps are large enough to tell a wrong one"

    for mine, theirs in zip(found["after"], after, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def _transformers_loop(folder: Path) -> tuple[list[float], list[np.ndarray]]:
    """The loss of each step, and the log-probabilities [R] of each response after the last, at its temperatures."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    samples = make_samples(folder)
    trained = sum(int(sample.loss_mask.sum()) for sample in samples)

    def logprobs(number: int, temperature: np.ndarray | None = None) -> torch.Tensor:
        sample = samples[number]
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        start = len(sample.prompt_ids)
        logits = model(tokens[None]).logits[0, start - 1 : -1]
        if temperature is not None:
            logits = logits / torch.from_numpy(temperature)[:, None]
        return logits.log_softmax(-1).gather(1, tokens[start:, None])[:, 0]

    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        terms = [-(logprobs(n) * torch.from_numpy(s.loss_mask)).sum() for n, s in enumerate(samples)]
        loss = torch.stack(terms).sum() / trained
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        after = [
            logprobs(n, np.where(s.signals["temperature"] > 0, s.signals["temperature"], 1)).numpy()
            for n, s in enumerate(samples)
        ]
    return losses, after
