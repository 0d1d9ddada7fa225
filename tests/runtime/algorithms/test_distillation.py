"""The policy gradient under a teacher is the gradient of the reverse KL divergence from it."""

from __future__ import annotations

import torch

from tests.runtime.algorithms.token_batches import config, token_batch
from verst.runtime.algorithms.distillation import reverse_kl, with_teacher
from verst.runtime.algorithms.losses import grpo, reinforce
from verst.runtime.algorithms.tokens import TokenBatch

VOCABULARY = 7


def of_every_token(logits: torch.Tensor, teacher: torch.Tensor, loss: str) -> TokenBatch:
    """A batch with each token of the vocabulary once, which the policy sampled just now."""
    logprobs = logits.log_softmax(-1)
    old = logprobs.detach()
    made = token_batch(
        logprobs,
        advantages=[0.0] * VOCABULARY,
        old_logprobs=old.tolist(),
        config=config(loss=f"verst.runtime.algorithms.losses:{loss}", teacher={"path": "teacher"}),
        dtype=torch.float64,
    )
    return TokenBatch(
        **{**vars(made), "signals": {**made.signals, "old_logprobs": old, "teacher_logprobs": teacher}}
    )


def test_its_expectation_is_the_gradient_of_the_reverse_kl() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, other = torch.randn(2, VOCABULARY, dtype=torch.float64, generator=generator).unbind()
    teacher = other.log_softmax(-1)
    mine = logits.clone().requires_grad_()
    kl = (mine.softmax(-1) * (mine.log_softmax(-1) - teacher)).sum()
    (expected,) = torch.autograd.grad(kl, mine)
    for name, function in (("reinforce", reinforce), ("grpo", grpo)):
        theirs = logits.clone().requires_grad_()
        batch = of_every_token(theirs, teacher, name)
        loss = function(with_teacher(batch, 0.5)).loss
        probabilities = batch.logprobs.detach().exp()
        (found,) = torch.autograd.grad((probabilities * loss).sum(), theirs)
        torch.testing.assert_close(found, 0.5 * expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close((probabilities * reverse_kl(batch)).sum(), kl.detach())
    assert expected.abs().max() > 0.01


def test_a_reward_and_a_teacher_add_up() -> None:
    batch = token_batch(
        [-1.0, -2.0],
        advantages=[0.5, -0.25],
        old_logprobs=[-1.5, -2.5],
        config=config(teacher={"path": "teacher"}),
    )
    batch = TokenBatch(
        **{**vars(batch), "signals": {**batch.signals, "teacher_logprobs": torch.tensor([-1.0, -4.0])}}
    )
    assert with_teacher(batch, 2.0).advantages.tolist() == [0.5 + 2 * 0.5, -0.25 - 2 * 1.5]
    assert reverse_kl(batch).tolist() == [0.0, 2.0]
