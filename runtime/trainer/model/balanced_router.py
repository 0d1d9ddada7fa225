"""Megatron's router, with balancing losses over the real tokens alone.

Megatron 0.19.2 takes a padding mask into its routers, and this corrects what it then makes of it:
- It weighs a micro-batch's loss by the real tokens of one rank, which differ between ranks that share sequences.
- A micro-batch without a real token (a data-parallel rank may have one) gives 0 / 0, and so a gradient of NaN.
- It counts tokens for the experts' bias with a mask of the wrong shape.

The losses by sequence (`seq_aux_loss`) and over the whole batch (`global_aux_loss`) divide by a mean length, which is
wrong where lengths differ. `arguments/validation.py` refuses them.
"""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def balances(config: TransformerConfig) -> bool:
    """Whether the routers have a loss of their own, so that they must know which tokens are padding."""
    if config.num_moe_experts is None:
        return False
    by_load = config.moe_router_load_balancing_type == "aux_loss" and config.moe_aux_loss_coeff
    return bool(by_load or config.moe_z_loss_coeff)


class BalancedRouter(TopKRouter):
    """A router whose balancing loss counts as much as its micro-batch has real tokens."""

    def _apply_aux_loss(
        self,
        probs: Tensor,
        scores_for_aux_loss: Tensor,
        routing_map: Tensor,
        with_padding_mask: bool = False,
    ) -> Tensor:
        """Attaches E * coefficient * sum_i f_i P_i (arXiv:2101.03961, eq. 4) to the gates' `probs`.

        f_i and P_i are over the real tokens of the micro-batch, on all ranks that share its sequences. The map and
        the scores [t, E] are zero for padding. `Pipeline` divides by the real tokens of the step.
        """
        coefficient = self.get_aux_loss_coeff("aux_loss")
        if not coefficient:
            return probs
        per_expert = reduce_from_tensor_model_parallel_region(routing_map.sum(dim=0), self.tp_cp_group)
        tokens = per_expert.sum() / self.topk
        loss = switch_load_balancing_loss_func(
            probs=scores_for_aux_loss,
            tokens_per_expert=per_expert,
            total_num_tokens=tokens.clamp(min=1),
            topk=self.topk,
            num_experts=self.config.num_moe_experts,
            moe_aux_loss_coeff=coefficient,
        )
        # Megatron multiplies by the count and by the number of ranks.
        return self.attach_and_log_load_balancing_loss(
            probs,
            coefficient,
            loss,
            "load_balancing_loss",
            self.tp_cp_group,
            valid_token_count=tokens / self.tp_cp_group.size(),
        )

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> Any:
        real = routing_map if padding_mask is None else routing_map & ~padding_mask[:, None]
        return super()._apply_expert_bias(real)
