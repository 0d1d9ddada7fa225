"""The promise: every kind of router uses the given experts, weighted by its own scores. Its logits get the
same gradient as if it had chosen these experts itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

from verst.runtime.trainer.model.replayed_routing import ReplayedRouting

TOKENS, EXPERTS, TOPK = 40, 16, 4
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax before the choice": {"use_pre_softmax": True},
    "sigmoid": {"score_function": "sigmoid", "scaling_factor": 2.5},
    "sigmoid, bias, groups": {
        "score_function": "sigmoid",
        "expert_bias": torch.linspace(-0.5, 0.5, EXPERTS),
        "num_groups": 4,
        "group_topk": 2,
        "scaling_factor": 2.5,
    },
    "groups": {"num_groups": 4, "group_topk": 2},
    "sqrtsoftplus, bias": {
        "score_function": "sqrtsoftplus",
        "expert_bias": torch.linspace(0.5, -0.5, EXPERTS),
    },
}


def _route(logits: torch.Tensor, router: dict[str, Any], replay: Any = None) -> Any:
    return topk_routing_with_score_function(logits, TOPK, router_replay=replay, **router)


@pytest.mark.parametrize("name", ROUTERS)
def test_given_experts_are_weighed_by_the_routers_own_scores(name: str) -> None:
    """Noise on the logits changes the router's choice. With replay the first choice is used, with the weights
    that the models' formulas give it."""
    torch.manual_seed(0)
    router = ROUTERS[name]
    first = torch.randn(TOKENS, EXPERTS)
    _, chosen_map = _route(first, router)
    indices = chosen_map.int().topk(TOPK, dim=1).indices
    logits = (first + torch.randn_like(first)).requires_grad_()
    counts = torch.zeros(5, dtype=torch.int64)
    replay = ReplayedRouting(counts, EXPERTS, recomputes=False)
    replay.give(
        indices.to(torch.uint8), torch.ones(TOKENS, dtype=torch.uint8), torch.zeros(TOKENS, dtype=torch.bool)
    )
    weights, used = _route(logits, router, replay)
    assert torch.equal(used, chosen_map)
    _, free = _route(logits.detach(), router)
    differing = int((free != chosen_map).any(1).sum())
    assert differing > TOKENS // 2
    assert counts.tolist() == [TOKENS, 0, 0, differing, 0]

    expected = weights_of(logits, indices, router)
    torch.testing.assert_close(weights.gather(1, indices), expected)
    (ours,) = torch.autograd.grad((weights * torch.arange(EXPERTS)).sum(), logits)
    (theirs,) = torch.autograd.grad((expected * indices).sum(), logits)
    torch.testing.assert_close(ours, theirs)
    assert (ours.gather(1, indices) != 0).any(1).all()


def weights_of(logits: torch.Tensor, indices: torch.Tensor, router: dict[str, Any]) -> torch.Tensor:
    """Returns the weights [tokens, K] of the experts `indices`, by the formulas of the models' authors."""
    at = logits.gather(1, indices)
    function = router.get("score_function", "softmax")
    if function == "softmax":
        return logits.softmax(-1).gather(1, indices) if router.get("use_pre_softmax") else at.softmax(-1)
    scores = at.sigmoid() if function == "sigmoid" else torch.nn.functional.softplus(at).sqrt()
    return scores / scores.sum(1, keepdim=True) * router.get("scaling_factor", 1.0)
