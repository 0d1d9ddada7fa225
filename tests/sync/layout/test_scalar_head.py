"""The table of a reward model: its head in place of the output layer, and the families that have none."""

from __future__ import annotations

import pytest

from tests.sync.layout.test_layout import config_of
from verst.recipes.models import deepseek_v3, llama, qwen3, qwen3_moe
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.mapping import Family
from verst.sync.layout.scalar_head import with_score_head
from verst.sync.links.gather import whole_tensors


@pytest.mark.parametrize("family", [llama.FAMILY, qwen3.FAMILY, qwen3_moe.FAMILY], ids=lambda f: f.name)
def test_a_reward_model_has_one_row_in_place_of_the_output_layer(family: Family) -> None:
    config = config_of(family.name)
    mine, theirs = (
        whole_tensors(Layout(one, config, ParallelSizes(), 0)) for one in (with_score_head(family), family)
    )
    assert mine.pop("score.weight") == (1, config["hidden_size"])
    theirs.pop("lm_head.weight", None)
    assert mine == theirs


def test_a_family_without_a_class_for_it_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a reward model of the family deepseek_v3 could not be exported"):
        with_score_head(deepseek_v3.FAMILY)
