"""An engine whose routers choose experts by disturbed logits: a plug-in of SGLang, found where this folder is on
PYTHONPATH. `routing_learning.py` uses it on the CPU.

Normal noise of standard deviation ROUTING_NOISE goes on the logits that experts are chosen by. The chosen experts'
weights come from the undisturbed logits, as they would where kernels differ: what replay restores is the choice.
"""

from __future__ import annotations

import os
from typing import Any

import torch


def register() -> None:
    """SGLang calls this in each of its processes."""
    noise = float(os.environ["ROUTING_NOISE"])
    if not noise:
        return
    from sglang.srt.layers.moe import topk as module

    def disturbed(
        hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool, **unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = gating_output.float()
        chosen = (logits + noise * torch.randn_like(logits)).topk(topk, dim=-1).indices
        weights = logits.softmax(-1).gather(1, chosen)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen.to(torch.int32)

    module.fused_topk = module.fused_topk_native = disturbed
