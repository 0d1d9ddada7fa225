"""The advantage of each token of multi-turn samples against a plain recursion, over all samples of a step."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.runtime.trainer.tiny_models import ADVANTAGES, make_plan, make_samples
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.messages.sample import Sample
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.microbatches import MicroBatches
from verst.runtime.trainer.step.token_advantages import TokenAdvantages

SAMPLES = make_samples(None)  # every second one has tokens between two turns that are not trained on
GAMMA, LAM = 0.9, 0.8


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def values_of(sample: Sample) -> np.ndarray:
    return np.random.default_rng(sample.index).normal(size=len(sample.response_ids)).astype(np.float32)


def penalties_of(sample: Sample) -> np.ndarray:
    return 0.1 * np.random.default_rng(40 + sample.index).normal(size=len(sample.response_ids))


def expected(sample: Sample, penalised: bool) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and targets, [R]; 0 where a token is not trained on."""
    advantages, targets = np.zeros(len(sample.response_ids)), np.zeros(len(sample.response_ids))
    chosen = [t for t in range(len(advantages)) if sample.loss_mask[t]]
    values, penalties = values_of(sample), penalties_of(sample)
    advantage = following = 0.0
    for t in reversed(chosen):
        reward = ADVANTAGES[sample.index] * (t == chosen[-1]) - penalties[t] * penalised
        advantage = reward + GAMMA * following - values[t] + GAMMA * LAM * advantage
        following = values[t]
        advantages[t], targets[t] = advantage, advantage + values[t]
    return advantages, targets


def made(penalised: bool = False, **options: Any) -> tuple[list[Batch], dict[str, float]]:
    parallel: Any = SimpleNamespace(
        device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=0, tp_rank=0, is_last_stage=True
    )
    plan = make_plan(SAMPLES, 1)
    batches = MicroBatches(parallel, 1, 1, None).of_plan(
        plan, {(0, s.index): s for s in SAMPLES}, None, None, False
    )

    def at(batch: Batch, of: Any) -> torch.Tensor:
        found = [0.0 if row < 0 else of(SAMPLES[batch.names[row][1]])[t] for row, t in batch.places]
        return torch.tensor(np.array(found), dtype=torch.float32)

    scored = [batch.with_signal("values", at(batch, values_of)) for batch in batches]
    algorithm = AlgorithmConfig(
        steps=1,
        prompts_per_step=1,
        samples_per_prompt=6,
        advantage="verst.runtime.algorithms.advantages:gae",
        critic={"gamma": GAMMA, "lam": LAM},
        **({"kl_coef": 0.1, "kl_in": "reward"} if penalised else {}),
        **options,
    )
    assert algorithm.critic is not None
    penalties = [at(batch, penalties_of).double() for batch in batches] if penalised else None
    return TokenAdvantages(algorithm, algorithm.critic, parallel)(scored, penalties)


def on_responses(batches: list[Batch], values: list[torch.Tensor]) -> list[np.ndarray]:
    found = [np.zeros(len(s.response_ids)) for s in SAMPLES]
    for batch, tensor in zip(batches, values, strict=True):
        for (row, t), value in zip(batch.places, tensor.tolist(), strict=True):
            if row >= 0:
                found[batch.names[row][1]][t] = value
    return found


@pytest.mark.parametrize("penalised", [False, True])
def test_each_token_has_the_advantage_of_the_recursion_over_trained_tokens(penalised: bool) -> None:
    batches, figures = made(penalised)
    advantages = on_responses(batches, [b.advantages for b in batches])
    targets = on_responses(batches, [b.signals["returns"] for b in batches])
    both = [expected(s, penalised) for s in SAMPLES]
    for sample, (a, r) in zip(SAMPLES, both, strict=True):
        np.testing.assert_allclose(advantages[sample.index], a, atol=1e-6)
        np.testing.assert_allclose(targets[sample.index], r, atol=1e-6)
    masks = [s.loss_mask.astype(bool) for s in SAMPLES]
    values, a, r = (
        np.concatenate([x[m] for x, m in zip(each, masks, strict=True)])
        for each in ([values_of(s).astype(float) for s in SAMPLES], *zip(*both, strict=True))
    )
    assert figures["value_mean"] == pytest.approx(values.mean())
    assert figures["return_mean"] == pytest.approx(r.mean())
    assert figures["advantage_mean"] == pytest.approx(a.mean(), abs=1e-7)
    assert figures["advantage_std"] == pytest.approx(a.std())
    assert figures["value_explained_variance"] == pytest.approx(1 - (r - values).var() / r.var())
    if penalised:
        sums = [penalties_of(s)[m].sum() for s, m in zip(SAMPLES, masks, strict=True)]
        assert figures["kl_penalty"] == pytest.approx(np.mean(sums), abs=1e-7)
    else:
        assert "kl_penalty" not in figures


def test_advantages_are_whitened_over_the_steps_trained_tokens_and_clipped() -> None:
    batches, _ = made(advantage_whiten=True, advantage_clip=1.5)
    masks = [s.loss_mask.astype(bool) for s in SAMPLES]
    plain = [expected(s, False)[0] for s in SAMPLES]
    chosen = np.concatenate([a[m] for a, m in zip(plain, masks, strict=True)])
    assert np.abs((chosen - chosen.mean()) / chosen.std()).max() > 1.5
    found = on_responses(batches, [b.advantages for b in batches])
    for mine, a, mask in zip(found, plain, masks, strict=True):
        wanted = ((a - chosen.mean()) / (chosen.std() + 1e-6)).clip(-1.5, 1.5)
        np.testing.assert_allclose(mine[mask], wanted[mask], atol=1e-5)
