"""The table of a model with one number for each token in place of its logits: a critic's value, a reward model's score.

The head is one row of weights, [1, hidden], that every rank of the last stage holds whole. It stands where the output
layer does, which may be tied to the embedding.
"""

from __future__ import annotations

import dataclasses

from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Layout
from verst.sync.layout.mapping import Family, HfConfig, Rule, replicated

# Megatron's name for it, under which its checkpoints expect the last stage to have an output layer.
PARAMETER = "output_layer.weight"


def with_value_head(family: Family) -> Family:
    """The family's table with a critic's head. No Hugging Face folder has it."""
    return _with_head(family, "critic", "value_head.weight")


def with_score_head(family: Family) -> Family:
    """The family's table with a reward model's head, as transformers' class for sequence classification holds it.

    Raises ValueError for a family of which no such class is known.
    """
    architecture = family.scored_as
    if architecture is None:
        raise ValueError(
            f"a reward model of the family {family.name} could not be exported: no class of transformers for sequence "
            "classification is known for it (Family.scored_as). llama, qwen3 and qwen3_moe have one"
        )
    described = {
        "architectures": [architecture],
        # These make the number of labels 1.
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",  # transformers' pipeline returns the score itself
        # Its class reads the score at the last token that is no padding. Many tokenizers pad with the token that ends
        # an answer, and the score would be another token's.
        "pad_token_id": None,
    }
    scored = _with_head(family, "reward model", "score.weight")
    return dataclasses.replace(scored, described=described)


def _with_head(family: Family, what: str, tensor: str) -> Family:
    def head(config: HfConfig) -> list[Rule]:
        kept = [rule for rule in family.head(config) if PARAMETER not in rule.names]
        return [*kept, replicated(PARAMETER, tensor, (1, int(config["hidden_size"])))]

    return dataclasses.replace(family, name=f"{family.name}, {what}", head=head)


def without_head(bound: Bound, family: Family) -> Bound:
    """The parameters that a folder of `family` has: all but the head."""
    layout = bound.layout
    kept = [(local, parameter) for local, parameter in bound.parameters if PARAMETER not in local.names]
    return Bound(Layout(family, layout.config, layout.parallel, layout.rank), kept, bound.frozen)
