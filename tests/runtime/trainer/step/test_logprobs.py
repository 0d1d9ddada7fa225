"""The promise: fused log-probabilities and entropies equal torch's, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from verst.runtime.trainer.step import logprobs


class _OneRank:
    """The methods of a process group that are called when it has one rank only."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


@pytest.mark.parametrize("slice_elements", [1, 100, 1 << 25])
@pytest.mark.parametrize("padding", [0, 3])
def test_values_and_gradients_equal_log_softmax(monkeypatch, slice_elements: int, padding: int) -> None:
    monkeypatch.setattr(logprobs, "_SLICE_ELEMENTS", slice_elements)
    torch.manual_seed(0)
    tokens, vocabulary = 7, 29
    logits = 3 * torch.randn(tokens, vocabulary + padding)
    labels = torch.randint(0, vocabulary, (tokens,))
    weights = torch.randn(2, tokens)

    mine = logits.clone().requires_grad_()
    group: dist.ProcessGroup = _OneRank()  # type: ignore[assignment]
    # The function overwrites its logits, which nothing else reads in the model. Here it gets a copy.
    found = logprobs.vocab_parallel_logprobs(mine * 1, labels, vocabulary, group)
    (found * weights).sum().backward()

    theirs = logits.clone().requires_grad_()
    logp = theirs[:, :vocabulary].log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    expected = torch.stack([logp.gather(1, labels[:, None])[:, 0], entropy])
    (expected * weights).sum().backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert (mine.grad[:, vocabulary:] == 0).all()
