"""The value head of a critic, in the place of a model's output layer, and what that changes in the model's table.

The head is one row of weights that every rank of the last stage holds whole. It starts at zero: all values are then 0,
and the first step's advantages are plain returns. No Hugging Face folder has it.
"""

from __future__ import annotations

import dataclasses

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Layout
from verst.sync.layout.mapping import Family, HfConfig, Rule, replicated

# Megatron's name for it, under which its checkpoints expect the last stage to have an output layer.
PARAMETER = "output_layer.weight"


class ValueHead(torch.nn.Module):
    """Holds the weight, [1, hidden]. `step/values.py` multiplies by it, in fp32."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # Of the hidden states that it gets. Its own gradient is whole on every tensor-parallel rank.
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(
            torch.zeros(1, config.hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )


def with_value_head(family: Family) -> Family:
    """The family's table with a value head where it has an output layer, which may be tied to the embedding."""

    def head(config: HfConfig) -> list[Rule]:
        kept = [rule for rule in family.head(config) if PARAMETER not in rule.names]
        return [*kept, replicated(PARAMETER, "value_head.weight", (1, int(config["hidden_size"])))]

    return dataclasses.replace(family, name=f"{family.name}, critic", head=head)


def without_value_head(bound: Bound, family: Family) -> Bound:
    """The parameters that a folder of `family` has: all but the value head."""
    layout = bound.layout
    kept = [(local, parameter) for local, parameter in bound.parameters if PARAMETER not in local.names]
    return Bound(Layout(family, layout.config, layout.parallel, layout.rank), kept, bound.frozen)
