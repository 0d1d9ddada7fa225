"""The promise: fused log-probabilities and entropies equal torch's, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.sync.world import run_world
from verst.runtime.trainer.step import logprobs

TOKENS, VOCABULARY = 8, 29
TEMPERATURES = (0.3, 0.7, 1.0, 1.3)


class _OneRank:
    """The methods of a process group that are called when it has one rank only."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


ONE_RANK: dist.ProcessGroup = _OneRank()  # type: ignore[assignment]


def _case(padding: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [n, v], labels [n], a temperature for each token [n], and weights of the two outputs [2, n]."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(TOKENS, VOCABULARY + padding, generator=random)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=random)
    temperature = torch.tensor(TEMPERATURES).repeat(TOKENS // len(TEMPERATURES))
    return logits, labels, temperature, torch.randn(2, TOKENS, generator=random)


def _expected(
    logits: Tensor, labels: Tensor, temperature: Tensor | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Values [2, n] and the gradient [n, v] of their weighted sum, by torch in fp64."""
    theirs = logits.double().requires_grad_()
    scaled = theirs[:, :VOCABULARY] / (1 if temperature is None else temperature.double()[:, None])
    logp = scaled.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    values = torch.stack([logp.gather(1, labels[:, None])[:, 0], entropy])
    (values * weights).sum().backward()
    assert theirs.grad is not None
    return values.detach(), theirs.grad


def _found(
    logits: Tensor,
    labels: Tensor,
    temperature: Tensor | None,
    weights: Tensor,
    group: dist.ProcessGroup,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    mine = logits.clone().requires_grad_()
    # The function overwrites its logits, which nothing else reads in the model. Here it gets a copy.
    values = logprobs.vocab_parallel_logprobs(
        mine * 1, labels, VOCABULARY, group, temperature=temperature, **options
    )
    (values * weights).sum().backward()
    assert mine.grad is not None
    return values.detach(), mine.grad


def _assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("slice_elements", [1, 100, 1 << 25])
@pytest.mark.parametrize("padding", [0, 3])
def test_values_and_gradients_equal_log_softmax(
    monkeypatch: pytest.MonkeyPatch, slice_elements: int, padding: int, tempered: bool
) -> None:
    monkeypatch.setattr(logprobs, "_SLICE_ELEMENTS", slice_elements)
    logits, labels, temperature, weights = _case(padding)
    given = temperature if tempered else None
    found = _found(logits, labels, given, weights, ONE_RANK)
    _assert_equal(found, _expected(logits, labels, given, weights))
    assert (found[1][:, VOCABULARY:] == 0).all()
    weights[1] = 0
    _assert_equal(
        _found(logits, labels, given, weights, ONE_RANK, with_entropy_grad=False),
        _expected(logits, labels, given, weights),
    )


def test_a_token_of_probability_zero_adds_nothing_to_the_entropy() -> None:
    logits, labels, temperature, weights = _case(0)
    logits[:, 5] = logits[:, 0] = -torch.inf
    labels = torch.where((labels == 5) | (labels == 0), 7, labels)
    found = _found(logits, labels, temperature, weights, ONE_RANK)
    kept = [column for column in range(VOCABULARY) if column not in (0, 5)]
    theirs = logits[:, kept].double().requires_grad_()
    logp = (theirs / temperature.double()[:, None]).log_softmax(-1)
    places = torch.tensor([kept.index(int(label)) for label in labels])
    values = torch.stack([logp.gather(1, places[:, None])[:, 0], -(logp.exp() * logp).sum(-1)])
    (values * weights).sum().backward()
    _assert_equal((found[0], found[1][:, kept]), (values.detach(), theirs.grad))
    assert (found[1][:, [0, 5]] == 0).all()


def _split(rank: int, world: int, store: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    logits, labels, temperature, weights = _case(3)
    logits[2, 0] = -torch.inf  # in the first rank's part, where the second's labels look, too
    labels[2] = VOCABULARY - 1
    width = logits.shape[1] // world
    part = logits[:, rank * width : (rank + 1) * width]
    for given in (None, temperature):
        expected = _expected(logits.nan_to_num(neginf=-1e30), labels, given, weights)
        values, gradient = _found(part, labels, given, weights, dist.group.WORLD)
        _assert_equal((values, gradient), (expected[0], expected[1][:, rank * width : (rank + 1) * width]))
    dist.destroy_process_group()


def test_values_and_gradients_are_the_same_where_two_ranks_split_the_vocabulary() -> None:
    run_world(2, _split)
