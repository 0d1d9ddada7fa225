"""Steps on pairs are DPO with Adam: losses, figures and the model equal a loop over transformers in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, PP, TP
from tests.runtime.trainer.test_reference import other  # noqa: F401  # a fixture
from tests.runtime.trainer.tiny_models import Layout, in_default, make_samples

PLAIN_ADAM: dict[str, object] = {"lr": 1e-3, "weight-decay": 0.0, "clip-grad": 0.0}
STEPS = 3
BETA, SMOOTHING, SFT = 0.5, 0.1, 0.2
LAYOUTS = {
    "one": Layout(1, PLAIN_ADAM),
    "dp2": Layout(2, PLAIN_ADAM),
    "tp2": Layout(2, PLAIN_ADAM | {TP: 2}),
    "cp2": Layout(2, PLAIN_ADAM | {CP: 2}),
    "pp2": Layout(2, PLAIN_ADAM | {PP: 2}),
}


def recipe(**options: Any) -> dict[str, Any]:
    stage = {"kind": "dpo", "data": {"path": "pairs.jsonl"}, "steps": 8, "beta": BETA, **options}
    return {"stages": [stage, {"kind": "policy"}]}


@pytest.mark.parametrize("layout", in_default(LAYOUTS, "dp2"))
def test_three_steps_on_pairs_equal_adam_on_transformers(
    layout: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """Losses and figures to 1e-5, and log-probabilities after three steps to 1e-4, in float32 against float64.

    Pairs are spread over ranks and micro-batches, and some tokens are not trained on.
    """
    options = recipe(label_smoothing=SMOOTHING, sft_coef=SFT)
    answers = ranks.run(models["llama"], LAYOUTS[layout], steps=STEPS, loss="dpo", algorithm=options)
    expected, after = _transformers_loop(models["llama"], "sigmoid")
    for answer in answers:
        _same(answer, expected)
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.1, "the steps are large enough to tell a wrong one"
    last = next(answer["after"] for answer in reversed(answers) if answer["after"] is not None)
    for mine, theirs in zip(last, after, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_three_steps_of_ipo_with_a_reference_of_another_folder(
    models: dict[str, Path],
    other: Path,  # noqa: F811
    ranks: Ranks,
) -> None:
    options = recipe(loss="ipo", reference={"path": str(other)})
    (answer,) = ranks.run(models["llama"], LAYOUTS["one"], steps=STEPS, loss="dpo", algorithm=options)
    expected, after = _transformers_loop(models["llama"], "ipo", other)
    _same(answer, expected)
    assert expected[0]["dpo_margin"] != 0
    for mine, theirs in zip(answer["after"], after, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def _same(answer: dict[str, Any], expected: list[dict[str, float]]) -> None:
    """An evaluation before each step says the same as the step."""
    for reports in (answer["reports"], answer["evaluations"]):
        found = [{"loss": report["loss"], **report["metrics"]} for report in reports]
        for name in expected[0]:
            np.testing.assert_allclose(
                [f[name] for f in found], [e[name] for e in expected], rtol=1e-5, atol=2e-5
            )


def _transformers_loop(
    folder: Path, loss: str, reference: Path | None = None
) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """The figures of each step, and the log-probabilities [R] of each response after the last.

    The losses are eq. 7 of arXiv:2305.18290 with label smoothing, plus the log-likelihood of the chosen answers, or eq.
    17 of arXiv:2310.12036.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    fixed = AutoModelForCausalLM.from_pretrained(reference or folder, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    samples = make_samples(folder)

    def logprobs(of: torch.nn.Module, number: int, temperature: np.ndarray | None = None) -> torch.Tensor:
        sample = samples[number]
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        start = len(sample.prompt_ids)
        logits = of(tokens[None]).logits[0, start - 1 : -1]
        if temperature is not None:
            logits = logits / torch.from_numpy(temperature)[:, None]
        return logits.log_softmax(-1).gather(1, tokens[start:, None])[:, 0]

    masks = [torch.from_numpy(s.loss_mask) for s in samples]
    with torch.no_grad():
        under_reference = [(logprobs(fixed, n) * mask).sum() for n, mask in enumerate(masks)]
    figures = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        kept = [logprobs(model, n) * mask for n, mask in enumerate(masks)]
        ratio = torch.stack([own.sum() - q for own, q in zip(kept, under_reference, strict=True)])
        chosen, rejected = ratio[::2], ratio[1::2]
        difference = chosen - rejected
        if loss == "ipo":
            losses = (difference - 1 / (2 * BETA)) ** 2
        else:
            h = BETA * difference
            losses = -(1 - SMOOTHING) * torch.log(h.sigmoid()) - SMOOTHING * torch.log((-h).sigmoid())
        total = losses.mean()
        if loss == "sigmoid":
            nll = [-own.sum() / mask.sum() for own, mask in zip(kept[::2], masks[::2], strict=True)]
            total = total + SFT * torch.stack(nll).mean()
        total.backward()
        optimizer.step()
        found = {"loss": total, "dpo_margin": (BETA * difference).mean()}
        found |= {
            "dpo_chosen_reward": (BETA * chosen).mean(),
            "dpo_rejected_reward": (BETA * rejected).mean(),
        }
        figures.append({name: value.item() for name, value in found.items()})
        if difference.abs().min() > 1e-3:  # else rounding decides
            figures[-1]["dpo_accuracy"] = (difference > 0).double().mean().item()
    shared = set.intersection(*(set(step) for step in figures))
    with torch.no_grad():
        after = [
            logprobs(model, n, np.where(s.signals["temperature"] > 0, s.signals["temperature"], 1)).numpy()
            for n, s in enumerate(samples)
        ]
    return [{name: step[name] for name in sorted(shared)} for step in figures], after
