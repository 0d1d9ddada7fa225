"""The tokens that clip_cov and kl_cov treat apart are the same however an update is split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.runtime.algorithms.token_batches import config
from tests.runtime.trainer.tiny_models import ADVANTAGES, make_plan, make_samples, make_updates
from tests.sync.world import run_world
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, StepPlan
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.covariance_choice import CovarianceChoice
from verst.runtime.trainer.step.microbatches import MicroBatches

# The last has no trained token, and every second one has tokens between two turns that are not trained on.
SAMPLES = [
    s if s.index < 5 else msgspec.structs.replace(s, loss_mask=np.zeros_like(s.loss_mask))
    for s in make_samples(None)
]
LOSSES = {"clip_cov": {"cov_low": -1.0, "cov_high": 0.5}, "kl_cov": {"mini_batches": 2}}
ONE: list[Sequence[Sequence[Sequence[int]]]] = [
    [[[0, 1], [2, 3, 4], [5], []]], [[[5, 4, 3, 2, 1, 0]]], [[[3], [1], [5, 0], [2, 4]]]
]  # fmt: skip


@pytest.fixture
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def old_logprobs(sample: Sample) -> np.ndarray:
    return -np.random.default_rng(sample.index).exponential(1.5, len(sample.response_ids)).astype(np.float32)


def teacher_logprobs(sample: Sample) -> np.ndarray:
    return (
        -np.random.default_rng(60 + sample.index)
        .exponential(1.5, len(sample.response_ids))
        .astype(np.float32)
    )


def algorithm(name: str, **options: Any) -> Any:
    given = {"cov_share": 0.1, **LOSSES[name], **options}
    return config(loss=f"verst.runtime.algorithms.losses:{name}", **given)


def parallel_of(cp_rank: int = 0, cp_size: int = 1, dp_rank: int = 0) -> Any:
    return SimpleNamespace(
        device=torch.device("cpu"), cp_rank=cp_rank, cp_size=cp_size, dp_rank=dp_rank, is_last_stage=True,
        dp_cp_group=dist.group.WORLD,
    )  # fmt: skip


def signals_of(
    plan: StepPlan, made: Any, number: int = 0, parallel: Any = None
) -> dict[tuple[int, int], list[float]]:
    """The covariance of each token of the update that this rank holds, and whether it is chosen."""
    parallel = parallel or parallel_of()
    batches = MicroBatches(parallel, 2 * parallel.cp_size, 1, None).of_plan(
        plan, {(0, s.index): s for s in SAMPLES}, None, None, False
    )

    def at(batch: Batch, of: Any) -> torch.Tensor:
        found = [0.0 if row < 0 else of(SAMPLES[batch.names[row][1]])[t] for row, t in batch.places]
        return torch.tensor(np.array(found), dtype=torch.float32)

    scored = [b.with_signal("old_logprobs", at(b, old_logprobs)) for b in batches[plan.updates[number]]]
    scored = [b.with_signal("teacher_logprobs", at(b, teacher_logprobs)) for b in scored]
    found: dict[tuple[int, int], list[float]] = {}
    for batch in CovarianceChoice(made, parallel)(plan, number, scored):
        columns = [batch.signals[name].tolist() for name in ("covariance", "covariance_chosen")]
        for (row, t), *values in zip(batch.places.tolist(), *columns, strict=True):
            if row >= 0:
                found[batch.names[row][1], t] = values
            else:
                assert values[1] == 0, "a stand-in is no token"
    return found


def by_hand(samples: Sequence[Sample], coef: float = 0.0) -> dict[tuple[int, int], float]:
    """The covariance of each trained token, in float64."""
    tokens = {
        (s.index, t): (
            p := float(old_logprobs(s)[t]),
            ADVANTAGES[s.index] + coef * (float(teacher_logprobs(s)[t]) - p),
        )
        for s in samples
        for t in np.flatnonzero(s.loss_mask).tolist()
    }
    means = np.mean(list(tokens.values()), axis=0)
    return {name: (p - means[0]) * (a - means[1]) for name, (p, a) in tokens.items()}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("coef", [0.0, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_covariances_and_choice_do_not_depend_on_the_micro_batches(name: str, coef: float) -> None:
    made = algorithm(name, **({"teacher": {"path": "t", "coef": coef}} if coef else {}))
    splits = [signals_of(make_plan(SAMPLES, 1, split=split), made) for split in ONE]
    wanted = by_hand(SAMPLES, coef)
    assert len(wanted) > 20
    for split in splits:
        assert {token: values[0] for token, values in split.items()} == pytest.approx(wanted, abs=1e-5)
        assert {token: values[1] for token, values in split.items()} == {
            token: values[1] for token, values in splits[0].items()
        }
    chosen = {token for token, values in splits[0].items() if values[1]}
    assert len(chosen) == int(0.1 * len(wanted)) >= 2
    if name == "kl_cov":
        assert chosen == set(sorted(wanted, key=lambda token: wanted[token])[-len(chosen) :])
    else:
        assert all(-1.0 < wanted[token] < 0.5 for token in chosen)


@pytest.mark.usefixtures("world")
def test_each_update_has_means_and_a_draw_of_its_own() -> None:
    made = algorithm("clip_cov", cov_low=-50.0, cov_high=50.0, cov_share=0.25, mini_batches=2, epochs=2)
    plan = make_updates(SAMPLES, 1)
    updates = [signals_of(plan, made, number) for number in range(4)]
    for number, found in enumerate(updates):
        wanted = by_hand(SAMPLES[:3] if number % 2 == 0 else SAMPLES[3:])
        assert {token: values[0] for token, values in found.items()} == pytest.approx(wanted, abs=1e-6)
    assert updates[0] != updates[2], "the second epoch draws again"
    later = msgspec.structs.replace(plan, step=plan.step + 1)
    assert signals_of(later, made, 0) != updates[0], "so does the next step"
    assert signals_of(plan, made, 0) == updates[0]


@pytest.mark.usefixtures("world")
def test_tokens_of_other_terms_take_no_part() -> None:
    """Sample 0 is imitated only: its weight in the policy's term is 0."""
    plan = make_plan(SAMPLES, 1)
    apart = [
        [
            MicroBatch(
                [
                    msgspec.structs.replace(r, weights=[0.0 if r.index == 0 else r.weights[0], 0.1])
                    for r in m.samples
                ]
            )
            for m in rank
        ]
        for rank in plan.microbatches
    ]
    mixed = msgspec.structs.replace(plan, terms=["policy", "sft"], microbatches=apart)
    found = signals_of(mixed, algorithm("kl_cov", cov_share=1.0))
    wanted = by_hand(SAMPLES[1:])
    assert {token for token, values in found.items() if values[1]} == set(wanted)
    assert {t: found[t][0] for t in wanted} == pytest.approx(wanted, abs=1e-6)


def _over_two_ranks(rank: int, world: int, store: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    for name in LOSSES:
        made = algorithm(name)
        alone = by_hand(SAMPLES)
        layouts = {
            "dp": (make_plan(SAMPLES, 2), parallel_of(dp_rank=rank)),
            "cp": (make_plan(SAMPLES, 1), parallel_of(cp_rank=rank, cp_size=2)),
            # All tokens are on the first rank; the second has empty micro-batches.
            "uneven": (
                make_plan(SAMPLES, 2, split=[[[0, 1, 2, 3, 4, 5]], [[]]]),
                parallel_of(dp_rank=rank),
            ),
        }
        choices = []
        for plan, parallel in layouts.values():
            parts: list[Any] = [None, None]
            dist.all_gather_object(parts, signals_of(plan, made, parallel=parallel))
            assert not set(parts[0]) & set(parts[1])
            whole = parts[0] | parts[1]
            assert {token: values[0] for token, values in whole.items()} == pytest.approx(alone, abs=1e-6)
            choices.append({token for token, values in whole.items() if values[1]})
        assert choices[0] == choices[1] == choices[2]
        assert len(choices[0]) == int(0.1 * len(alone))
    dist.destroy_process_group()


@pytest.mark.long
def test_covariances_and_choice_do_not_depend_on_the_ranks() -> None:
    run_world(2, _over_two_ranks)
